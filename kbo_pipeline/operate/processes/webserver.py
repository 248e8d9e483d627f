"""The web server of `kbo start`: Dagster's own, behind a guard against other pages of a browser.

Besides what Dagster answers, it answers `/kbo` and what is below it.

`python -m kbo_pipeline.operate.processes.webserver --port PORT OPTION...` takes the options of
`dagster-webserver`, and listens on 127.0.0.1 unless `--host` says otherwise. A browser that can
reach it does so for any page that it shows: the guard asks each request where it comes from.
"""

import argparse
import logging
import sys
from collections.abc import Collection, Mapping
from typing import Any

import uvicorn
from dagster import DagsterInstance
from graphql import GraphQLError, OperationDefinitionNode, OperationType
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.processes.dashboard.routes import Answers
from kbo_pipeline.operate.processes.query_limits import (
    CostlyQueryError,
    limited_webserver,
    read_query,
)
from kbo_pipeline.operate.runtime import reached

_HOST = "127.0.0.1"
_NAMES = ("localhost", _HOST, "[::1]")
_ANY_ADDRESS = "0.0.0.0"
_SCHEMES = ("http", "https")
_OWN_SITES = {"same-origin", "none"}  # none: typed, or a bookmark

_log = logging.getLogger("dagster-webserver")

_FRESH = {"Cache-Control": "no-store"}

MAX_CONNECTIONS = 500
"""Of browsers and programs at a time, websockets included; others are answered 503."""

_SHOWN = 100  # characters of what somebody else has written


class Guard:
    """Lets through what comes from this machine's programs and from the UI's own pages.

    Refused, with a line that says what and why, are:

    - a `Host` that is not this server (421): a page whose name was made to point to this machine;
    - an `Origin` that is not this server (403), for websockets too: any other page;
    - what a browser sends for another page, by `Sec-Fetch-Site` (403), but for a link that is
      followed: images, scripts and forms send no `Origin` with GET;
    - GraphQL in the address that is not a query (405), or one that costs too much (400).

    Programs send neither `Origin` nor `Sec-Fetch-Site`. Pages of other origins cannot show the UI
    in a frame.
    """

    def __init__(
        self, app: ASGIApp, port: int, host: str = _HOST, names: Collection[str] = ()
    ) -> None:
        """Stands in front of an application.

        Args:
            app: what answers the requests that are let through.
            port: where the server listens.
            host: on which address.
            names: other names by which it is called, with the port where browsers send it: what a
                proxy in front of it is called, or this machine on its network.
        """
        self._app = app
        own = {*_NAMES} if host == _ANY_ADDRESS else {*_NAMES, host.lower()}
        hosts = {f"{name}:{port}" for name in own} | (own if port == 80 else set())
        # A proxy that is called by one of the other names may speak https with browsers.
        self._schemes = {host: ("http",) for host in hosts} | dict.fromkeys(names, _SCHEMES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that is refused; hands on any other."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope, self._schemes)
        if refusal is not None:
            status, line = refusal
            _log.warning("refused: %s", line)
            headers = {"Allow": "POST"} if status == 405 else None
            answer = PlainTextResponse(f"kbo_pipeline: {line}\n", status, headers)
            await answer(scope, receive, send)
            return

        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Frame-Options"] = "SAMEORIGIN"
            await send(message)

        await self._app(scope, receive, send_unframed)


def _refusal(scope: Scope, schemes: Mapping[str, Collection[str]]) -> tuple[int, str] | None:
    """The status and the line with which a request is refused; None when it is not.

    Args:
        scope: the request.
        schemes: with what the origin of a page of ours begins, by the `Host` that is asked.
    """
    headers = Headers(scope=scope)
    asked = f"{scope.get('method', 'websocket')} {_shown(scope['path'])}"
    names = [name.lower() for name in headers.getlist("host")]
    if len(names) != 1 or names[0] not in schemes:
        hosts = ", ".join(map(_shown, names)) or "none"
        return 421, f"{asked}: Host is {hosts}; this server is {', '.join(sorted(schemes))}"
    for origin in headers.getlist("origin"):
        # Not any of our names: at [::1] another program may listen on the same port.
        if origin.lower() not in [f"{scheme}://{names[0]}" for scheme in schemes[names[0]]]:
            return 403, f"{asked}: Origin is {_shown(origin)}; only pages of this server may ask"
    queries = []
    if "graphql" in scope["path"]:
        queries = QueryParams(scope["query_string"]).getlist("query")
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    if not sites <= _OWN_SITES and (queries or not _is_link(scope, headers)):
        origin = ", ".join(map(_shown, sorted(sites)))
        return 403, f"{asked}: Sec-Fetch-Site is {origin}; only pages of this server may ask"
    for text in queries:
        if (refusal := _refused_in_address(text)) is not None:
            status, reason = refusal
            return status, f"{asked}: {reason}"
    return None


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person follows a link to a page here, which opens in a tab of its own."""
    return (
        scope.get("method") == "GET"
        and headers.getlist("sec-fetch-mode") == ["navigate"]
        and headers.getlist("sec-fetch-dest") == ["document"]
        and "sec-purpose" not in headers  # a browser that fetches ahead what nobody has clicked
    )


def _refused_in_address(text: str) -> tuple[int, str] | None:
    """The status and the reason with which GraphQL in an address is refused.

    What cannot be read is not harmless: how deep a document may be depends on who reads it where.
    """
    advice = "in the address; send it as JSON, by POST"
    try:
        document = read_query(text)
    except CostlyQueryError as error:
        return 400, f"a query with {error}; ask for less at a time"
    except GraphQLError:
        return 405, f"what is no GraphQL {advice}"
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode) and (
            definition.operation is not OperationType.QUERY
        ):
            return 405, f"a {definition.operation.value} {advice}"
    return None


def _shown(text: str) -> str:
    """Somebody else's words for a log: one line, ASCII, not long."""
    return ascii(text[:_SHOWN])


def main() -> None:
    """Does what `dagster-webserver` does, behind the guard, until a signal comes.

    Other names than those of this machine, by which browsers may call it, are in KBO_UI_NAMES.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--host", default=_HOST)
    parser.add_argument("-p", "--port", type=int, required=True)
    known, options = parser.parse_known_args()
    settings = load_settings()
    serve = uvicorn.run

    def serve_guarded(app: Any, **named: Any) -> None:
        with DagsterInstance.get() as instance:
            answers = Answers(
                instance,
                settings,
                address=f"http://{reached(known.host)}:{known.port}",
                is_read_only="--read-only" in options,
            )
            app.router.routes[:0] = answers.routes()  # Dagster's last takes any path
            app.add_middleware(Guard, port=known.port, host=known.host, names=settings.ui_names)
            serve(app, **named, limit_concurrency=MAX_CONNECTIONS)

    uvicorn.run = serve_guarded  # which Dagster's command calls, and has no option for
    from dagster_webserver import app, cli

    if insides.are_tested():
        app.DagsterWebserver = limited_webserver()  # type: ignore[attr-defined]
    sys.argv[1:] = ["--host", known.host, "--port", str(known.port), *options]
    cli.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
