"""A stand-in for the KBO portal on this machine: its addresses and its sessions.

`python -m kbo_pipeline.sample.portal DIR` serves the ZIPs of a directory.
"""

import email.utils
import html
import io
import math
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import click

from kbo_pipeline.core.extracts import ExtractKey, zips_in

BASE = "/kbo-open-data"
"""The path under which the portal lives."""
LOGIN = f"{BASE}/static/j_spring_security_check"
"""Where the login form goes."""
LOGIN_PAGE = f"{BASE}/login"
"""Where the form is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; its body is in memory, or a file from a byte on."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0

    def open_body(self) -> BinaryIO:
        """The body, from the byte that was asked for."""
        if self.file is None:
            return io.BytesIO(self.body)
        stream = self.file.open("rb")
        stream.seek(self.start)
        return stream


def login_page() -> Answer:
    """The portal's login page; status 200, as the portal does it."""
    return page(
        f'<form action="{LOGIN}" method="post"><input name="j_username">'
        '<input name="j_password" type="password"></form>'
    )


def page(body: str, status: int = HTTPStatus.OK) -> Answer:
    """A page of the portal."""
    content = f"<!DOCTYPE html>\n<html><body>{body}</body></html>\n".encode()
    headers = {"Content-Type": "text/html;charset=UTF-8", "Content-Length": str(len(content))}
    return Answer(status, headers, content)


def redirect(location: str) -> Answer:
    """Sends the client elsewhere."""
    return Answer(HTTPStatus.FOUND, {"Location": location, "Content-Length": "0"})


def head_of(answer: Answer) -> bytes:
    """The status line and the headers; a header with several values has one a line."""
    status = HTTPStatus(answer.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Server: stand-in"]
    lines += [
        f"{name}: {value}" for name, text in answer.headers.items() for value in text.split("\n")
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_INSIDE = f"{BASE}/affiliation/"
LIST = f"{BASE}/affiliation/xml/"
FILES = f"{BASE}/affiliation/xml/files/"
_COOKIES = ("JSESSIONID", "KSESSIONID-KBOPUB")
_MOST_FORM = 10_000  # bytes
CHUNK = 1 << 16
_LABELS = {
    "nl": {"full": "Volledig bestand", "update": "Bestand met wijzigingen"},
    "fr": {"full": "Fichier complet", "update": "Fichier des modifications"},
    "de": {"full": "Vollständige Datei", "update": "Änderungsdatei"},
    "en": {"full": "Full file", "update": "Update file"},
}


class StandInPortal:
    """The portal, in threads of this process, on 127.0.0.1 only. A context manager.

    Attributes:
        directory: its ZIPs with KBO names are offered; read anew for each request.
        quote: the quotes around links.
        extra_html: goes into the listing as it is.
        ranges: downloads can be continued.
        etags, dates: downloads have an ETag, a Last-Modified.
        landing: where a login leads, below the base.
        session_seconds: how long a session lives at most.
        bytes_a_second: how fast a download is at most; also of one that is under way.
    """

    handler: ClassVar[type["Handler"]]

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
            directory: of the ZIPs.
            port: 0 for any free one.
            accounts: passwords by username; one account, `demo` with password `demo`, when None.
            language: of the labels, one of nl, fr, de, en.
        """
        self.quote = '"'
        self.extra_html = ""
        self.ranges = True
        self.etags = True
        self.dates = True
        self.landing = "/affiliation/"
        self.session_seconds = 1800.0
        self.bytes_a_second = math.inf
        self.directory = directory
        self._accounts = {"demo": "demo"} if accounts is None else dict(accounts)
        self._labels = _LABELS[language]
        self._sessions: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        self._server = StandInServer(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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

    def expire_sessions(self) -> None:
        """Ends all sessions, as the portal may at any time."""
        with self._lock:
            self._sessions.clear()

    def answer(self, path: str, session: tuple[str, ...], headers: Mapping[str, str]) -> Answer:
        """The answer to a GET when nothing goes wrong."""
        is_signup = path.startswith(f"{BASE}/signup")
        if path == LOGIN_PAGE:
            return login_page()
        if not is_signup and not path.startswith(_INSIDE):
            return page("Niet gevonden", HTTPStatus.NOT_FOUND)
        if not self._is_live(session):
            return login_page() if path == LIST else redirect(LOGIN_PAGE)
        if is_signup:
            return page("<form>Welkom</form>")
        if path == LIST:
            return self._listing()
        if path.startswith(FILES):
            return self._file(unquote(path.removeprefix(FILES)), headers)
        return page("<h1>KBO Open Data</h1>")

    def log_in(self, form: Mapping[str, list[str]]) -> Answer:
        """The answer to a login form: cookies and a redirect inside, or back to the login."""
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
        return {file.name: key for key, file in zips_in(self.directory)}

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
        file = self.directory / name
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


class StandInServer(ThreadingHTTPServer):
    """The server of a portal."""

    daemon_threads = True
    block_on_close = False  # a silence may last longer than the test

    def __init__(self, port: int, portal: StandInPortal) -> None:
        self.portal = portal
        super().__init__(("127.0.0.1", port), portal.handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that leave early; anything else is printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers requests as the portal does."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes; else they wait for each other
    timeout = 60

    def do_GET(self) -> None:
        """Answers a page or a download."""
        self.reply(None)

    def do_POST(self) -> None:
        """Answers a login."""
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != LOGIN or not length.isdigit() or int(length) > _MOST_FORM:
            self.close_connection = True  # the body stays unread
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        self.reply(parse_qs(self.rfile.read(int(length)).decode("latin-1")))

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    @property
    def hosting(self) -> "StandInServer":
        """The server that this is a connection of."""
        return cast(StandInServer, self.server)

    def reply(self, form: Mapping[str, list[str]] | None) -> None:
        """Answers a form, or a GET for None."""
        answer = self.answer_to(form)
        with answer.open_body() as body:
            self.wfile.write(head_of(answer))
            while chunk := body.read(CHUNK):
                self.wfile.write(chunk)
                time.sleep(len(chunk) / self.hosting.portal.bytes_a_second)

    def answer_to(self, form: Mapping[str, list[str]] | None) -> Answer:
        """The answer to a form, or to a GET for None."""
        portal = self.hosting.portal
        if form is not None:
            return portal.log_in(form)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return portal.answer(urlsplit(self.path).path, self._session(), headers)

    def _session(self) -> tuple[str, ...]:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return ()
        return tuple(cookies[name].value for name in _COOKIES if name in cookies)


StandInPortal.handler = Handler


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
