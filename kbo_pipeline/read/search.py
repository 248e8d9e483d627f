"""Finds current enterprises by name, place and activity. No Dagster."""

from dataclasses import dataclass
from datetime import date
from typing import Any

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.read import queries as sql
from kbo_pipeline.read.types import Match, PublishedExtract

_MOST = 2**31


@dataclass(frozen=True, slots=True)
class Criteria:
    """What an enterprise must have to be found; None asks for nothing.

    Attributes:
        text: words of a name.
        zipcode: of an address.
        nace: the first digits of a NACE code.
        nace_version: its version; None for the newest.
        status: KBO's code.
        limit: how many at most.
    """

    text: str
    zipcode: str | None
    nace: str | None
    nace_version: str | None
    status: str | None
    limit: int

    def __post_init__(self) -> None:
        for value in (self.text, self.zipcode, self.nace, self.nace_version, self.status):
            try:
                (value or "").encode()
            except UnicodeEncodeError:
                raise NotFoundError(
                    f"{str(value)[:40]!r}: a character that UTF-8 does not have; write it in a"
                    " UTF-8 locale (LC_ALL=C.UTF-8)"
                ) from None
        if self.limit > _MOST:
            raise NotFoundError(f"limit {self.limit}: ask for {_MOST:,} or less")


def find(database: Database, criteria: Criteria, newest: PublishedExtract) -> list[Match]:
    """Finds the enterprises that meet all criteria, the best matches first.

    Args:
        database: a published register.
        criteria: what to look for.
        newest: its newest published extract.

    Raises:
        NotFoundError: the criteria say nothing to look for.
    """
    plain = database.row(sql.PLAIN, text=criteria.text)
    words = tuple(str(plain[0]).split()) if plain else ()
    if not (words or criteria.zipcode or criteria.nace):
        raise NotFoundError("nothing to look for: name a text, a zipcode or a NACE code")
    if criteria.limit < 1:
        raise NotFoundError(f"limit {criteria.limit}: ask for 1 or more")
    values: dict[str, Any] = {"limit": criteria.limit}
    if words:
        values |= {"phrase": " ".join(words), **sql.bind("word", words)}
    values |= _values(database, criteria, newest)
    hits = database.execute(sql.find(len(words), values.keys()), **values).fetchall()
    numbers = [number for number, _, _ in hits]
    described: dict[str, tuple[str, str, str | None, str | None, str | None, date | None]] = {}
    for bound in sql.pieces("number", numbers):
        rows = database.execute(sql.described(len(bound)), **bound).fetchall()
        described |= {row[0]: row for row in rows}
    return [
        Match(*described[number], matched_number, matched_name)
        for number, matched_number, matched_name in hits
    ]


def check_known(database: Database, criteria: Criteria, newest: PublishedExtract) -> None:
    """Makes sure that the register has each value of some criteria, whatever else they ask for.

    Takes what `find` takes.

    Raises:
        NotFoundError: it has not; names the value.
    """
    values = _values(database, criteria, newest)
    for name, statement in sql.HAS.items():
        if name not in values:
            continue
        bound = {key: value for key, value in values.items() if f"${key}" in statement}
        if database.row(statement, **bound) is None:
            version = values.get("nace_version")
            reason = sql.HAS_NOT[name].format(version=f" {version}" if version else "")
            raise NotFoundError(f"{str(values[name])[:40]!r}: {reason} in the register")


def _values(database: Database, criteria: Criteria, newest: PublishedExtract) -> dict[str, Any]:
    """What is bound for the criteria but the text."""
    values: dict[str, Any] = {}
    if criteria.zipcode:
        values["zipcode"] = criteria.zipcode
    if criteria.nace:
        version = criteria.nace_version or database.row(sql.NEWEST_NACE, at=newest.number)
        values |= {
            "nace": criteria.nace.replace(".", ""),
            "nace_version": version[0] if isinstance(version, tuple) else version,
        }
    if criteria.status:
        values["status"] = criteria.status
    return values
