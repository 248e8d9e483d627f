"""The web server of `kbo start`: Dagster's own, behind a guard against other pages of a browser.

Besides what Dagster answers, it answers `/kbo/status`.

`python -m kbo_pipeline.defs.webserver --port PORT --workspace FILE`. It listens on 127.0.0.1 only.
There a browser on this machine reaches it for any page that it shows: the guard asks each request
where it comes from.
"""

import logging
from collections.abc import Collection

import click
import uvicorn
from dagster import DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster._utils.log import configure_loggers
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.cli import (
    DEFAULT_DB_STATEMENT_TIMEOUT,
    DEFAULT_POOL_MAX_OVERFLOW,
    DEFAULT_POOL_RECYCLE,
    WEBSERVER_LOGGER_NAME,
)
from dagster_webserver.version import __version__
from graphql import GraphQLSyntaxError, OperationDefinitionNode, OperationType, parse
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kbo_pipeline.defs.status_route import status_routes

_HOST = "127.0.0.1"
_NAMES = ("localhost", _HOST, "[::1]")
_UI_POLL_MILLISECONDS = 2000  # as Dagster's own command has it
_SHOWN = 100  # characters of what somebody else has written


class Guard:
    """Lets through what comes from this machine's programs and from the UI's own pages.

    Refused, with a line that says what and why, are:

    - a `Host` that is not this server (421): a page whose name was made to point to this machine;
    - an `Origin` that is not this server (403), for websockets too: any other page;
    - GraphQL in the address that is not a query (405): a link or an image can send it.

    Programs send no `Origin`. Pages of other origins cannot show the UI in a frame.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        """Stands in front of an application.

        Args:
            app: what answers the requests that are let through.
            port: where the server listens.
        """
        self._app = app
        self._hosts = {f"{name}:{port}" for name in _NAMES} | ({*_NAMES} if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that is refused; hands on any other."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope, self._hosts)
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


def _refusal(scope: Scope, hosts: Collection[str]) -> tuple[int, str] | None:
    """The status and the line with which a request is refused; None when it is not."""
    headers = Headers(scope=scope)
    asked = f"{scope.get('method', 'websocket')} {_shown(scope['path'])}"
    names = [name.lower() for name in headers.getlist("host")]
    if len(names) != 1 or names[0] not in hosts:
        said = ", ".join(map(_shown, names)) or "none"
        return 421, f"{asked}: Host is {said}; this server is {', '.join(sorted(hosts))}"
    for origin in headers.getlist("origin"):
        # Not any of our names: at [::1] another program may listen on the same port.
        if origin.lower() != f"http://{names[0]}":
            return 403, f"{asked}: Origin is {_shown(origin)}; only pages of this server may ask"
    if "graphql" in scope["path"]:
        for text in QueryParams(scope["query_string"]).getlist("query"):
            if (found := _other_than_query(text)) is not None:
                return 405, f"{asked}: {found} in the address; send it as JSON, by POST"
    return None


def _other_than_query(text: str) -> str | None:
    """What a GraphQL document holds besides queries; None when it holds nothing else.

    What cannot be read is not harmless: how deep a document may be depends on who reads it where.
    """
    try:
        document = parse(text, no_location=True)
    except GraphQLSyntaxError:
        return "what is no GraphQL"
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode) and (
            definition.operation is not OperationType.QUERY
        ):
            return f"a {definition.operation.value}"
    return None


def _shown(text: str) -> str:
    """Somebody else's words for a log: one line, ASCII, not long."""
    return ascii(text[:_SHOWN])


_log = logging.getLogger(WEBSERVER_LOGGER_NAME)


@click.command()
@click.option("--port", type=int, required=True, help="Where to listen, on 127.0.0.1.")
@click.option("--workspace", required=True, help="The file that names the code server.")
@click.option("--read-only", is_flag=True, help="Let nobody start or change anything.")
def main(port: int, workspace: str, read_only: bool) -> None:
    """Serve Dagster's web UI to this machine until a signal comes."""
    configure_loggers()
    setup_interrupt_handlers()
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(
            DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW
        )
        with WorkspaceProcessContext(
            instance,
            version=__version__,
            read_only=read_only,
            workspace_load_target=WorkspaceFileTarget([workspace]),
        ) as context:
            app = create_app_from_workspace_process_context(
                context, live_data_poll_rate=_UI_POLL_MILLISECONDS
            )
            app.router.routes.insert(0, status_routes(instance))  # Dagster's last takes any path
            app.add_middleware(Guard, port=port)
            # Dagster's application has nothing to do at its start and at its end.
            uvicorn.run(app, host=_HOST, port=port, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
