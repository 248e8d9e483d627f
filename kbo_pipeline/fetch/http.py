"""Asking one web server: time limits, redirects, retries. Knows nothing of KBO or of files.

Cookies and form fields go to the server of the base address only, encrypted if that address is.
Every failure below leaves this module as a `PortalError`.
"""

import email.utils
import http.client
import io
import itertools
import math
import random
import socket
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import requests.adapters
import urllib3
import urllib3.connection

from kbo_pipeline.core.environment import is_this_machine
from kbo_pipeline.core.errors import PortalError, PortalRefusedError, SettingsError

T = TypeVar("T")
Report = Callable[[str], None]
"""Takes one line of progress."""

_MOST_REDIRECTS = 10
_MOST_PAGE_BYTES = 1 << 20  # a listing of a month is some 20 kB
_CHUNK = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
_SENDS_AGAIN = (307, 308)  # the form too, to where the redirect leads
_NEXT_STEPS = {
    401: "check KBO_USERNAME and KBO_PASSWORD",
    403: "sign in with a browser and see whether the account may read this",
    404: "check KBO_PORTAL_URL, or list again: an extract stays for about a month",
}
_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,  # of addresses that no parser takes
)
_NO_CONNECTION = (
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
)
_MOST_OVERHEAD = 1 << 16  # bytes that compressed data may be longer than what they come to
_MOST_CODINGS = 4  # each one more goes a level deeper
_GZIP, _ZLIB, _RAW = 31, 15, -15  # as zlib calls them


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for what. Times in seconds.

    Attributes:
        connect: for a connection.
        read: for the next byte.
        total: for a page or for the headers of a download, with the redirects on the way.
        slowest: bytes a second that a download brings at least, on average over each `window`.
        window: see `slowest`.
        attempts: how often a request is made at most, when the server fails or the line breaks.
        first_wait: before the second attempt, give or take a half.
        growth: each further wait is this many times longer.
        longest_retry_after: the longest `Retry-After` that is obeyed.
        lock_wait: for another process that fetches the same file.
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 120.0
    slowest: float = 10_000.0
    window: float = 60.0
    attempts: int = 5
    first_wait: float = 2.0
    growth: float = 3.0
    longest_retry_after: float = 900.0
    lock_wait: float = 3600.0


@dataclass(frozen=True, slots=True)
class Page:
    """A small answer, read whole.

    Attributes:
        url: where the redirects ended.
        trail: path and query of each address that was asked on the way there.
    """

    url: str
    trail: tuple[str, ...]
    status: int
    text: str

    @property
    def path(self) -> str:
        """Where the redirects ended, without the session ids that can stand in a path."""
        return _path(self.url)


class BrokenError(PortalError):
    """An attempt failed, another may succeed; `Web.retrying` lets none of these out.

    Attributes:
        is_unanswered: the request may have arrived, but what became of it is unknown.
    """

    def __init__(
        self, message: str, *, wait: float | None = None, is_unanswered: bool = False
    ) -> None:
        super().__init__(message, wait=wait)
        self.is_unanswered = is_unanswered


