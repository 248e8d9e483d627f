"""The web server of `kbo start`: Dagster's own, behind a guard against other pages of a browser.

Besides what Dagster answers, it answers `/kbo` and what is below it. Length, depth and width of a
GraphQL query are measured before it begins. How many rows a field brings cannot be seen in a query,
so that its time is limited, too.

`python -m kbo_pipeline.operate.processes.webserver --port PORT OPTION...` takes the options of
`dagster-webserver`, and listens on 127.0.0.1 unless `--host` says otherwise. A browser that can
reach it does so for any page that it shows: the guard asks each request where it comes from.
"""

import argparse
import logging
import math
import sys
import time
from asyncio import Task
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import uvicorn
from dagster import DagsterInstance
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLFormattedError,
    GraphQLSyntaxError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    parse,
)
from starlette.datastructures import MutableHeaders, QueryParams
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kbo_pipeline.core import guard
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.processes.dashboard.routes import Answers
from kbo_pipeline.operate.runtime import reached

_log = logging.getLogger("dagster-webserver")

MAX_CONNECTIONS = 500
"""Of browsers and programs at a time, websockets included; others are answered 503."""


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
        self, app: ASGIApp, port: int, host: str = guard.LOOPBACK, names: Collection[str] = ()
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
        self._schemes = guard.own_names(host, port, names)

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
    """As `guard.refusal`, and what GraphQL in an address may not do."""
    queries = []
    if "graphql" in scope["path"]:
        queries = QueryParams(scope["query_string"]).getlist("query")
    refusal = guard.refusal(scope, schemes, takes_links=not queries)
    if refusal is not None:
        return refusal
    asked = f"{scope.get('method', 'websocket')} {guard.shown(scope['path'])}"
    for text in queries:
        if (refused := _refused_in_address(text)) is not None:
            status, reason = refused
            return status, f"{asked}: {reason}"
    return None


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


QUERY_SECONDS = 60.0
"""For which a query is answered; PostgreSQL has less for each of its own."""

MAX_CHARACTERS = 100_000
"""Of a document."""

MAX_TOKENS = 20_000
"""Of a document: names, braces and the like, which the parser counts while it reads."""

MAX_DEPTH = 40
"""Fields within fields, those of fragments included; the UI's deepest query has 10."""

MAX_FIELDS = 5_000
"""Fields in all, those of a fragment each time that it is used; the UI's widest query has 1,041."""

MAX_ALIASES = 100
"""Fields under another name than their own, by which one query asks the same thing often."""

_until: ContextVar[float] = ContextVar("_until", default=math.inf)
"""When the query that this thread answers is given up, by the monotonic clock."""

_TOO_DEEP = f"more than {MAX_DEPTH} fields within one another"


_NESTED, _TOKENS = "nested too deeply", "tokens"  # how graphql-core words its own limits (3.2.14)


_MAX_NESTING = 100  # of fields and fragments; Python's own limit is not far above


class CostlyQueryError(Exception):
    """A document asks for more than a page does; the text says of what."""


def read_query(text: str) -> DocumentNode:
    """Reads a GraphQL document that may be executed.

    Raises:
        CostlyQueryError: it is too long, deep or wide; says which limit it exceeds.
        GraphQLSyntaxError: it is none.
    """
    if len(text) > MAX_CHARACTERS:
        raise CostlyQueryError(f"more than {MAX_CHARACTERS:,} characters")
    try:
        document = parse(text, no_location=True, max_tokens=MAX_TOKENS)
    except RecursionError:
        raise CostlyQueryError(_TOO_DEEP) from None
    except GraphQLSyntaxError as error:
        if _NESTED in error.message:
            raise CostlyQueryError(_TOO_DEEP) from None
        if _TOKENS in error.message:
            raise CostlyQueryError(f"more than {MAX_TOKENS:,} words and signs") from None
        raise
    measure = _Measure(document)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            cost = measure.of(definition.selection_set, 1)
            if cost.fields > MAX_FIELDS:
                raise CostlyQueryError(f"more than {MAX_FIELDS:,} fields")
            if cost.aliases > MAX_ALIASES:
                raise CostlyQueryError(f"more than {MAX_ALIASES:,} aliases")
            if cost.depth > MAX_DEPTH:
                raise CostlyQueryError(_TOO_DEEP)
    return document


