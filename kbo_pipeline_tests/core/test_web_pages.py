"""The pages that people read: what they show, in which language, and that nothing in them acts."""

from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
import requests

from kbo_pipeline.read.web.words import _WORDS, READERS
from kbo_pipeline_tests.support.bakery import (
    BAKER,
    BRANCH,
    FOREIGN,
    LATE,
    MILL,
    PERSON,
    SHOP,
    make_bakery,
)
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.web import Web, serving


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + "\n" if data.strip() else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def links(self) -> list[str]:
        return [a["href"] or "" for a in self.all("a")]


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return make_bakery(tmp_path_factory.mktemp("bakery"))


@pytest.fixture(scope="module")
def web(bakery: Core) -> Iterator[Web]:
    with serving(bakery) as web:
        yield web


def page(web: Web, path: str, status: int = 200, language: str = "nl") -> Page:
    answer = web.get(path, headers={"Accept-Language": language})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept-Language"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    found = Page(answer.text)
    assert not found.all("script")
    assert not [tag for tag, attributes in found.tags if any(n[:2] == "on" for n in attributes)]
    assert not [tag for tag, attributes in found.tags if "style" in attributes]
    return found


def test_the_first_page_says_what_is_published(web: Web) -> None:
    found = page(web, "", language="en")
    assert "Newest state: 0142-update, 2025-05-23" in found.text
    assert "Source: KBO Open Data, FPS Economy; data of 2025-05-23 (0142-update)" in found.text
    assert found.all("form")[0]["action"] == "/kbo/search"
    for link in found.links:
        assert requests.get(web.address + link, timeout=60).status_code == 200


def test_a_search_leads_to_an_enterprise(web: Web) -> None:
    found = page(web, "search?q=gouden+korst")
    assert f"/kbo/enterprises/{BAKER}?lang=nl" in found.links
    assert "De Gouden Korst" in found.text
    assert {"name": "q", "type": "search", "value": "gouden korst", "maxlength": "200"} in (
        found.all("input")
    )
    assert "Niets gevonden." in page(web, "search?q=nobody").text
    assert "Niets gevonden." not in page(web, "search").text
    assert [link for link in page(web, "search?zipcode=1005").links if BAKER in link]
    shop = web.session.get(
        f"{web.address}/kbo/search?q=BE+{BAKER}&lang=fr", allow_redirects=False, timeout=60
    )
    assert (shop.status_code, shop.headers["location"]) == (
        303,
        f"/kbo/enterprises/{BAKER}?lang=fr",
    )


def test_an_enterprise_with_all_that_belongs_to_it(web: Web) -> None:
    found = page(web, f"enterprises/{BAKER}")
    for text in (
        "Bakkerij Hemels",
        BAKER,
        "BE0200065765",
        "Opening faillissement",
        "Boulangerie Céleste",
        "Koek & Zoon",
        "Weg 3, 9007 Leieland",
        "Kaai 1 box 2, 1005 Zavelbeke",
        "De Gouden Korst",
        SHOP,
        "02 055 01 99",
        "2001-02-03",
        "Source: KBO Open Data, FPS Economy; data of 2025-05-23",
    ):
        assert text in found.text, text
    assert "https://www.openstreetmap.org/search?query=Weg%203%2C%209007%20Leieland" in found.links
    assert f"/kbo/enterprises/{BAKER}?at=142&lang=nl" in found.links
    assert "Crumbs Belgique" in page(web, f"enterprises/{FOREIGN}?at=141").text
    assert BRANCH in page(web, f"enterprises/{FOREIGN}?at=141").text


def test_its_history_leads_to_what_it_was(web: Web) -> None:
    now = page(web, f"enterprises/{BAKER}")
    assert "?at=141&lang=nl" in now.links
    assert MILL in now.text
    before = page(web, f"enterprises/{BAKER}?at=140")
    assert "Toestand bij 0140-full" in before.text
    assert "Bakkerij Hemels" not in before.text
    assert "Normale toestand" in before.text
    assert page(web, f"enterprises/{LATE}?at=140", 404).all("p")[0]["role"] == "alert"


def test_hostile_texts_are_only_shown(web: Web) -> None:
    found = page(web, f"enterprises/{BAKER}")
    assert "[bold red]Bakker[/]" in found.text
    assert "\x1b" not in found.text and "\u202e" not in found.text
    for path in ("search?q=%3Cscript%3Ealert(1)%3C/script%3E", "search?q=%22%20onfocus%3D%22x"):
        page(web, path)
    page(web, "enterprises/%3Cscript%3Ealert(1)", 404)
    page(web, f"enterprises/{BAKER}?at=%3Cb%3E", 400)
    links = page(web, "search?q=%22%3E%3Cb%3E&zipcode=%26lang%3Dxx").links
    assert "/kbo/search?lang=fr&q=%22%3E%3Cb%3E&zipcode=%26lang%3Dxx" in links


@pytest.mark.parametrize(
    ("accepted", "asked", "language", "word"),
    [
        ("nl-BE,nl;q=0.9,en;q=0.5", "", "nl", "Vestigingseenheden"),
        ("fr-BE", "", "fr", "Unités d'établissement"),
        ("it, de-AT;q=0.7", "", "de", "Niederlassungseinheiten"),
        ("it", "", "en", "Establishment units"),
        ("", "", "en", "Establishment units"),
        ("nl", "?lang=fr", "fr", "Unités d'établissement"),
    ],
)
def test_the_words_are_those_of_the_reader(
    web: Web, accepted: str, asked: str, language: str, word: str
) -> None:
    found = page(web, f"enterprises/{BAKER}{asked}", language=accepted)
    assert found.all("html")[0]["lang"] == language
    assert word in found.text
    others = [link for link in found.links if "?lang=" in link and link.endswith(tuple(READERS))]
    assert len({link[-2:] for link in others}) >= 3


def test_each_word_is_in_all_languages() -> None:
    assert READERS == ("nl", "fr", "de", "en")
    for name, texts in _WORDS.items():
        assert len(texts) == len(READERS) and all(texts), name


def test_who_has_a_page_does_not_get_it_again(web: Web) -> None:
    path = f"enterprises/{PERSON}"
    first = web.get(path, headers={"Accept-Language": "nl"})
    tag = first.headers["etag"]
    for language, status in (("nl", 304), ("fr", 200)):
        again = web.get(path, headers={"Accept-Language": language, "If-None-Match": tag})
        assert again.status_code == status


def test_what_cannot_be_shown_is_said_on_a_page(web: Web) -> None:
    found = page(web, "enterprises/0403.449.823", 404)
    assert "0403.449.823: not in the register" in found.text
    assert found.all("form")
    assert "alert" not in page(web, "search?q=x").text
