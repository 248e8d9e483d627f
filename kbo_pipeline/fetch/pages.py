"""What a page says, read as browsers read it: its links, and whether it asks for a password.

Each character is looked at once, whatever the page holds: the time that html.parser takes grows
with the square of a page of unclosed tags (Python 3.11.7: 8 s for 20 kB), and it fails at some.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

_BLANKS = " \t\n\r\f"
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*+)", re.ASCII)
_BETWEEN = re.compile(r"[\s/]*+", re.ASCII)
_NAME = re.compile(r"=?[^\s/>=]*+", re.ASCII)
_EQUALS = re.compile(r"\s*+=\s*+", re.ASCII)
_BARE = re.compile(r"[^\s>]*+", re.ASCII)
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[a-zA-Z][a-zA-Z0-9]{1,40};)")
_WITHOUT_TAGS = {
    name: re.compile(f"</{name}(?=[\\s/>])", re.IGNORECASE | re.ASCII)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
}
"""Elements in which nothing is a tag, and how they end."""


@dataclass(frozen=True, slots=True)
class Content:
    """What stands in a page.

    Attributes:
        links: addresses, resolved against the page, in their order.
        is_login: it asks for a password.
    """

    links: tuple[str, ...]
    is_login: bool


def read_page(text: str, address: str) -> Content:
    """Reads a page of HTML, however badly it is written; `address` resolves its links."""
    links: list[str] = []
    base: str | None = None
    is_login = False
    for name, attributes in _start_tags(text):
        href = attributes.get("href")
        if name == "base" and href is not None and base is None:
            base = _resolved(address, href)
        elif name in ("a", "area") and href is not None:
            links.append(href)
        elif name in ("form", "input"):
            is_login |= "j_spring_security_check" in attributes.get("action", "")
            is_login |= attributes.get("name") == "j_password"
            is_login |= attributes.get("type", "").strip(_BLANKS).lower() == "password"
    resolved = (_resolved(base or address, link) for link in links)
    return Content(tuple(link for link in resolved if link is not None), is_login)


def _resolved(base: str, link: str) -> str | None:
    """The address that a link leads to; None when it is none."""
    try:
        return urljoin(base, link.strip(_BLANKS).replace("\\", "/"))
    except ValueError:
        return None


def _start_tags(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The tags that begin an element, with their attributes; names in lower case."""
    at = 0
    while (at := text.find("<", at)) >= 0:
        tag = _TAG.match(text, at)
        if tag is None:
            if text.startswith("<!--", at):
                at = _after(text, "-->", at + 2)  # `<!-->` is a whole one
            elif text.startswith(("<!", "<?", "</"), at):
                at = _after(text, ">", at)
            else:
                at += 1
            continue
        attributes: dict[str, str] = {}
        at = _read_attributes(text, tag.end(), attributes)
        if at < 0:
            return  # it is never closed, and so no tag
        name = tag[2].lower()
        if tag[1]:
            continue
        yield name, attributes
        if name in _WITHOUT_TAGS:
            end = _WITHOUT_TAGS[name].search(text, at)
            at = len(text) if end is None else end.start()


def _after(text: str, end: str, at: int) -> int:
    end_at = text.find(end, at)
    return len(text) if end_at < 0 else end_at + len(end)


def _read_attributes(text: str, at: int, attributes: dict[str, str]) -> int:
    """Fills the attributes of a tag; returns where it ends, or -1 when it does not."""
    while (at := _end(_BETWEEN, text, at)) < len(text):
        if text[at] == ">":
            return at + 1
        begin, at = at, _end(_NAME, text, at)
        name, value = text[begin:at].lower(), ""
        equals = _EQUALS.match(text, at)
        if equals is not None:
            at = equals.end()
            if (quote := text[at : at + 1]) in ('"', "'"):
                begin, at = at + 1, text.find(quote, at + 1) + 1
                if not at:
                    return -1
                value = text[begin : at - 1]
            else:
                begin, at = at, _end(_BARE, text, at)
                value = text[begin:at]
        # Of two attributes of one name the first counts.
        attributes.setdefault(name, _REFERENCE.sub(lambda match: html.unescape(match[0]), value))
    return -1


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
