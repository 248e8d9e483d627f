"""The page `/kbo` as an operator uses it, wide and on a phone: `make test-browser`.

`make test-browser WATCH_ENTERPRISES=100000` imports a Full of that size, and holds how long the bar
stands still, and the time that is said to be left, against the truth; nothing else should run
beside it.
"""

import importlib.resources
import itertools
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from kbo_pipeline.commands.demo import damage
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline.sample.portal import StandInPortal
from kbo_pipeline_tests.support.browser import Screen, opened
from kbo_pipeline_tests.support.pipeline import BAD, Pipeline
from kbo_pipeline_tests.support.processes import wait_until
from kbo_pipeline_tests.support.server import Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

FULL, UPDATE = "0140-full", "0141-update"
ENTERPRISES = int(os.environ.get("WATCH_ENTERPRISES", "20000"))
IS_MEASURED = ENTERPRISES >= 100_000
# Of one row group: from a larger table, DuckDB takes removed rows away, and all others move up.
SAMPLE = Sample(enterprises=ENTERPRISES, seed=11, change_shares=(3000 / ENTERPRISES,))
WIDE, PHONE = (1440, 900), (390, 844)
SHARE = "document.getElementById('overall')?.value ?? null"
SETTINGS = {"KBO_BATCH_ROWS": "300", "KBO_MAX_BATCHES": "20"}
SLOW_SECONDS, QUICK_SECONDS = 120.0, 4.0
"""How long a download takes until it is seen, and from then on."""
AT_REST = re.compile("Up to date|All published")
"""The latter when the portal has not answered in time."""


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInPortal]:
    """A stand-in portal that offers nothing yet."""
    with StandInPortal(tmp_path_factory.mktemp("offered")) as portal:
        yield portal


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, portal: StandInPortal) -> Pipeline:
    account = {"KBO_PORTAL_URL": portal.url, "KBO_USERNAME": "demo", "KBO_PASSWORD": "demo"}
    settings = {**SETTINGS, **account, "KBO_POLL_SECONDS": "5"}
    pipeline = Pipeline(tmp_path_factory.mktemp("dashboard"), settings)
    zips = pipeline.directory / "zips"
    SAMPLE.write_full(zips, 140)
    SAMPLE.write_update(zips, 141)
    return pipeline


