"""Texts for people: in one line, shortened, safe on a terminal; numbers, sizes, durations. No I/O.

Texts of others are shown, never obeyed: `sanitize` what comes from KBO or from a file's name.
"""

import unicodedata
from collections.abc import Iterable
from datetime import datetime

_BLANKS = {ord(blank): " " for blank in "\t\n\v\f\r\x85\u2028\u2029"}
_JOINERS = "\u200c\u200d"  # parts of words and of emoji


def sanitize(text: object) -> str:
    """A text in one line, whose control and formatting characters are shown as escapes.

    Blanks of any kind become blanks. What is left cannot move the cursor, change colours, or turn
    the direction in which the rest of the line is read.
    """
    return "".join(
        escape(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in _JOINERS else c
        for c in str(text).translate(_BLANKS)
    )


def printable(text: str) -> str:
    """A text in one line that any terminal and any file system takes, whatever is in it."""
    line = one_line(text) if "\n" in text or "\r" in text else text
    return "".join(c if c.isprintable() else escape(c) for c in line)


def escape(text: str) -> str:
    """A text in ASCII, with an escape for each other character."""
    return text.encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """A text without line breaks and repeated blanks."""
    return " ".join(str(text).split())


def first_line(text: object) -> str:
    """The first line of a text or of what an error says; libraries append hints and SQL."""
    return str(text).strip().split("\n", 1)[0]


def cut(text: str, longest: int) -> str:
    """A text of at most so many characters; the last of them says that there was more."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """So many of what the noun names: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def listed(names: Iterable[object], most: int) -> str:
    """The first names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f", and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def duration(seconds: float) -> str:
    """A duration as people say it: `40 s`, `2 min`, `1 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """The local time of seconds since the epoch: `2025-10-11 09:30`."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def megabytes(length: float, digits: int = 0) -> str:
    """A number of bytes in units of 1,000,000."""
    return f"{length / 1e6:,.{digits}f} MB"
