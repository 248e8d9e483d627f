"""What a GraphQL query may cost, and Dagster's web server with these limits.

Length, depth and width of a query are measured before it begins. How many rows a field brings
cannot be seen in a query, so that its time is limited, too.
"""

import logging
import math
import time
from asyncio import Task
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

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
    SelectionSetNode,
    parse,
)
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

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


_log = logging.getLogger("dagster-webserver")

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

        async def execute_graphql_request(
            self,
            request: Request,
            query: str,
            variables: dict[str, Any] | None,
            operation_name: str | None,
        ) -> JSONResponse:
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
            if (error := _cost_error(query)) is not None:
                return None, error.formatted
            return await super().execute_graphql_subscription(
                websocket, operation_id, query, variables, operation_name
            )

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
