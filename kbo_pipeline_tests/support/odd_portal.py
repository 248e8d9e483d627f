"""A stand-in portal that writes and leads as others may, and a server that answers raw bytes."""

import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path

from kbo_pipeline.sample.portal import (
    BASE,
    LOGIN_PAGE,
    Answer,
    page,
)
from kbo_pipeline_tests.support.faulty_portal import FaultyPortal

NAME = "KboOpenData_0141_2025_05_23_Update.zip"

LANDINGS = [
    "/",
    "/index",
    "/affiliation/",
    "/affiliation/xml/?files",
    "/signup?form",
    "/signup?form=&lang=nl",
    "/home;jsessionid=1A2B?continue",
    "/with-a-login-form-in-its-header",
    "/broken",
    "/nowhere",
    "/login",
    "",
]
"""Where a login leads, below the base; nothing: nowhere, the page comes at once."""

LINKS: dict[str, str] = {
    "relative": '<a href="files/{name}">',
    "session id": "<a href='./files/{name};jsessionid=1A2B3C4D'>",
    "rooted, unquoted": "<A CLASS=x HREF=" + BASE + "/affiliation/xml/files/{name} TARGET=_blank>",
    "absolute, fragment": '<a href="{url}/affiliation/xml/files/{name}#top">',
    "query, blanks": '<a href=" \n files/{name}?lang=nl&amp;x=1 ">',
    "percent-encoded": '<a href="files/{encoded}">',
    "entities": "<a href=&quot; href='files&#47;{name}'><a href='files&#x2F;{name}'>",
    "base": '<base target="_top" href="../"><base href="/x/"><a href="xml/files/{name}">',
    "another directory": "<a href = '../../downloads/{name}' >",
    "no scheme": "<a href='//{host}" + BASE + "/affiliation/xml/files/{name}'>",
    "back-slashes": r"<a href='..\xml\files\{name}'>",
    "several lines, area": '<area\n\tshape="rect"\n\thref\n=\n"files/{name}"\n/>',
}
"""Ways to write a link that browsers follow."""

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda body: body,
    "gzip": gzip.compress,
    "x-gzip": lambda body: gzip.compress(body[:7]) + gzip.compress(body[7:]),
    "deflate": zlib.compress,
    "Deflate": lambda body: zlib.compress(body, wbits=-15),
    "deflate, gzip": lambda body: gzip.compress(zlib.compress(body)),
    "identity": lambda body: body,
    "GZIP": lambda body: body,  # as it says, but is not
    "none": lambda body: body,
}
"""How bodies are compressed for the way, by what the header says."""


