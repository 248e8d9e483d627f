"""What can go wrong at the stand-in portal, as values; and what it remembers of requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a request asks for."""

    LOGIN = "login"
    LIST = "list"
    DOWNLOAD = "download"
    OTHER = "other"


class Effect(StrEnum):
    """What goes wrong with a request; the attributes of `Fault` say how much."""

    LOGIN_PAGE = "login page"
    """Status 200 and the login page, whatever was asked."""
    PAGE = "page"
    """Status 200 and `body` as HTML."""
    EXPIRE = "expire"
    """All sessions end just before the request."""
    STATUS = "status"
    """`status`, with `retry_after` if that is set."""
    CUT = "cut"
    """The connection ends after `after` bytes of the body; before all of it when that is None."""
    LENGTH = "length"
    """Content-Length is `off` more than what there is."""
    SILENCE = "silence"
    """Nothing for `seconds`, after `after` bytes of the body; before anything when None."""
    TRICKLE = "trickle"
    """A byte each `seconds`, after `after` bytes of the body; from the status line on when None."""
    REDIRECT = "redirect"
    """Status 302 to `location`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with requests of a kind; see `Effect`.

    Attributes:
        kind: which requests.
        effect: what goes wrong.
        times: how often; None: always.
        status, retry_after, body, location, after, off, seconds: see `Effect`.
    """

    kind: Kind
    effect: Effect
    times: int | None = 1
    status: int = 500
    retry_after: str | None = None
    body: str = ""
    location: str = ""
    after: int | None = None
    off: int = 0
    seconds: float = 1.0


@dataclass(slots=True)
class Request:
    """A request as it is answered. Forms are not kept: they hold passwords.

    Attributes:
        kind: what it asked for.
        path: with the query.
        status: of the answer.
        headers: what the client sent, names in lower case.
        sent: bytes of the body that went out so far.
    """

    kind: Kind
    path: str
    status: int
    headers: Mapping[str, str]
    sent: int = 0