class Web:
    """A web server and the session with it. For one thread at a time."""

    def __init__(self, base_url: str, limits: Limits) -> None:
        """Connects to nothing yet.

        Raises:
            SettingsError: the address is none.
        """
        self.limits = limits
        self._until = math.inf
        self._base_url = base_url.rstrip("/")
        server = _server(self._base_url)
        if server is None:
            raise SettingsError("KBO_PORTAL_URL: expected an http or https address with a host")
        self.base_path = urlsplit(self._base_url).path
        self._session = _Session()
        self._session.trust_env = not is_this_machine(server[1])

    def url(self, path: str) -> str:
        """The address of a path below the base address."""
        return self._base_url + path

    @contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """Ends every request of this block after this many seconds; None: as the limits say.

        Of downloads, only the headers must be there by then.
        """
        before = self._until
        self._until = math.inf if seconds is None else time.monotonic() + seconds
        try:
            yield
        finally:
            self._until = before

    def forget_cookies(self) -> None:
        """Ends the session on our side."""
        self._session.cookies.clear()

    def close(self) -> None:
        """Drops the connections."""
        self._session.close()

    def post_form(self, url: str, fields: Mapping[str, str]) -> Page:
        """Posts a form and reads where it leads, whatever the status is there.

        401 is an answer here too. The form goes out again when the server failed or was not
        reached, but only once more when it may have arrived: what it does to an account adds up.

        Raises:
            PortalError: no such answer.
        """
        unanswered = 0

        def once() -> Page | str:
            nonlocal unanswered
            deadline = self._deadline()
            try:
                with self.opened(url, fields=fields, deadline=deadline, allowed=(401,)) as response:
                    if response.status_code in _REDIRECTS:
                        return self._redirect_target(response)
                    return self._page(response, deadline, ())
            except BrokenError as broken:
                unanswered += broken.is_unanswered
                if unanswered > 1:
                    raise PortalError(f"{broken}; try again later") from None
                raise

        answer = self.retrying(once)
        return answer if isinstance(answer, Page) else self.page(answer, allowed=range(400, 600))

    def page(self, url: str, *, allowed: Collection[int] = ()) -> Page:
        """Reads a page, following redirects on this server.

        Args:
            url: of the page.
            allowed: statuses from 400 on that are an answer, not an error.

        Raises:
            PortalError: no such answer.
        """

        def once() -> Page:
            deadline = self._deadline()
            trail: list[str] = []
            with self.opened(url, deadline=deadline, allowed=allowed, trail=trail) as response:
                return self._page(response, deadline, trail)

        return self.retrying(once)

    @contextmanager
    def opened(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        deadline: float | None = None,
        allowed: Collection[int] = (),
        trail: list[str] | None = None,
    ) -> Iterator[requests.Response]:
        """Yields one answer, the body unread. Redirects on this server are followed.

        Args:
            url: of what to get.
            headers: sent along.
            fields: a form to post instead; only redirects that ask for it again are followed.
            deadline: when the headers must be there, on the monotonic clock.
            allowed: statuses from 400 on that are an answer, not an error.
            trail: takes path and query of each address that is asked.

        Raises:
            BrokenError: another attempt may succeed.
            PortalError: the status is a refusal, or a redirect leads to another server.
        """
        deadline = self._deadline() if deadline is None else deadline
        followed = _REDIRECTS if fields is None else _SENDS_AGAIN
        for _ in range(_MOST_REDIRECTS):
            place = f"{'GET' if fields is None else 'POST'} {_path(url)}"
            if trail is not None:
                query = urlsplit(url).query
                trail.append(f"{_path(url)}?{query}" if query else _path(url))
            with self._answer(place, url, fields, headers, deadline) as response:
                status = response.status_code
                if status not in allowed:
                    _check_status(status, place, _retry_after(response))
                if status not in followed:
                    yield response
                    return
                url = self._redirect_target(response)
        raise PortalError(f"{place}: redirects endlessly; try again later")

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """The body as it comes in, inflated if it was compressed for the way.

        Raises:
            BrokenError: it breaks off, is damaged, or is slower than the limits allow.
        """
        place = f"GET {_path(response.url)}"
        codings = response.headers.get("Content-Encoding", "")
        try:
            yield from decoded(self._received(response, place), codings)
        except ValueError as error:
            raise BrokenError(f"{place}: {error}") from None

    def _received(self, response: requests.Response, place: str) -> Iterator[bytes]:
        since, received = time.monotonic(), 0
        while True:
            try:
                # read1 gives what is there, so that a trickle reaches the check below
                chunk = response.raw.read1(_CHUNK, decode_content=False)
            except _ERRORS as error:
                raise BrokenError(f"{place}: {_reason(error)}", is_unanswered=True) from None
            if not chunk:
                return
            received += len(chunk)
            elapsed = time.monotonic() - since
            if elapsed >= self.limits.window:
                if received < self.limits.slowest * elapsed:
                    raise BrokenError(f"{place}: only {received / elapsed:,.0f} bytes a second")
                since, received = time.monotonic(), 0
            yield chunk

    def retrying(self, action: Callable[[], T], report: Report | None = None) -> T:
        """Calls `action` until it gets through, with growing waits between.

        Args:
            action: raises `BrokenError` when another attempt may succeed.
            report: takes a line about each wait.

        Raises:
            PortalError: the attempts are used up, or the server asks for too long a wait.
        """
        wait = self.limits.first_wait
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return action()
            except BrokenError as broken:
                problem, asked = str(broken), broken.wait
            if asked is not None and asked > self.limits.longest_retry_after:
                until = datetime.now(UTC) + timedelta(seconds=min(asked, 1e9))
                raise PortalError(
                    f"{problem}; try again after {until:%Y-%m-%d %H:%M:%S} UTC", wait=asked
                )
            if attempt < self.limits.attempts:
                # Jitter, lest several of us come back together; but never before the server allows.
                pause = wait * random.uniform(0.5, 1.5) if asked is None else asked
                if time.monotonic() + pause >= self._until:
                    raise PortalError(f"{problem}; no time for another attempt", wait=asked)
                if report is not None:
                    report(f"{problem}; next attempt in {pause:.0f} s")
                time.sleep(pause)
                wait *= self.limits.growth
        raise PortalError(f"{problem}; {self.limits.attempts} attempts failed, try again later")

    def _deadline(self) -> float:
        return min(time.monotonic() + self.limits.total, self._until)

    def _answer(
        self,
        place: str,
        url: str,
        fields: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        deadline: float,
    ) -> requests.Response:
        token = _deadline.set(deadline)
        try:
            return self._session.request(
                "GET" if fields is None else "POST",
                url,
                data=fields,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(self.limits.connect, self.limits.read),
            )
        except _ERRORS as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise PortalRefusedError(
                    f"{place}: the server's certificate is not trusted; check the clock, the proxy"
                    " and the CA certificates of this machine"
                ) from None
            is_late = time.monotonic() >= deadline
            problem = "no whole answer in time" if is_late else _reason(error)
            raise BrokenError(f"{place}: {problem}", is_unanswered=not _is_unsent(error)) from None
        finally:
            _deadline.reset(token)

    def _page(self, response: requests.Response, deadline: float, trail: Iterable[str]) -> Page:
        body = bytearray()
        for chunk in self.chunks(response):
            body += chunk
            if len(body) > _MOST_PAGE_BYTES:
                break  # a download, say; what a page is can be told from its start
            if time.monotonic() > deadline:
                raise BrokenError(f"GET {_path(response.url)}: no whole answer in time")
        text = body.decode("utf-8", errors="replace")
        return Page(response.url, tuple(trail), response.status_code, text)

    def _redirect_target(self, response: requests.Response) -> str:
        try:
            url = urljoin(response.url, response.headers.get("Location", ""))
        except ValueError:
            url = ""
        target = same_server(self._base_url, url)
        if target is None:
            server = _server(url)
            shown = "no server" if server is None else f"{server[0]}://{server[1]}:{server[2]}"
            raise PortalRefusedError(
                f"{_path(response.url)} redirects to {shown}, where no account of KBO's portal"
                " belongs; check KBO_PORTAL_URL"
            )
        return target


