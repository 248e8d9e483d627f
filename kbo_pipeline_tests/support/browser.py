"""Debian's chromium, moved by Playwright; and pictures, of its pages and of terminals.

Pictures are left in `build/screenshots`. Those that the docs show go into the directory `PICTURES`
too, when that is set: `make test-browser PICTURES=docs/pictures`.
"""

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from rich.console import Console
from rich.text import Text

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.server import PATIENCE

SCREENSHOTS = REPOSITORY / "build" / "screenshots"
COLUMNS = 100
"""How wide the terminals on pictures are."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SIZE = (1400, 900)
_COLORS = 128
_MOST_BYTES = 150_000


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Starts the machine's chromium; Playwright's own is neither downloaded nor needed.

    Raises:
        AssertionError: none is on the PATH.
    """
    found = [path for name in _NAMES if (path := shutil.which(name))]
    assert found, f"none of {', '.join(_NAMES)} is on the PATH: `make test-browser` installs one"
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found[0],
            chromium_sandbox=os.geteuid() != 0,  # it refuses to be made by root
        )
        with browser:
            yield browser


class Screen:
    """What a person sees of the web UI, in a browser without a past."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def open(self, section: str) -> None:
        """Goes to a section of the UI, by the navigation at its left."""
        text = self.page.get_by_text(section, exact=True)  # a link's name has its icon's before it
        self.page.get_by_role("link").filter(has=text).first.click()

    def icon(self, name: str) -> Locator:
        """The button that shows an icon and no text."""
        return self.page.get_by_role("button").filter(
            has=self.page.get_by_role("img", name=name, exact=True)
        )

    def picture(self, name: str, *, shown: bool = False) -> Path:
        """Leaves a picture; `shown` ones are in the docs."""
        file = SCREENSHOTS / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(self.page.screenshot())) as image:
            # Areas of one colour stay so, which compresses well.
            small = image.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
            small.save(file, optimize=True)
        if shown:
            _show(file)
        return file


@contextmanager
def opened(
    browser: Browser,
    address: str,
    name: str,
    size: tuple[int, int] = _SIZE,
    color: Literal["light", "dark"] = "light",
) -> Iterator[Screen]:
    """Opens the UI; a failure inside says where the last picture is.

    Args:
        browser: where.
        address: of the UI.
        name: of that picture, after `failed-`.
        size: of the window.
        color: what the person prefers.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=color,
        device_scale_factor=1,
        locale="en-GB",
        timezone_id="Europe/Brussels",
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE * 1000)
    screen = Screen(context.new_page())
    try:
        screen.page.goto(address)
        yield screen
    except BaseException as error:
        error.add_note(f"the last picture: {screen.picture(f'failed-{name}')}")
        raise
    finally:
        context.close()


def terminal_picture(name: str, command: str, output: str) -> None:
    """Draws what a command has written, with its colours, as SVG for the docs.

    Args:
        name: of the picture.
        command: what was typed, for the title.
        output: what it wrote to a terminal of `COLUMNS` columns.
    """
    console = Console(record=True, file=io.StringIO(), width=COLUMNS)
    console.print(Text.from_ansi(output.rstrip()))
    file = SCREENSHOTS / f"{name}.svg"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = console.export_svg(title=f"$ {command}", unique_id=name)
    # The font comes from another server; how wide each text is to be is in the picture.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    file.write_text(drawn, encoding="utf-8")
    _show(file)


def _show(file: Path) -> None:
    """Copies a picture to where the docs have theirs, when that is asked for."""
    size = file.stat().st_size
    assert size < _MOST_BYTES, f"{file}: {size} bytes; pictures in the docs have {_MOST_BYTES}"
    if directory := os.environ.get("PICTURES"):
        (REPOSITORY / directory).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, REPOSITORY / directory / file.name)
