"""Texts fit for a terminal: those of others are shown, never obeyed. No I/O."""

import unicodedata

_BLANKS = {ord(blank): " " for blank in "\t\n\v\f\r\x85\u2028\u2029"}
_JOINERS = "\u200c\u200d"  # parts of words and of emoji


def sanitize(text: object) -> str:
    """A text in one line, whose control and formatting characters stand there as escapes.

    Blanks of any kind become blanks. What is left cannot move the cursor, change colours, or turn
    the direction in which the rest of the line is read.
    """
    return "".join(
        _escaped(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in _JOINERS else c
        for c in str(text).translate(_BLANKS)
    )


def counted(number: int, noun: str) -> str:
    """So many of what the noun names: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def in_words(seconds: float) -> str:
    """A duration as people say it: `40 s`, `2 min`, `1 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
