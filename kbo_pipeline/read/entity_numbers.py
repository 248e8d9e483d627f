"""Numbers of enterprises, establishment units and branches, as people write them. No I/O."""

import re

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.core.tables import TABLES, Table

_LABEL = r"(?:BTW|TVA|VAT|MWST|UST|KBO|BCE|ZDU|CBE|RPR|RPM|RJP|NR|NO|N°|N\.)"
_AROUND = re.compile(
    # what stands before a number on an invoice, and the court after it
    rf"(?:{_LABEL}[\s.:°\-]*)*(?P<number>\S.*?)(?:[\s,;(]+(?:RPR|RPM|RJP)\b\D*)?",
    re.IGNORECASE | re.DOTALL,
)
_BETWEEN = re.compile(r"[\s.\-/]+")
_NUMBER = re.compile(r"(BE)?([0-9]{9,10})", re.ASCII)
_DOTS = (
    (re.compile(r"([01]...)(...)(...)"), r"\1.\2.\3"),
    (re.compile(r"(.)(...)(...)(...)"), r"\1.\2.\3.\4"),
)


_LONGEST = 200
"""Characters that are looked at of a text."""


def dotted(text: str | int) -> str:
    """The number as KBO writes it, whichever of the usual ways it is written in.

    Args:
        text: with or without dots, blanks and `BE`; a zero in front may be missing; with `BTW`,
            `TVA` and the like before it, or `RPR Gent` after it, as on an invoice.

    Raises:
        NotFoundError: it is no such number.
    """
    text = str(text)
    inner = _AROUND.fullmatch(text.strip()[:_LONGEST])
    match = _NUMBER.fullmatch(_BETWEEN.sub("", inner["number"]).upper()) if inner else None
    if match is not None:
        digits = match[2].rjust(10, "0")
        for shape, dots in _DOTS:
            found = shape.sub(dots, digits)
            if any(re.fullmatch(t.columns[0].usual_number, found) for t in _NUMBERED):
                return found
    raise NotFoundError(
        f"{text[:40]!r} is no number of an enterprise, establishment unit or branch; expected one"
        " such as 0200.065.765, BE0200065765 or 2.000.000.339"
    )


def table_of(number: str) -> Table:
    """The table in which a dotted number is the key."""
    return next(table for table in _NUMBERED if number[0] in table.columns[0].number)


def right_check_digits(number: str) -> str | None:
    """The check digits that a dotted number should end with; None for branches, which have none."""
    digits = number.replace(".", "")
    return None if digits[0] == "9" else f"{97 - int(digits[:8]) % 97:02d}"


_NUMBERED = tuple(table for table in TABLES if table.unique_key)
