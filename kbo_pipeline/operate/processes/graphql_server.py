"""Dagster's web server with limits for GraphQL queries; for the Dagster that it was made for.

What a query may cost is in `query_limits.py`.
"""

import logging
import math
import time
from asyncio import Task
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from dagster_webserver.webserver import DagsterWebserver
from graphql import GraphQLError, GraphQLFormattedError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from kbo_pipeline.operate.processes.query_limits import (
    QUERY_SECONDS,
    CostlyQueryError,
    read_query,
)

_log = logging.getLogger("dagster-webserver")

_until: ContextVar[float] = ContextVar("_until", default=math.inf)
"""When the query that this thread answers is given up, by the monotonic clock."""


def _give_up_late(resolve: Callable[..., Any], root: Any, info: Any, **arguments: Any) -> Any:
    """Called for each field of an answer: after the time for a query nothing more is looked up."""
    if time.monotonic() > _until.get():
        raise GraphQLError(f"the query takes longer than {QUERY_SECONDS:.0f} s; ask for less")
    return resolve(root, info, **arguments)


class KboWebserver(DagsterWebserver[Any, Any]):
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
