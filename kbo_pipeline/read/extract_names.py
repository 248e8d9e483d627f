"""Published extracts as people name them: by key, by number, by the date of their data. No I/O."""

import datetime
import re
from collections.abc import Sequence

from kbo_pipeline.core.errors import ExtractError, NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.read.types import PublishedExtract

ExtractName = int | str | datetime.date
"""A number such as 141 or `141`, a key such as `0141-update`, or a date such as `2025-10-05`."""

_NUMBER = re.compile("[0-9]{1,9}")
_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


def named(extracts: Sequence[PublishedExtract], name: ExtractName) -> PublishedExtract:
    """The published extract that a name stands for; a date for the one whose data is of that day.

    Args:
        extracts: what is published, the newest first.
        name: the name.

    Raises:
        ExtractError: the text is no name of an extract.
        NotFoundError: it is not published, or two are of that day; says what is.
    """
    day = as_date(name)
    if day is not None:
        of_day = [extract for extract in extracts if extract.snapshot_date == day]
        if len(of_day) > 1:
            keys = " and ".join(extract.key for extract in reversed(of_day))
            raise NotFoundError(f"{name}: {keys} are of that day; name one of them")
        if of_day:
            return of_day[0]
        raise NotFoundError(f"{name}: no published extract is of that day; {_days(extracts)}")
    number, key = _number_or_key(name)
    found = next((extract for extract in extracts if extract.number == number), None)
    if found is None:
        raise NotFoundError(f"{name}: not among the published extracts; {_known(extracts)}")
    if key not in (None, found.key):
        raise NotFoundError(f"{name}: not among the published extracts; {found.key} is")
    return found


def state_at(extracts: Sequence[PublishedExtract], name: ExtractName) -> PublishedExtract:
    """The published extract that a state is of; for a date, of the end of that day.

    Takes and raises what `named` does, but that a day needs no extract of its own: it must lie
    within those of the published ones.
    """
    day = as_date(name)
    if day is None:
        return named(extracts, name)
    found = next((extract for extract in extracts if extract.snapshot_date <= day), None)
    if found is None or day > max(extract.snapshot_date for extract in extracts):
        raise NotFoundError(f"{name}: the state of that day is not known; {_days(extracts)}")
    return found


def as_date(name: ExtractName) -> datetime.date | None:
    """The date that a name is; None when it is another kind of name.

    Raises:
        ExtractError: it has the shape of a date, and is none.
    """
    if isinstance(name, datetime.datetime):
        return name.date()
    if isinstance(name, datetime.date):
        return name
    if not isinstance(name, str) or not _DATE.fullmatch(name):
        return None
    try:
        return datetime.date.fromisoformat(name)
    except ValueError:
        raise ExtractError(f"{name}: there is no such day") from None


def _number_or_key(name: int | str | datetime.date) -> tuple[int, str | None]:
    if isinstance(name, str) and not _NUMBER.fullmatch(name):
        try:
            key = ExtractKey.parse(name)
        except ExtractError as error:
            raise ExtractError(f"{error}, a number such as 141, or a date") from None
        return key.number, name
    if isinstance(name, int | str):
        return int(name), None
    raise ExtractError(f"{name!r} is no extract; expected a key such as 0141-update")


def _known(extracts: Sequence[PublishedExtract]) -> str:
    return f"{extracts[-1].key} to {extracts[0].key} are" if extracts else "nothing is yet"


def _days(extracts: Sequence[PublishedExtract]) -> str:
    if not extracts:
        return "nothing is published yet"
    days = [extract.snapshot_date for extract in extracts]
    return f"the published extracts are of {min(days)} to {max(days)}"
