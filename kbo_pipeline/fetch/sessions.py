"""Sessions on `requests` whose requests end in time. No redirects, no retries, no KBO.

The read timeout of a socket starts anew with each byte, so a server that sends a byte a second
keeps a reader waiting for ever. A `Watch` ends that: when its time is up, it cuts the connection.
"""

import http.client
import socket
import threading
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import requests
import requests.adapters
import urllib3
import urllib3.connection

ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,  # of addresses that no parser takes
)
"""All that `requests` and what is below it raise when an exchange fails."""


_NO_CONNECTION = (
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
)


class Watch:
    """Cuts the connection that a request of this thread uses, once its time is up.

    Attributes:
        is_over: the time was up.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(max(seconds, 0.0), self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "Watch":
        self._token = _watch.set(self)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _watch.reset(self._token)

    def take(self, used: socket.socket) -> None:
        """Remembers what to cut."""
        self._socket = used
        if self.is_over:
            self._cut()

    def _cut(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                # Not SSLSocket.shutdown, which takes the TLS state away under the reader.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_watch: ContextVar[Watch | None] = ContextVar("_watch", default=None)


class Session(requests.Session):
    """A session that follows no redirect and lets a `Watch` cut its connections."""

    def __init__(self) -> None:
        super().__init__()
        adapter = _Adapter(max_retries=0)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nothing: else `requests` reads the body of a redirect whole before giving it back."""


def is_unsent(error: BaseException) -> bool:
    """Tells whether the request certainly never left: there was no connection."""
    return any(isinstance(e, _NO_CONNECTION) for e in _chain(error))


def reason(error: BaseException) -> str:
    """What went wrong, in a few words and without addresses."""
    chain = _chain(error)
    for e in reversed(chain):
        if isinstance(e, OSError) and e.strerror:
            return e.strerror
    if is_unsent(error):
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


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        """Reads on after what only announces the answer (103): else each later answer is shifted.

        http.client reads on after 100 alone. The `Watch` of the request ends it, should no answer
        follow.
        """
        super().begin()
        while 100 <= self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]  # else it begins no more
            super().begin()


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)
        _take(self)


class _TLSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)
        _take(self)


def _take(connection: urllib3.connection.HTTPConnection) -> None:
    watch = _watch.get()
    if watch is not None and connection.sock is not None:
        watch.take(connection.sock)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        _use_our_pools(manager)
        return manager


def _use_our_pools(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
