"""What answers over HTTP consist of, made from the types of `read/types.py`."""

import datetime
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar

from pydantic import TypeAdapter

from kbo_pipeline.read.register import Publication, PublishedRegister
from kbo_pipeline.read.types import Enterprise, Event, PublishedExtract

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """What an answer comes from: name `line` where you show the data.

    Attributes:
        extract: the newest published extract.
        line: where the data is from, and of which day.
        proven_at: when the register was last found equal to KBO's Full; null for never.
    """

    extract: str
    snapshot_date: datetime.date
    line: str
    proven_at: datetime.datetime | None

    @classmethod
    def of(cls, register: PublishedRegister, publication: Publication) -> Self:
        """The source of all answers from a register."""
        newest = register.extracts[0]
        return cls(newest.key, newest.snapshot_date, newest.source, publication.proven_at)


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """An answer, and what it comes from."""

    source: Source
    data: T


@dataclass(frozen=True, slots=True, kw_only=True)
class EnterpriseShown(Enterprise):
    """An enterprise with all that belongs to it, as `kbo show --json` prints it.

    Attributes:
        vat_number: the number in the form of VAT numbers, even if it is none.
        source: the line to show with the data, of the extract whose state it is.
    """

    vat_number: str = field()
    source: str

    @staticmethod
    def values(enterprise: Enterprise) -> dict[str, Any]:
        """Its values by name, in the order of the fields."""
        values = {f.name: getattr(enterprise, f.name) for f in fields(Enterprise)}
        return values | {"vat_number": enterprise.vat_number, "source": enterprise.extract.source}


@dataclass(frozen=True, slots=True)
class Events:
    """Events of the feed in their order.

    Attributes:
        next: what `after` takes to go on behind them.
        has_more: whether there are more already; if not, ask again after the next extract.
    """

    events: tuple[Event, ...]
    next: str
    has_more: bool


@dataclass(frozen=True, slots=True)
class Published:
    """What is published.

    Attributes:
        extracts: the published extracts, the newest first.
        privacy: who is shown: `full`, or `legal-persons` alone.
        proven_extract_number: the last number at which the register was equal to KBO's Full.
        proven_at: when that was found.
    """

    extracts: tuple[PublishedExtract, ...]
    privacy: str
    proven_extract_number: int | None
    proven_at: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no answer (RFC 9457).

    Attributes:
        type: always `about:blank`: the status says it.
        title: of the status.
        detail: one line that names the thing and what to do.
    """

    type: str
    title: str
    status: int
    detail: str


def to_json(value: Any) -> bytes:
    """A value of these types, or made of such, as JSON."""
    return _ANY.dump_json(value)


_ANY: TypeAdapter[Any] = TypeAdapter(Any)
