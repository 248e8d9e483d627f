"""What stands in a page, and what was compressed for the way: against Python's own, and in time."""

import gzip
import itertools
import random
import time
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

import pytest

from kbo_pipeline.fetch.http import decoded
from kbo_pipeline.fetch.pages import _start_tags, read_page

SOUND = [
    *(
        "<a href='f/1'>",
        "<A HREF=f/2>",
        "<area href = \"q\" href='r'>",
        "<a\thref='a&#47;b&amp;c'\n>",
    ),
    *("<!-- <a href=x> -->", "<!DOCTYPE html>", "<?xml?>", "text", "&amp;", "\n", "</a>", "<br/>"),
    *('<p class="a>b">', "<form action='x'>", "<input type=password>", '<base href="/z/">'),
    *("<script>if (a<b) '<a href=no>'</script>", "<style>a{}<b></style>", "< a href=no>", "<li>"),
]
PIECES = [
    *("<", "<!", "<![", "<!--", "-->", "]]>", "<a href=", "'", '"', ">", "</a>", "&#47;", "&", "/"),
    *("files/K.zip", " ", "\n", "<?", "if", "CDATA[", "=", "<script>", "</script", "\0", "é", "]"),
    *(
        "<base href='",
        "<!DOCTYPE",
        "&#99999999999;",
        "&#x0;",
        "\\",
        "http://[",
        "<title>",
        "</title>",
    ),
]


class Tags(HTMLParser):
    """What html.parser finds in a page that is written well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in reversed(attrs)}))


def test_well_written_pages_hold_what_html_parser_finds() -> None:
    rng = random.Random(2)
    for _ in range(1000):
        text = "".join(rng.choice(SOUND) for _ in range(rng.randrange(30)))
        assert list(_start_tags(text)) == Tags(text).found


def test_whatever_a_page_holds_it_is_read() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(40)))
        for link in read_page(text, "http://x/y/").links:
            assert isinstance(link, str)


@pytest.mark.parametrize(
    "piece", ["<", "<a ", "<a href='", "<!--", "</a ", "<a x", '<a x="', "<a ="]
)
def test_a_page_of_what_is_never_closed_takes_no_longer_than_another(piece: str) -> None:
    began = time.monotonic()
    assert read_page(piece * (200_000 // len(piece)), "http://x/").links == ()
    assert time.monotonic() - began < 5  # html.parser takes minutes for some


@pytest.mark.parametrize(
    ("written", "link"),
    [
        ("?a=1&lang=nl&amp;copy=2", "http://x/y/z?a=1&lang=nl&copy=2"),
        ("&quot;&#x41;&#66", 'http://x/y/"AB'),
        ("../up", "http://x/up"),
        ("//other/z", "http://other/z"),
        ("", "http://x/y/z"),
    ],
)
def test_links_are_resolved_and_references_read_as_in_browsers(written: str, link: str) -> None:
    assert read_page(f'<a href="{written}">', "http://x/y/z").links == (link,)


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-15)


@pytest.mark.parametrize(
    ("codings", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip, deflate", lambda body: zlib.compress(gzip.compress(body))),
        ("br", bytes),
        ("", bytes),
    ],
)
def test_what_was_compressed_comes_out_however_it_was_cut(
    codings: str, pack: Callable[[bytes], bytes]
) -> None:
    rng = random.Random(4)
    for size in (0, 1, 2, 3, 1000, 1 << 18, (1 << 18) + 1, 700_000):
        body = rng.randbytes(size // 2) + bytes(size - size // 2)
        sent = pack(body)
        for most in (1, 7, 65_536):
            if len(sent) // most > 5000:
                continue
            pieces = list(decoded(cut(sent, rng, most), codings))
            assert b"".join(pieces) == body
            assert all(len(piece) <= max(1 << 18, most) for piece in pieces)


def cut(content: bytes, rng: random.Random, most: int) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        length = rng.randint(1, most)
        yield content[at : at + length]
        at += length


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_breaks_off_or_is_damaged_is_told(coding: str) -> None:
    body = random.Random(5).randbytes(5000)
    sent = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    with pytest.raises(ValueError, match="break off"):
        list(decoded(iter([sent[:-9]]), coding))
    with pytest.raises(ValueError, match="damaged"):
        list(decoded(iter([sent[:100] + bytes(100) + sent[200:]]), coding))
    assert b"".join(decoded(iter([sent, b"\0and more"]), coding)) == body


def test_compressed_data_that_come_to_nothing_end() -> None:
    empty_block = b"\0\0\0\xff\xff"
    head = gzip.compress(b"")[:10]
    endless = itertools.chain([head], itertools.repeat(empty_block * 1000))
    with pytest.raises(ValueError, match="come to nothing"):
        list(decoded(endless, "gzip"))


def test_a_body_that_is_said_to_be_compressed_very_often_is_refused() -> None:
    body = iter([gzip.compress(b"page")])
    with pytest.raises(ValueError, match="compressed 10000 times over"):
        list(decoded(body, ",".join(["gzip"] * 10_000)))
    assert next(body)  # nothing was read