@dataclass(frozen=True, slots=True)
class _Cost:
    fields: int = 0
    aliases: int = 0
    depth: int = 0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(
            self.fields + other.fields,
            self.aliases + other.aliases,
            max(self.depth, other.depth),
        )


class _Measure:
    """Counts what a document asks for; each fragment is looked at once."""

    def __init__(self, document: DocumentNode) -> None:
        self._fragments = {
            definition.name.value: definition.selection_set
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._known: dict[str, _Cost] = {}

    def of(self, selections: SelectionSetNode | None, nesting: int) -> _Cost:
        """The cost of what stands between braces, within so many others of the document."""
        if nesting > _MAX_NESTING:
            return _Cost(depth=MAX_DEPTH + 1)
        cost = _Cost()
        for node in selections.selections if selections is not None else ():
            if isinstance(node, FieldNode):
                inner = self.of(node.selection_set, nesting + 1)
                is_alias = node.alias is not None and node.alias.value != node.name.value
                cost += _Cost(inner.fields + 1, inner.aliases + is_alias, inner.depth + 1)
            elif isinstance(node, InlineFragmentNode):
                cost += self.of(node.selection_set, nesting + 1)
            elif isinstance(node, FragmentSpreadNode):
                cost += self._of_fragment(node.name.value, nesting)
        return cost

    def _of_fragment(self, name: str, nesting: int) -> _Cost:
        if name not in self._known:
            self._known[name] = _Cost()  # one that uses itself is refused when it is executed
            self._known[name] = self.of(self._fragments.get(name), nesting + 1)
        return self._known[name]


def _give_up_late(resolve: Callable[..., Any], root: Any, info: Any, **arguments: Any) -> Any:
    """Called for each field of an answer: after the time for a query nothing more is looked up."""
    if time.monotonic() > _until.get():
        raise GraphQLError(f"the query takes longer than {QUERY_SECONDS:.0f} s; ask for less")
    return resolve(root, info, **arguments)


def limited_webserver() -> type[Any]:
    """Dagster's web server, which refuses queries that cost too much, and ends those that last."""
    from dagster_webserver.webserver import DagsterWebserver

    class KboWebserver(DagsterWebserver[Any, Any]):
        def build_graphql_middleware(self) -> list[Any]:
            return [*super().build_graphql_middleware(), _give_up_late]

        # Dagster names all arguments of these.
        async def execute_graphql_request(self, *args: Any, **named: Any) -> JSONResponse:
            if (error := _cost_error(named["query"])) is not None:
                return JSONResponse({"data": None, "errors": [error.formatted]}, 400)
            return await super().execute_graphql_request(*args, **named)

        def graphql_execution_thread(self, *args: Any, **named: Any) -> JSONResponse:
            _until.set(time.monotonic() + QUERY_SECONDS)
            return super().graphql_execution_thread(*args, **named)

        async def execute_graphql_subscription(
            self, *args: Any, **named: Any
        ) -> tuple[Task[Any] | None, GraphQLFormattedError | None]:
            if (error := _cost_error(named["query"])) is not None:
                return None, error.formatted
            return await super().execute_graphql_subscription(*args, **named)

    return KboWebserver


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


def main() -> None:
    """Does what `dagster-webserver` does, behind the guard, until a signal comes.

    Other names than those of this machine, by which browsers may call it, are in KBO_UI_NAMES.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--host", default=guard.LOOPBACK)
    parser.add_argument("-p", "--port", type=int, required=True)
    arguments, options = parser.parse_known_args()
    settings = load_settings()
    serve = uvicorn.run

    def serve_guarded(app: Any, **named: Any) -> None:
        with DagsterInstance.get() as instance:
            answers = Answers(
                instance,
                settings,
                address=f"http://{reached(arguments.host)}:{arguments.port}",
                is_read_only="--read-only" in options,
            )
            app.router.routes[:0] = answers.routes()  # Dagster's last takes any path
            app.add_middleware(
                Guard, port=arguments.port, host=arguments.host, names=settings.ui_names
            )
            serve(app, **named, limit_concurrency=MAX_CONNECTIONS)

    uvicorn.run = serve_guarded  # which Dagster's command calls, and has no option for
    from dagster_webserver import app, cli

    if insides.are_tested():
        app.DagsterWebserver = limited_webserver()  # type: ignore[attr-defined]
    sys.argv[1:] = ["--host", arguments.host, "--port", str(arguments.port), *options]
    cli.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
