"""The application: what answers at which address, and what an error becomes."""

from http import HTTPStatus
from itertools import chain
from typing import Any

import duckdb
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from kbo_pipeline.core.errors import ExtractError, KboError, NotFoundError, NotReadyError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import OUT_OF_MEMORY
from kbo_pipeline.read.web import metrics, pages, reconcile, routes
from kbo_pipeline.read.web.asking import Asker
from kbo_pipeline.read.web.frame import MAX_BODY_BYTES, Frame, Guarded, problem
from kbo_pipeline.read.web.metrics import Collect, Requests
from kbo_pipeline.read.web.served import Served

PATHS = (f"{routes.BEGINNING}/{{path:path}}", "/kbo/metrics", *pages.PATHS)
"""Where the application answers below another one."""

_DESCRIPTION = """\
Belgium's company register (KBO Open Data) as it is published on this machine, with its history.

Each answer has `source` beside `data`: show its `line` with the data. Its `ETag` stays the same
until something else is published; send it as `If-None-Match`, and the answer is 304.
"""

_DUCKDB_THREADS = 1
"""Questions are answered beside each other; one that DuckDB divides takes a fifth more work."""

_NO_TELEMETRY: Any = {
    name: False for name in ("tracing", "metrics", "logs", "operation_spans", "auto_configure")
}
"""FastAPI must send nothing anywhere, whatever the environment says."""


def guarded(settings: Settings) -> ASGIApp:
    """The application of `kbo serve`, which refuses what other pages of a browser ask."""
    app = application(settings)
    if settings.api_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.api_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match"],
            expose_headers=["ETag"],
        )
    return Guarded(app, settings.ui_names, settings.api_origins)


def application(settings: Settings, *others: APIRouter, collect: Collect = tuple) -> ASGIApp:
    """The application without that guard, for a server that has one.

    Args:
        settings: say where the register is, whom it may show, and who may ask.
        others: what else is answered below the same addresses.
        collect: gives metrics of the server besides those of the register and of requests.
    """
    app = FastAPI(
        title="kbo_pipeline",
        version="1",
        description=_DESCRIPTION,
        openapi_url=f"{routes.BEGINNING}/openapi.json",
        docs_url=None,  # FastAPI's loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=MAX_BODY_BYTES,
        telemetry=_NO_TELEMETRY,
    )
    asker, requests = Asker(Served(settings, _DUCKDB_THREADS)), Requests()
    for router in (*others, routes.router(asker), reconcile.router(asker)):
        app.include_router(router)
    app.include_router(pages.router(app, asker))
    _add_metrics(app, asker, requests, collect)
    _add_errors(app)
    return Frame(app, requests, settings.api_keys)


def _add_metrics(app: FastAPI, asker: Asker, requests: Requests, collect: Collect) -> None:
    def read() -> bytes:
        others = (requests.collect(), collect())
        try:
            with asker.served.opened() as opened:
                return metrics.written(chain(*others, metrics.of_register(opened)))
        except NotReadyError:
            return metrics.written(chain(*others, metrics.of_register(None)))

    @app.get("/kbo/metrics", include_in_schema=False)
    async def read_metrics(request: Request) -> Response:
        body = await asker.work(request, read)
        return Response(body, media_type=metrics.MEDIA_TYPE, headers={"Cache-Control": "no-store"})


def _add_errors(app: FastAPI) -> None:
    """Answers each error by a line: what the command line says."""

    @app.exception_handler(KboError)
    async def ours(request: Request, error: KboError) -> Response:
        if isinstance(error, ExtractError):
            return problem(HTTPStatus.BAD_REQUEST, str(error))
        if isinstance(error, NotFoundError):
            return problem(HTTPStatus.NOT_FOUND, str(error))
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "5"})

    @app.exception_handler(duckdb.OutOfMemoryException)
    async def out_of_memory(request: Request, error: duckdb.OutOfMemoryException) -> Response:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, OUT_OF_MEMORY, {"Retry-After": "5"})

    @app.exception_handler(StarletteHTTPException)
    async def of_http(request: Request, error: StarletteHTTPException) -> Response:
        headers = dict(error.headers or {})
        return problem(error.status_code, str(error.detail), headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        reasons = (f"{_place(e['loc'])}: {e['msg']}" for e in error.errors())
        return problem(HTTPStatus.BAD_REQUEST, "; ".join(reasons))

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of this program; its log says more"
        )


def _place(location: tuple[Any, ...]) -> str:
    """Where a value stands that is refused, without `query` or `path` before its name."""
    return ".".join(map(str, location[1:] or location))