class OddPortal(FaultyPortal):
    """Lands elsewhere, writes its links otherwise, compresses what it sends.

    Attributes:
        link: a way to write a link, one of `LINKS`.
        coding: one of `CODINGS`.
        header: of each page but a login page.
        needs_sign_up: the list is empty before the page to sign up was visited.
        refusing: what a wrong password brings; None: as the stand-in does it.
        is_behind_proxy: addresses are written with `http://`, although all is encrypted.
    """

    def __init__(
        self, directory: Path, *, accounts: Mapping[str, str], context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(directory, accounts=accounts)
        self.link, self.coding, self.header = LINKS["relative"], "", ""
        self.needs_sign_up = False
        self.refusing: Answer | None = None
        self.is_behind_proxy = False
        self.says_again = 0  # with 307
        self._is_tls = context is not None
        self._has_signed_up = False
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def url(self) -> str:
        """The base address."""
        return super().url.replace("http:", "https:") if self._is_tls else super().url

    @property
    def written_url(self) -> str:
        """The base address as it is written in answers."""
        return f"http://127.0.0.1{BASE}" if self.is_behind_proxy else self.url

    def log_in(self, form: Mapping[str, list[str]]) -> Answer:
        """A login that leads where it should."""
        if self.says_again:
            self.says_again -= 1
            location = f"{self.written_url}/static/j_spring_security_check?again"
            return Answer(307, {"Location": location, "Content-Length": "0"})
        answer = super().log_in(form)
        if "Set-Cookie" not in answer.headers:
            return answer if self.refusing is None else self.refusing
        if not self.landing:
            home = self._page("Welkom")
            cookies = {"Set-Cookie": answer.headers["Set-Cookie"]}
            return self._sent(replace(home, headers={**home.headers, **cookies}))
        location = f"{self.written_url}{self.landing}"
        return replace(answer, headers={**answer.headers, "Location": location})

    def answer(self, path: str, session: tuple[str, ...], headers: Mapping[str, str]) -> Answer:
        """A GET, as other portals answer it."""
        path = path.partition(";")[0]
        pages = ("/", "/index", "/home", "/with-a-login-form-in-its-header")
        if path == f"{BASE}/broken":
            return page("oops", HTTPStatus.INTERNAL_SERVER_ERROR)
        if path.removeprefix(BASE) in pages and self._is_live(session):
            return self._sent(self._page(_LOGIN_FORM if "header" in path else "Welkom"))
        path = path.replace("/downloads/", "/affiliation/xml/files/")
        self._has_signed_up |= path == f"{BASE}/signup"
        if path == f"{BASE}/affiliation/xml/" and self._is_live(session):
            is_empty = self.needs_sign_up and not self._has_signed_up
            return self._sent(self._page("" if is_empty else self._links()))
        return self._sent(super().answer(path, session, headers))

    def _links(self) -> str:
        host = f"127.0.0.1:{self.port}"
        return "<hr>".join(
            self.link.format(
                name=name,
                url=self.written_url,
                host=host,
                encoded=name.replace("_", "%5F").replace("Kbo", "%4bb%6F"),
            )
            + "Update</a>"
            for name in self._files()
        )

    def _page(self, body: str) -> Answer:
        return page(f"{self.header}<h1>KBO Open Data</h1>{body}")

    def _sent(self, answer: Answer) -> Answer:
        """Compressed for the way."""
        if not self.coding:
            return answer
        with answer.open_body() as body:
            content = CODINGS[self.coding](body.read())
        headers = {**answer.headers, "Content-Length": str(len(content))}
        return Answer(answer.status, {**headers, "Content-Encoding": self.coding}, content)


_LOGIN_FORM = (
    "<form action='/x'><input name=j_username><input type=password name=j_password></form>"
)


def wrong_password_answers() -> dict[str, Answer]:
    """What a wrong password brings here and there."""

    def to(location: str) -> Answer:
        return Answer(HTTPStatus.FOUND, {"Location": location, "Content-Length": "0"})

    return {
        "to ?error": to(f"{LOGIN_PAGE}?error"),
        "to ?login_error=1": to(f"{LOGIN_PAGE};jsessionid=1A?login_error=1"),
        "to /loginFailed": to(f"{BASE}/loginFailed"),
        "to the login page": to(LOGIN_PAGE),
        "to the home page": to(f"{BASE}/"),
        "the login page": page(_LOGIN_FORM),
        "some page": page("No."),
        "401": page("No.", HTTPStatus.UNAUTHORIZED),
    }


@dataclass
class RawServer:
    """Answers each request with the next of some bytes, on connections that are kept.

    Attributes:
        answers: given a request, pieces of what goes out; an end closes the connection.
        requests: what came.
    """

    answers: Callable[[bytes], Iterator[bytes]]
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """The base address of a portal."""
        return f"http://127.0.0.1:{self.port}{BASE}"

    def serve(self, connection: socket.socket) -> None:
        """Answers what comes on one connection."""
        received = b""
        with connection, suppress(OSError):
            while chunk := connection.recv(65_536):
                received += chunk
                head, blank, body = received.partition(b"\r\n\r\n")
                if not blank:
                    continue
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                if len(body) < length:
                    continue
                self.requests.append(head)
                received = b""
                for piece in self.answers(head):
                    connection.sendall(piece)


@contextmanager
def raw_server(answers: Callable[[bytes], Iterator[bytes]]) -> Iterator[RawServer]:
    """Serves on a free port until the block ends."""
    server = RawServer(answers)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=server.serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
