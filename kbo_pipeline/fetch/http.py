"""Asking one web server: time limits, redirects, retries. Knows nothing of KBO or of files.

Cookies and form fields go to the server that the base address names and to no other, and encrypted
if that address is. Whatever goes wrong below leaves this module as a `PortalError`.
"""

import email.utils
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests

from kbo_pipeline.core.errors import PortalError, PortalRefusedError, SettingsError
from kbo_pipeline.core.settings import is_own
from kbo_pipeline.fetch.content_coding import decoded
from kbo_pipeline.fetch.limits import Limits
from kbo_pipeline.fetch.sessions import ERRORS, Session, Watch, is_unsent, reason

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


@dataclass(frozen=True, slots=True)
class Page:
    """A small answer, read whole.

    Attributes:
        url: where the redirects ended.
        trail: path and query of each address that was asked on the way there.
        status: the HTTP status.
        text: the body.
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

        Args:
            base_url: what all paths are relative to.
            limits: for everything asked through this object.

        Raises:
            SettingsError: the address is none.
        """
        self.limits = limits
        self._until = math.inf
        self._base_url = base_url.rstrip("/")
        self._server = _server(self._base_url)
        if self._server is None:
            raise SettingsError("KBO_PORTAL_URL: expected an http or https address with a host")
        self.base_path = urlsplit(self._base_url).path
        self._session = Session()
        self._session.headers.update({"User-Agent": "kbo_pipeline", "Accept-Encoding": "identity"})
        self._session.trust_env = not is_own(self._server[1])

    def url(self, path: str) -> str:
        """The address of a path below the base address."""
        return self._base_url + path

    @contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """Everything asked in this block ends in so many seconds, whatever the limits allow.

        Downloads excepted: only their headers must be there by then.

        Args:
            seconds: None for as long as the limits allow.
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
            deadline, address = self._deadline(), url
            try:
                for _ in range(_MOST_REDIRECTS):
                    with self._asked(
                        "POST", address, deadline, fields=fields, allowed=(401,)
                    ) as response:
                        if response.status_code not in _REDIRECTS:
                            return self._page(response, deadline, ())
                        address = self._redirect_target(response)
                        if response.status_code not in _SENDS_AGAIN:
                            return address
                raise PortalError(f"POST {_path(url)}: redirects without end; try again later")
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
        deadline: float | None = None,
        allowed: Collection[int] = (),
        trail: list[str] | None = None,
    ) -> Iterator[requests.Response]:
        """Yields one answer, redirects on this server followed, the body unread.

        Args:
            url: of what to get.
            headers: sent along.
            deadline: when the headers must be there, on the monotonic clock.
            allowed: statuses from 400 on that are an answer, not an error.
            trail: takes path and query of each address that is asked.

        Raises:
            BrokenError: another attempt may succeed.
            PortalError: the status is a refusal, or a redirect leads to another server.
        """
        deadline = self._deadline() if deadline is None else deadline
        for _ in range(_MOST_REDIRECTS):
            if trail is not None:
                parts = urlsplit(url)
                trail.append(f"{_path(url)}?{parts.query}" if parts.query else _path(url))
            with self._asked("GET", url, deadline, headers=headers, allowed=allowed) as response:
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                url = self._redirect_target(response)
        raise PortalError(f"GET {_path(url)}: redirects without end; try again later")

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
        """The body as it comes in, as it was sent."""
        since, received = time.monotonic(), 0
        while True:
            try:
                # read1 gives what is there, so that a trickle reaches the check below
                chunk = response.raw.read1(_CHUNK, decode_content=False)
            except ERRORS as error:
                raise BrokenError(f"{place}: {reason(error)}", is_unanswered=True) from None
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
            report: is told of each wait.

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

    @contextmanager
    def _asked(
        self,
        method: str,
        url: str,
        deadline: float,
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: Collection[int] = (),
    ) -> Iterator[requests.Response]:
        place = f"{method} {_path(url)}"
        watch = Watch(deadline - time.monotonic())
        try:
            with watch:
                response = self._session.request(
                    method,
                    url,
                    data=fields,
                    headers=headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=(self.limits.connect, self.limits.read),
                )
        except ERRORS as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise PortalRefusedError(
                    f"{place}: the server's certificate is not trusted; check the clock, the proxy"
                    " and the CA certificates of this machine"
                ) from None
            problem = "no whole answer in time" if watch.is_over else reason(error)
            raise BrokenError(f"{place}: {problem}", is_unanswered=not is_unsent(error)) from None
        with response:
            if response.status_code not in allowed:
                _check_status(response.status_code, place, _retry_after(response))
            yield response

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
        found = same_server(self._base_url, url)
        if found is None:
            server = _server(url)
            shown = "no server" if server is None else f"{server[0]}://{server[1]}:{server[2]}"
            raise PortalRefusedError(
                f"{_path(response.url)} redirects to {shown}, where no account of KBO's portal"
                " belongs; check KBO_PORTAL_URL"
            )
        return found


def same_server(base_url: str, url: str) -> str | None:
    """The address as it is asked, if it is on the server of another; None if it is not.

    What is behind a proxy that ends TLS writes `http://` before its own name. That becomes `https`
    where the base address is, on its port: nothing is sent that others could read.

    Args:
        base_url: an address on the server.
        url: the address.
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
