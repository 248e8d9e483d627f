"""The web server of `kbo start`: Dagster's own, behind a guard against other pages of a browser.

Besides what Dagster answers, it answers `/kbo/status`.

`python -m kbo_pipeline.operate.processes.webserver --port PORT --workspace FILE`. It listens on
127.0.0.1 unless `--host` says otherwise. A browser that can reach it does so for any page that it
shows: the guard asks each request where it comes from.
"""

import logging
import math
import time
from asyncio import Task
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any

import click
import uvicorn
from dagster import DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster._utils.log import configure_loggers
from dagster_postgres.utils import DagsterPostgresException
from dagster_webserver.cli import (
    DEFAULT_DB_STATEMENT_TIMEOUT,
    DEFAULT_POOL_MAX_OVERFLOW,
    DEFAULT_POOL_RECYCLE,
    WEBSERVER_LOGGER_NAME,
)
from dagster_webserver.version import __version__
from dagster_webserver.webserver import DagsterWebserver
from graphql import (
    GraphQLError,
    GraphQLFormattedError,
    OperationDefinitionNode,
    OperationType,
)
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from kbo_pipeline.core.errors import ExtractError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate.processes.query_limits import CostlyQueryError, read_query
from kbo_pipeline.operate.runs.status import newest_extract, read_status

_HOST = "127.0.0.1"
_NAMES = ("localhost", _HOST, "[::1]")
_ANY_ADDRESS = "0.0.0.0"
_SCHEMES = ("http", "https")
_UI_POLL_MILLISECONDS = 2000  # as Dagster's own command has it
_OWN_SITES = {"same-origin", "none"}  # none: typed, or a bookmark

QUERY_SECONDS = 60.0
"""For which a query is answered; PostgreSQL has less for each of its own."""

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
        said = ", ".join(map(_shown, names)) or "none"
        return 421, f"{asked}: Host is {said}; this server is {', '.join(sorted(schemes))}"
    for origin in headers.getlist("origin"):
        # Not any of our names: at [::1] another program may listen on the same port.
        if origin.lower() not in [f"{scheme}://{names[0]}" for scheme in schemes[names[0]]]:
            return 403, f"{asked}: Origin is {_shown(origin)}; only pages of this server may ask"
    queries = []
    if "graphql" in scope["path"]:
        queries = QueryParams(scope["query_string"]).getlist("query")
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    if not sites <= _OWN_SITES and (queries or not _is_link(scope, headers)):
        said = ", ".join(map(_shown, sorted(sites)))
        return 403, f"{asked}: Sec-Fetch-Site is {said}; only pages of this server may ask"
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


_until: ContextVar[float] = ContextVar("_until", default=math.inf)
"""When the query that this thread answers is given up, by the monotonic clock."""


def _give_up_late(resolve: Callable[..., Any], root: Any, info: Any, **arguments: Any) -> Any:
    """Called for each field of an answer: after the time for a query nothing more is looked up."""
    if time.monotonic() > _until.get():
        raise GraphQLError(f"the query takes longer than {QUERY_SECONDS:.0f} s; ask for less")
    return resolve(root, info, **arguments)


class KboWebserver(DagsterWebserver[WorkspaceProcessContext, WorkspaceRequestContext]):
    """Dagster's web server, which refuses queries that cost too much, and ends those that last."""

    def build_graphql_middleware(self) -> list[Any]:
        """What is called for each field."""
        return [*super().build_graphql_middleware(), _give_up_late]

    async def execute_graphql_request(
        self,
        request: Request,
        query: str,
        variables: dict[str, Any] | None,
        operation_name: str | None,
    ) -> JSONResponse:
        """Answers a query, or refuses it before it is begun."""
        if (error := _cost_error(query)) is not None:
            return JSONResponse({"data": None, "errors": [error.formatted]}, 400)
        return await super().execute_graphql_request(request, query, variables, operation_name)

    def graphql_execution_thread(
        self,
        request: Request,
        query: str,
        variables: dict[str, Any] | None,
        operation_name: str | None,
    ) -> JSONResponse:
        """Answers a query in a thread, for so long."""
        _until.set(time.monotonic() + QUERY_SECONDS)
        return super().graphql_execution_thread(request, query, variables, operation_name)

    async def execute_graphql_subscription(
        self,
        websocket: WebSocket,
        operation_id: str,
        query: str,
        variables: dict[str, Any] | None,
        operation_name: str | None,
    ) -> tuple[Task[Any] | None, GraphQLFormattedError | None]:
        """Begins a subscription, or refuses it."""
        if (error := _cost_error(query)) is not None:
            return None, error.formatted
        return await super().execute_graphql_subscription(
            websocket, operation_id, query, variables, operation_name
        )


def _cost_error(query: str) -> GraphQLError | None:
    """The error with which a query is refused that costs too much."""
    try:
        read_query(query)
    except CostlyQueryError as error:
        _log.warning("refused: a query with %s", error)
        return GraphQLError(f"kbo_pipeline: a query with {error}; ask for less at a time")
    except GraphQLError:
        return None  # Dagster says where it is wrong
    return None


def _shown(text: str) -> str:
    """Somebody else's words for a log: one line, ASCII, not long."""
    return ascii(text[:_SHOWN])


_log = logging.getLogger(WEBSERVER_LOGGER_NAME)


@click.command()
@click.option("-h", "--host", default=_HOST, show_default=True, help="On which address to listen.")
@click.option("-p", "--port", type=int, required=True, help="Where to listen there.")
@click.option("-w", "--workspace", required=True, help="The file that names the code server.")
@click.option("--read-only", is_flag=True, help="Nothing can be started or changed.")
def main(host: str, port: int, workspace: str, read_only: bool) -> None:
    """Serve Dagster's web UI until a signal comes, to this machine unless --host says otherwise.

    Other names than those of this machine, by which browsers may call it, are in KBO_UI_NAMES.
    """
    names = load_settings().ui_names
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
            app = KboWebserver(context, live_data_poll_rate=_UI_POLL_MILLISECONDS).create_asgi_app()
            app.router.routes.insert(0, status_routes(instance))  # Dagster's last takes any path
            app.add_middleware(Guard, port=port, host=host, names=names)
            # Dagster's application has nothing to do at its start and at its end.
            uvicorn.run(
                app,
                host=host,
                port=port,
                log_level="warning",
                lifespan="off",
                limit_concurrency=MAX_CONNECTIONS,
            )


if __name__ == "__main__":
    main()


_FRESH = {"Cache-Control": "no-store"}


def status_routes(instance: DagsterInstance) -> Mount:
    """What the web server answers below `/kbo`, by GET alone; it changes nothing.

    An answer other than 200 is one line of text: 400 for what is no extract, 404 for an extract
    that nothing is known of, 503 while PostgreSQL is away.

    Args:
        instance: of the web server, read in one of the server's threads at each request.
    """

    def answer(request: Request) -> Response:
        text = request.path_params.get("extract")
        try:
            key = ExtractKey.parse(text) if text else newest_extract(instance)
            return JSONResponse(read_status(instance, key).to_json(), headers=_FRESH)
        except ExtractError as error:
            return _refused(400, error)
        except NotReadyError as error:
            return _refused(404, error)
        except (DagsterPostgresException, SQLAlchemyError) as error:
            reason = first_line(error.__cause__ or error)
            return _refused(503, f"Dagster's storage: {reason}; ask again later")

    return Mount("/kbo", routes=[Route("/status", answer), Route("/status/{extract}", answer)])


def _refused(status: int, line: object) -> Response:
    return PlainTextResponse(f"kbo_pipeline: {line}\n", status, _FRESH)