def same_server(base_url: str, url: str) -> str | None:
    """The address as it is asked, if it is on the server of `base_url`; None if it is not.

    What is behind a proxy that ends TLS writes `http://` before its own name. That becomes `https`
    where the base address is, on its port: nothing is sent that others could read.
    """
    base, server = _server(base_url), _server(url)
    if base is None or server is None:
        return None
    is_behind_proxy = (server[0], base[0]) == ("http", "https") and server[1] == base[1]
    if server != base and not is_behind_proxy:
        return None
    own, parts = urlsplit(base_url), urlsplit(url)
    return urlunsplit((own.scheme, own.netloc, parts.path or "/", parts.query, ""))


def _check_status(status: int, place: str, retry_after: float | None) -> None:
    if status < 400:
        return
    if status == 429 or status >= 500:
        wait = retry_after if status in (429, 503) else None
        raise BrokenError(f"{place}: answers {status}", wait=wait)
    step = _NEXT_STEPS.get(status, "check KBO_PORTAL_URL")
    raise PortalRefusedError(f"{place}: answers {status}; {step}")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, in either form that RFC 9110 allows."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        until = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, until - time.time())


def _server(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _path(url: str) -> str:
    """The path alone: queries and `;jsessionid=...` can hold secrets."""
    return urlsplit(url).path.split(";")[0] or "/"


def _is_unsent(error: BaseException) -> bool:
    """Whether the request certainly never left: there was no connection."""
    return any(isinstance(e, _NO_CONNECTION) for e in _chain(error))


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words and without addresses."""
    chain = _chain(error)
    for e in reversed(chain):
        if isinstance(e, OSError) and e.strerror:
            return e.strerror
    if _is_unsent(error):
        return "no connection in time"
    if any(isinstance(e, (TimeoutError, urllib3.exceptions.TimeoutError)) for e in chain):
        return "no answer in time"
    return "the connection broke"


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


_deadline: ContextVar[float] = ContextVar("_deadline", default=math.inf)
"""When the headers must be there that this thread waits for, on the monotonic clock."""


class _Timed(io.RawIOBase):
    """The bytes of a socket until the deadline: its own timeout starts again with each byte."""

    def __init__(self, stream: io.RawIOBase, used: socket.socket) -> None:
        self._stream, self._socket = stream, used
        self._timeout = used.gettimeout() or math.inf
        self.deadline = _deadline.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if min(left, self._timeout) < math.inf:
            self._socket.settimeout(min(left, self._timeout))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._timed = _Timed(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        """Reads on after what only announces the answer (103): else each later answer is shifted.

        http.client reads on after 100 alone.
        """
        super().begin()
        while 100 <= self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]  # else it begins no more
            super().begin()
        self._timed.deadline = math.inf


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response


class _TLSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        self.headers.update({"User-Agent": "kbo_pipeline", "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(max_retries=0))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nothing: else `requests` reads the body of a redirect whole before giving it back."""


def decoded(chunks: Iterator[bytes], codings: str) -> Iterator[bytes]:
    """A body that was compressed for the way, in pieces of at most 256 KiB; some can be empty.

    Codings other than gzip and deflate are passed on as they are, and so is a body that is not
    compressed although its header says so.

    Args:
        chunks: the body as it comes in.
        codings: the header `Content-Encoding`.

    Raises:
        ValueError: the compressed data are damaged, or break off; or very many codings are named.
    """
    names = [name.strip().lower() for name in codings.split(",")]
    if len(names) > _MOST_CODINGS:
        raise ValueError(f"compressed {len(names)} times over")
    for coding in reversed(names):
        if coding in ("gzip", "x-gzip", "deflate"):
            chunks = _inflated(chunks, coding)
    return chunks


def _inflated(chunks: Iterator[bytes], coding: str) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 2:
            break
    form = _form(head, coding)
    if form is None:
        yield head
        yield from chunks
        return
    inflater = zlib.decompressobj(form)
    taken = given = 0
    for chunk in itertools.chain((head,), chunks):
        taken += len(chunk)
        rest, piece = chunk, b""
        while rest or len(piece) == _CHUNK:
            if inflater.eof:
                if form != _GZIP or not rest.startswith(b"\x1f\x8b"):
                    return  # browsers ignore what follows, too
                inflater = zlib.decompressobj(form)
            try:
                piece = inflater.decompress(rest, _CHUNK)
            except zlib.error:
                raise ValueError("damaged compressed data") from None
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            given += len(piece)
            yield piece
        if taken > given + _MOST_OVERHEAD:
            raise ValueError("compressed data that come to nothing")
    if not inflater.eof:
        raise ValueError("compressed data that break off")


def _form(head: bytes, coding: str) -> int | None:
    """The form of compressed data by their first two bytes; None when they are not compressed."""
    if coding != "deflate":
        return _GZIP if head[:2] == b"\x1f\x8b" else None
    if len(head) < 2:
        return None
    is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0  # RFC 1950, 2.2
    return _ZLIB if is_zlib else _RAW
