"""A stand-in for the KBO portal on this machine: its addresses, its sessions, its bad days.

`python -m kbo_pipeline.sample.portal DIR` serves the ZIPs of a directory. Tests add faults to it.
"""

import email.utils
import html
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any, BinaryIO, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import click

from kbo_pipeline.extracts import ExtractKey, zips_in
from kbo_pipeline.sample.answers import (
    BASE,
    LOGIN,
    LOGIN_PAGE,
    Answer,
    head_of,
    instead_of_answer,
    login_page,
    page,
    redirect,
)
from kbo_pipeline.sample.faults import Effect, Fault, Kind, Request

__all__ = ["BASE", "Effect", "Fault", "Kind", "Request", "StandInPortal"]

_INSIDE = f"{BASE}/affiliation/"
_LIST = f"{BASE}/affiliation/xml/"
_FILES = f"{BASE}/affiliation/xml/files/"
_COOKIES = ("JSESSIONID", "KSESSIONID-KBOPUB")
_MOST_FORM = 10_000  # bytes
_CHUNK = 1 << 16
_LABELS = {
    "nl": {"full": "Volledig bestand", "update": "Bestand met wijzigingen"},
    "fr": {"full": "Fichier complet", "update": "Fichier des modifications"},
    "de": {"full": "Vollständige Datei", "update": "Änderungsdatei"},
    "en": {"full": "Full file", "update": "Update file"},
}