@pytest.fixture(params=[WIDE, PHONE], ids=["wide", "phone"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    return found


def zip_of(pipeline: Pipeline, extract: str) -> Path:
    (file,) = (pipeline.directory / "zips").glob(f"*_{extract.split('-')[0]}_*")
    return file


def drop(pipeline: Pipeline, extract: str) -> None:
    """Puts the ZIP of an extract into the inbox."""
    shutil.copy(zip_of(pipeline, extract), pipeline.directory / "inbox")


def offer(portal: StandInPortal, zip_file: Path) -> None:
    """Offers a ZIP, whole at once."""
    shutil.copy(zip_file, portal.directory / "new")
    (portal.directory / "new").rename(portal.directory / zip_file.name)


def check_access(page: Page) -> None:
    """Makes sure that axe-core has nothing to say, and that nothing is wider than the screen."""
    script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
    page.evaluate(script.read_text())
    violations = page.evaluate("axe.run().then(found => found.violations)")
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def button(page: Page, name: str) -> None:
    """Presses a button by keyboard."""
    found = page.get_by_role("button", name=name, exact=True)
    expect(found).to_be_visible()
    found.press("Enter")


def is_staged(server: Server) -> bool:
    """Whether the Update is."""
    runs = server.runs("stage_extract")
    return any(r["status"] == "SUCCESS" for r in runs if server.extract_of(r) == UPDATE)


def is_finished(server: Server) -> bool:
    """Whether no run publishes, or makes a report of what is published."""
    return all(run["status"] in ("SUCCESS", "CANCELED") for run in server.runs("publish_extract"))


def heading(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.locator("#now-title")).to_contain_text(text)


def test_a_full_is_watched_from_the_download_to_its_publication(
    browser: Browser, server: Server, pipeline: Pipeline, portal: StandInPortal
) -> None:
    address = f"{server.address}/kbo"
    zip_file = zip_of(pipeline, FULL)
    size = zip_file.stat().st_size
    said: list[tuple[float, dict[str, Any]]] = []
    shares: list[list[tuple[float, float]]] = [[], []]
    with (
        opened(browser, address, "watched", size=WIDE) as wide,
        opened(browser, address, "watched-phone", size=PHONE, color="dark") as phone,
    ):
        pages = (wide.page, phone.page)
        for page in pages:
            heading(page, "Nothing has been imported yet")
            check_access(page)
        portal.bytes_a_second = size / SLOW_SECONDS
        offer(portal, zip_file)
        wait_until(lambda: requests.get(f"{address}/status", timeout=60).ok, "the import")
        while not said or said[-1][1]["stage"] != "done":
            status = requests.get(f"{address}/status", timeout=60).json()
            said.append((time.monotonic(), status))
            for page, seen in zip(pages, shares, strict=True):
                if (share := page.evaluate(SHARE)) is not None:
                    seen.append((time.monotonic(), float(share)))
            if all(is_downloading(page) for page in pages):
                portal.bytes_a_second = size / QUICK_SECONDS
            wide.page.wait_for_timeout(250)
        for page in pages:
            heading(page, AT_REST)
            expect(page.locator("#past")).to_contain_text(FULL)
            check_access(page)
    assert portal.bytes_a_second == size / QUICK_SECONDS, "no page has shown the download"
    portal.bytes_a_second = math.inf
    began, ended = said[0][0], said[-1][0]
    half = (began + ended) / 2
    left = [(at, s["seconds_left"]) for at, s in said if s["seconds_left"] is not None]
    at, seconds_left = min(left, key=lambda one: abs(one[0] - half))
    truth = ended - at
    print(f"{at - began:.1f} s after the start: {seconds_left:.1f} s left, in truth {truth:.1f} s")
    percentages = [status["overall"]["percentage"] for _, status in said]
    assert percentages == sorted(percentages) and percentages[-1] == 100
    for seen in shares:
        values = [share for _, share in seen]
        assert values == sorted(values)
        moved = [next(group) for _, group in itertools.groupby(seen, key=lambda one: one[1])]
        stops = itertools.pairwise([*moved, (ended, 100.0)])
        still, place = max((later - at, share) for (at, share), (later, _) in stops)
        print(f"stood still for {still:.1f} s at most, at {place} %; {len(moved)} shares")
        assert len(moved) >= 3  # it takes 8 to 30 s, and the page looks each 2 s
        assert not IS_MEASURED or still < 5
    assert not IS_MEASURED or abs(seconds_left / truth - 1) < 0.3


def is_downloading(page: Page) -> bool:
    """Whether the page shows how much of a ZIP is there."""
    shown = page.locator(".stages .now").all_inner_texts()
    return any(re.search(r"downloading [1-9]", text) for text in shown)


def test_failed_batches_say_why_and_are_retried_by_a_button(
    browser: Browser, server: Server, pipeline: Pipeline
) -> None:
    with opened(browser, f"{server.address}/kbo", "retried") as screen:
        page = screen.page
        server.stop_sensor("apply_when_staged")
        drop(pipeline, UPDATE)
        wait_until(lambda: is_staged(server), "staged")
        heading(page, UPDATE)
        staging_file = pipeline.directory / "staging" / f"{UPDATE}.duckdb"
        wait_until(staging_file.exists, "the staging file")
        sound = damage(staging_file, BAD)
        server.start_sensor("apply_when_staged")
        heading(page, re.compile(f"{UPDATE}.*failed"))
        for number in BAD:
            row = page.locator("#failed tr").filter(has_text=f"{UPDATE}-{number:04d}")
            expect(row).to_contain_text("activity: ")
            expect(row).to_contain_text("rows were staged")
            expect(row.get_by_role("link")).to_have_attribute(
                "href", f"/assets/activity?view=partitions&partition={UPDATE}-{number:04d}"
            )
        check_access(page)
        screen.picture("dashboard-failed", shown=True)
        sound.replace(staging_file)
        button(page, "Retry")
        expect(page.locator("#message")).to_contain_text(f"{UPDATE}: started 2 runs")
        heading(page, AT_REST)
        row = page.locator("#past tr").filter(has_text=UPDATE)
        expect(row).to_contain_text("after 1 failed run")
        check_access(page)


def test_an_import_is_cancelled_resumed_paused_and_undone(
    browser: Browser, server: Server, pipeline: Pipeline, size: tuple[int, int]
) -> None:
    wait_until(lambda: is_finished(server), "the end of the report")
    pipeline.kbo("rollback", UPDATE)
    with opened(browser, f"{server.address}/kbo", "cancelled", size=size) as screen:
        page = screen.page
        heading(page, "rolled back")
        check_access(page)
        button(page, "Pause all")
        expect(page.locator("#paused")).to_contain_text("Everything is paused")
        check_access(page)
        button(page, "Import again")
        expect(page.locator("#message")).to_contain_text("started 1 run of stage_extract")
        heading(page, "processing")
        button(page, "Cancel")
        expect(page.locator("#message")).to_contain_text(f"{UPDATE}: cancelled")
        heading(page, "cancelled")
        check_access(page)
        screen.picture(f"dashboard-cancelled-{size[0]}")
        button(page, "Resume all")
        expect(page.locator("#message")).to_contain_text("resumed")
        expect(page.locator("#paused")).to_have_count(0)
        heading(page, "cancelled")
        server.stop_sensor("publish_when_applied")  # so that the work is seen however quick it is
        button(page, "Resume")
        expect(page.locator("#message")).to_contain_text("started 1 run of stage_extract")
        expect(page.locator("#tables")).to_be_visible()
        picture_of_work(screen, size)
        server.start_sensor("publish_when_applied")
        heading(page, AT_REST)


def picture_of_work(screen: Screen, size: tuple[int, int]) -> None:
    """The page while batches are applied, or just were."""
    stages = screen.page.locator(".stages .now, .stages .past")
    expect(stages.filter(has_text="applying")).to_be_visible()
    expect(screen.page.locator("#tables progress").first).not_to_have_attribute("value", "0")
    expect(screen.page.locator("#alerts")).to_have_count(0)  # a cancelled run has not failed
    screen.picture("dashboard" if size == WIDE else "dashboard-phone", shown=True)


def test_read_only_shows_everything_but_buttons(browser: Browser, pipeline: Pipeline) -> None:
    other = Pipeline(pipeline.directory.with_name("read-only"), SETTINGS)
    with (
        running_server(other, "--read-only") as server,
        opened(browser, f"{server.address}/kbo", "read-only", size=PHONE, color="dark") as screen,
    ):
        heading(screen.page, "Nothing has been imported yet")
        expect(screen.page.get_by_text("read only: nothing can be started")).to_be_visible()
        expect(screen.page.get_by_role("button")).to_have_count(0)
        check_access(screen.page)
