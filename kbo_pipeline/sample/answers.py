"""Answers of the stand-in portal."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

BASE = "/kbo-open-data"
"""The path under which the portal lives."""
LOGIN = f"{BASE}/static/j_spring_security_check"
"""Where the login form goes."""
LOGIN_PAGE = f"{BASE}/login"
"""Where it stands."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; its body is in memory, or a file from some byte on."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0

    def open_body(self) -> BinaryIO:
        """The body, from where it is asked for."""
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
