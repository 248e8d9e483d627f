"""The pages of `kbo serve` as people read them, wide, on a phone, on paper: `make test-browser`."""

import importlib.resources
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from kbo_pipeline_tests.support.bakery import BAKER, make_bakery
from kbo_pipeline_tests.support.browser import opened
from kbo_pipeline_tests.support.web import Web, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with serving(make_bakery(tmp_path_factory.mktemp("bakery"))) as web:
        yield web


def check(page: Page) -> None:
    """Makes sure that axe-core has nothing to say, and that nothing is wider than the screen."""
    script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
    page.evaluate(script.read_text())
    violations = page.evaluate("axe.run().then(found => found.violations)")
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    ("name", "size", "color"),
    [("reading", (1280, 900), "light"), ("reading-phone", (390, 844), "dark")],
)
def test_from_a_word_to_an_enterprise_and_what_it_was(
    browser: Browser,
    web: Web,
    name: str,
    size: tuple[int, int],
    color: Literal["light", "dark"],
) -> None:
    messages: list[str] = []
    with opened(browser, f"{web.address}/kbo", name, size=size, color=color) as screen:
        page = screen.page
        page.on("console", lambda message: messages.append(message.text))
        check(page)
        page.get_by_label("Name or enterprise number").fill("gouden korst")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Search")
        check(page)
        page.get_by_role("link", name=BAKER).click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Bakkerij Hemels")
        check(page)
        screen.picture(name)
        page.get_by_role("link", name="fr", exact=True).click()
        expect(page.get_by_role("heading", name="Historique")).to_be_visible()
        page.locator(".timeline a").first.click()
        expect(page.locator(".note")).to_contain_text("État à 0141-update")
        page.get_by_role("link", name="Lien permanent vers cet état").click()
        expect(page).to_have_url(f"{web.address}/kbo/enterprises/{BAKER}?at=141&lang=fr")
        page.emulate_media(media="print")
        expect(page.get_by_role("button")).to_be_hidden()
        expect(page.get_by_text("Source: KBO Open Data").first).to_be_visible()
    assert messages == []  # nothing that the policy of the page refuses
