"""The stand-in portal on its bad days: what can go wrong, as values; and what it was asked."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from kbo_pipeline.fetch.http import Limits
from kbo_pipeline.sample.portal import (
    CHUNK,
    FILES,
    LIST,
    Answer,
    Handler,
    StandInPortal,
    head_of,
    login_page,
    page,
    redirect,
)


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


class FaultyPortal(StandInPortal):
    """The stand-in, to which faults can be added.

    Attributes:
        requests: all that were answered, in order.
        is_stopping: set when it ends, so that silences end too.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        self.requests: list[Request] = []
        self.is_stopping = threading.Event()
        self._faults: list[tuple[Fault, int | None]] = []
        self._faults_lock = threading.Lock()
        super().__init__(directory, **options)

    def __exit__(self, *error: object) -> None:
        self.is_stopping.set()
        super().__exit__(*error)

    def add_fault(self, fault: Fault) -> None:
        """Lets something go wrong; of several faults for a kind, the first goes first."""
        with self._faults_lock:
            self._faults.append((fault, fault.times))

    def clear_faults(self) -> None:
        """Lets everything go well again."""
        with self._faults_lock:
            self._faults.clear()

    def count(self, kind: Kind) -> int:
        """How many requests of a kind were answered."""
        return len(self.of_kind(kind))

    def of_kind(self, kind: Kind) -> list[Request]:
        """The requests of a kind, in order."""
        return [request for request in self.requests if request.kind is kind]

    def next_fault(self, kind: Kind) -> Fault | None:
        """Takes the fault that the next request of a kind meets."""
        with self._faults_lock:
            for index, (fault, left) in enumerate(self._faults):
                if fault.kind is kind and left != 0:
                    self._faults[index] = (fault, None if left is None else left - 1)
                    return fault
        return None


def instead_of_answer(fault: Fault) -> Answer | None:
    """What is answered without looking at the request; None when the fault strikes later."""
    match fault.effect:
        case Effect.LOGIN_PAGE:
            return login_page()
        case Effect.PAGE:
            return page(fault.body)
        case Effect.REDIRECT:
            return redirect(fault.location)
        case Effect.STATUS:
            answer = page(f"<h1>{fault.status}</h1>", fault.status)
            extra = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            return Answer(answer.status, {**answer.headers, **extra}, answer.body)
    return None


class FaultyHandler(Handler):
    """Sends answers as the faults let it."""

    def reply(self, form: Mapping[str, list[str]] | None) -> None:
        """Answers, with the fault that this request meets."""
        path = urlsplit(self.path).path
        kind = Kind.LIST if path == LIST else Kind.OTHER
        kind = Kind.DOWNLOAD if path.startswith(FILES) else kind
        kind = Kind.LOGIN if form is not None else kind
        fault = self._portal.next_fault(kind)
        if fault is not None and fault.effect is Effect.EXPIRE:
            self._portal.expire_sessions()
        answer = None if fault is None else instead_of_answer(fault)
        answer = self.answer_to(form) if answer is None else answer
        headers = {name.lower(): value for name, value in self.headers.items()}
        # Kept before it is sent: the client may look as soon as it has the answer.
        self._request = Request(kind, self.path, answer.status, headers)
        self._portal.requests.append(self._request)
        self._send(answer, fault)

    @property
    def _portal(self) -> FaultyPortal:
        return cast(FaultyPortal, self.hosting.portal)

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        """Sends head and body, as the fault lets it."""
        pause = 0.0
        with answer.open_body() as body:
            if fault is not None and fault.effect is Effect.LENGTH:
                length = int(answer.headers["Content-Length"]) + fault.off
                headers = {**answer.headers, "Content-Length": str(length)}
                answer = replace(answer, headers=headers)
            head = head_of(answer)
            if fault is not None and fault.effect in (Effect.CUT, Effect.SILENCE, Effect.TRICKLE):
                if fault.after is not None:
                    self.wfile.write(head)
                    head = b""
                    self._copy(body, fault.after)
                if fault.effect is Effect.CUT:
                    self.close_connection = True
                    with suppress(OSError):
                        self.connection.shutdown(SHUT_RDWR)
                    return
                pause = fault.seconds if fault.effect is Effect.TRICKLE else 0.0
                if fault.effect is Effect.SILENCE:
                    self._wait(fault.seconds)
            if fault is not None and fault.effect is Effect.LENGTH:
                self.close_connection = True  # what follows would be taken for the missing bytes
            self._write(head, pause)
            self._copy(body, None, pause)

    def _copy(self, body: BinaryIO, most: int | None, pause: float = 0.0) -> None:
        """Sends the next `most` bytes of the body, or all there are."""
        until = None if most is None else self._request.sent + most
        while chunk := body.read(
            CHUNK if until is None else min(CHUNK, until - self._request.sent)
        ):
            self._request.sent += len(chunk)
            self._write(chunk, pause)

    def _write(self, content: bytes, pause: float) -> None:
        if not pause:
            self.wfile.write(content)
            return
        for byte in content:
            self.wfile.write(bytes((byte,)))
            self._wait(pause)

    def _wait(self, seconds: float) -> None:
        if self._portal.is_stopping.wait(seconds):
            raise ConnectionAbortedError("the stand-in is stopping")


FaultyPortal.handler = FaultyHandler


SHORT = Limits(
    connect=5.0,
    read=10.0,
    total=20.0,
    slowest=1000.0,
    window=10.0,
    attempts=3,
    first_wait=0.01,
    growth=1.5,
    longest_retry_after=1.0,
    lock_wait=20.0,
)
