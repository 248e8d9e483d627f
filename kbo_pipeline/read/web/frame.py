"""What stands around the application: who may ask, how long an address may be, what is counted."""

import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Collection
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kbo_pipeline.core import guard
from kbo_pipeline.core.text import cut, one_line
from kbo_pipeline.read.web.metrics import Requests
from kbo_pipeline.read.web.models import Problem, to_json

LONGEST_ADDRESS = 8000
"""Bytes of a path and its query."""

MAX_BODY_BYTES = 1_000_000
"""Of a request; one whose length is not announced is cut off there."""

_LONGEST_DETAIL = 500

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'",
}
"""Of all answers; a page has its own policy."""


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """The answer that says why there is no other."""
    title = HTTPStatus(status).phrase
    content = Problem("about:blank", title, status, cut(one_line(detail), _LONGEST_DETAIL))
    return Response(to_json(content), status, headers, "application/problem+json")


class Frame:
    """Counts requests, sets the headers of all answers, and refuses what is too long to read."""

    def __init__(self, app: ASGIApp, requests: Requests, keys: Collection[str]) -> None:
        """Stands around an application.

        Args:
            app: what answers.
            requests: where they are counted.
            keys: the hashes of the keys of which one is asked for; none where anybody may read.
        """
        self._app = app
        self._requests = requests
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at = time.monotonic()
        status = HTTPStatus.INTERNAL_SERVER_ERROR

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = HTTPStatus(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope)
        try:
            await (refused or self._app)(scope, receive, send_framed)
        finally:
            self._requests.count(scope, status, time.monotonic() - began_at)

    def _refusal(self, scope: Scope) -> Response | None:
        length = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if length > LONGEST_ADDRESS:
            detail = f"an address of {length:,} bytes; {LONGEST_ADDRESS:,} are read"
            return problem(HTTPStatus.REQUEST_URI_TOO_LONG, detail)
        headers = Headers(scope=scope)
        body = headers.get("content-length", "0")
        if not body.isdecimal() or int(body[:20]) > MAX_BODY_BYTES:
            detail = f"a body of {body[:20]} bytes; {MAX_BODY_BYTES:,} are read"
            return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
        if self._keys and not self._has_key(headers):
            detail = "a key is needed: Authorization: Bearer KEY; docs/http.md says more"
            asked = {"WWW-Authenticate": 'Bearer realm="kbo", Basic realm="kbo"'}
            return problem(HTTPStatus.UNAUTHORIZED, detail, asked)
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        key = text.strip().encode()
        if scheme.lower() == "basic":  # a browser asks for it; the name does not matter
            try:
                key = b64decode(key, validate=True).partition(b":")[2]
            except Base64Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        found = sha256(key).hexdigest().encode()
        # All of them, so that the time does not tell which one it was.
        return any([compare_digest(found, known) for known in self._keys])


class Guarded:
    """Refuses what other pages of a browser ask, as the guard of the web UI does."""

    def __init__(self, app: ASGIApp, names: Collection[str], origins: Collection[str]) -> None:
        """Stands in front of an application; takes what `guard.refusal` takes."""
        self._app = app
        self._names = names
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that is refused; hands on any other."""
        if scope["type"] == "http":
            host, port = scope.get("server") or ("", None)
            schemes = guard.own_names(host, port or 0, self._names)
            refused = guard.refusal(scope, schemes, origins=self._origins)
            if refused is not None:
                await problem(*refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)