class StandInPortal:
    """The portal, in threads of this process, on 127.0.0.1 only. A context manager.

    Attributes:
        requests: all that were answered, in order.
        quote: the quotes around links.
        extra_html: goes into the listing as it is.
        ranges: downloads can be continued.
        etags, dates: downloads have an ETag, a Last-Modified.
        landing: where a login leads, below the base.
        session_seconds: how long a session lives at most.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        accounts: Mapping[str, str] | None = None,
        language: str = "nl",
    ) -> None:
        """Binds the port; serves from `with` on.

        Args:
            directory: its ZIPs with KBO names are offered; read anew for each request.
            port: 0 for any free one.
            accounts: passwords by username; one account, `demo` with password `demo`, when None.
            language: of the labels, one of nl, fr, de, en.
        """
        self.requests: list[Request] = []
        self.quote = '"'
        self.extra_html = ""
        self.ranges = True
        self.etags = True
        self.dates = True
        self.landing = "/affiliation/"
        self.session_seconds = 1800.0
        self._directory = directory
        self._accounts = {"demo": "demo"} if accounts is None else dict(accounts)
        self._labels = _LABELS[language]
        self._sessions: dict[tuple[str, ...], float] = {}
        self._faults: list[tuple[Fault, int | None]] = []
        self._lock = threading.Lock()
        self._server = _Server(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.is_stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The base address, as in `KBO_PORTAL_URL`."""
        return f"http://127.0.0.1:{self.port}{BASE}"

    def add_fault(self, fault: Fault) -> None:
        """Lets something go wrong; of several faults for a kind, the first goes first."""
        with self._lock:
            self._faults.append((fault, fault.times))

    def clear_faults(self) -> None:
        """Lets everything go well again."""
        with self._lock:
            self._faults.clear()

    def expire_sessions(self) -> None:
        """Ends all sessions, as the portal does when it likes."""
        with self._lock:
            self._sessions.clear()

    def count(self, kind: Kind) -> int:
        """How many requests of a kind were answered."""
        return len(self.of_kind(kind))

    def of_kind(self, kind: Kind) -> list[Request]:
        """The requests of a kind, in order."""
        return [request for request in self.requests if request.kind is kind]

    def next_fault(self, kind: Kind) -> Fault | None:
        """Takes the fault that the next request of a kind meets."""
        with self._lock:
            for index, (fault, left) in enumerate(self._faults):
                if fault.kind is kind and left != 0:
                    self._faults[index] = (fault, None if left is None else left - 1)
                    return fault
        return None

    def answer(self, path: str, session: tuple[str, ...], headers: Mapping[str, str]) -> Answer:
        """What a GET brings when nothing goes wrong."""
        if not path.startswith(_INSIDE):
            if path.startswith(f"{BASE}/signup"):
                return (
                    page("<form>Welkom</form>") if self._is_live(session) else redirect(LOGIN_PAGE)
                )
            known = path == LOGIN_PAGE
            return login_page() if known else page("Niet gevonden", HTTPStatus.NOT_FOUND)
        if not self._is_live(session):
            return login_page() if path == _LIST else redirect(LOGIN_PAGE)
        if path == _LIST:
            return self._listing()
        if path.startswith(_FILES):
            return self._file(unquote(path.removeprefix(_FILES)), headers)
        return page("<h1>KBO Open Data</h1>")

    def log_in(self, form: Mapping[str, list[str]]) -> Answer:
        """What a login form brings: new cookies and the way in, or the way back."""
        username, password = (form.get(name, [""])[0] for name in ("j_username", "j_password"))
        expected = self._accounts.get(username)
        if expected is None or not secrets.compare_digest(expected.encode(), password.encode()):
            return redirect(f"{LOGIN_PAGE}?error")
        session = (secrets.token_hex(16), secrets.token_hex(16))
        with self._lock:
            self._sessions[session] = time.monotonic() + self.session_seconds
        headers = dict(redirect(f"{BASE}{self.landing}").headers)
        headers["Set-Cookie"] = "\n".join(
            f"{name}={value}; Path={BASE}; HttpOnly"
            for name, value in zip(_COOKIES, session, strict=True)
        )
        return Answer(HTTPStatus.FOUND, headers)

    def _is_live(self, session: tuple[str, ...]) -> bool:
        with self._lock:
            return self._sessions.get(session, 0.0) > time.monotonic()

    def _files(self) -> dict[str, ExtractKey]:
        return {file.name: key for key, file in zips_in(self._directory)}

    def _listing(self) -> Answer:
        q = self.quote
        items = "\n".join(
            f"<li>{html.escape(self._labels[key.type])} <a href={q}files/{name}{q}>{name}</a></li>"
            for name, key in self._files().items()
        )
        return page(f"<h1>KBO Open Data</h1><ul>\n{items}\n{self.extra_html}</ul>")

    def _file(self, name: str, asked: Mapping[str, str]) -> Answer:
        if name not in self._files():
            return page("Niet gevonden", HTTPStatus.NOT_FOUND)
        file = self._directory / name
        state = file.stat()
        headers = {"Content-Type": "application/zip", "Content-Length": str(state.st_size)}
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        if self.etags:
            headers["ETag"] = f'"{state.st_mtime_ns:x}-{state.st_size:x}"'
        if self.dates:
            headers["Last-Modified"] = email.utils.formatdate(state.st_mtime, usegmt=True)
        start_text = asked.get("range", "").removeprefix("bytes=").removesuffix("-")
        valid = asked.get("if-range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
        if not (self.ranges and start_text.isdigit() and valid):
            return Answer(HTTPStatus.OK, headers, file=file)
        start = int(start_text)
        if start >= state.st_size:
            headers |= {"Content-Length": "0", "Content-Range": f"bytes */{state.st_size}"}
            return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
        headers["Content-Length"] = str(state.st_size - start)
        headers["Content-Range"] = f"bytes {start}-{state.st_size - 1}/{state.st_size}"
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, file=file, start=start)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a silence may last longer than the test

    def __init__(self, port: int, portal: StandInPortal) -> None:
        self.portal = portal
        self.is_stopping = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the day; anything else is told."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes; else they wait for each other
    timeout = 60

    def do_GET(self) -> None:
        """Answers a list, a download, or any other page."""
        path = urlsplit(self.path).path
        kind = Kind.LIST if path == _LIST else Kind.OTHER
        self._answer(Kind.DOWNLOAD if path.startswith(_FILES) else kind, {})

    def do_POST(self) -> None:
        """Answers a login."""
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != LOGIN or not length.isdigit() or int(length) > _MOST_FORM:
            self.close_connection = True  # the body stays unread
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        self._answer(Kind.LOGIN, parse_qs(self.rfile.read(int(length)).decode("latin-1")))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: `StandInPortal.requests` keeps what there is to know."""

    @property
    def _hosting(self) -> _Server:
        return cast(_Server, self.server)

    def _answer(self, kind: Kind, form: Mapping[str, list[str]]) -> None:
        portal = self._hosting.portal
        fault = portal.next_fault(kind)
        if fault is not None and fault.effect is Effect.EXPIRE:
            portal.expire_sessions()
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = None if fault is None else instead_of_answer(fault)
        if answer is None and kind is Kind.LOGIN:
            answer = portal.log_in(form)
        elif answer is None:
            answer = portal.answer(urlsplit(self.path).path, self._session(), headers)
        # Kept before it is sent: the client may look as soon as it has the answer.
        self._request = Request(kind, self.path, answer.status, headers)
        portal.requests.append(self._request)
        self._send(answer, fault)

    def _session(self) -> tuple[str, ...]:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return ()
        return tuple(cookies[name].value for name in _COOKIES if name in cookies)

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        """Sends head and body, as the fault lets it."""
        pause = 0.0
        with answer.open_body() as body:
            head = head_of(answer, fault)
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
            _CHUNK if until is None else min(_CHUNK, until - self._request.sent)
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
        if self._hosting.is_stopping.wait(seconds):
            raise ConnectionAbortedError("the stand-in is stopping")


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", default=0, show_default="any free one", help="On 127.0.0.1.")
@click.option("--username", default="demo", show_default=True, help="Of the only account.")
@click.option("--password", default="demo", show_default=True, help="Of that account.")
def main(directory: Path, port: int, username: str, password: str) -> None:
    """Serves the KBO ZIPs of DIRECTORY as the portal would, until Ctrl-C."""
    with StandInPortal(directory, port=port, accounts={username: password}) as portal:
        click.echo(f"KBO_PORTAL_URL={portal.url}")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
