"""`GET /kbo/status` and `GET /kbo/status/EXTRACT`: what `kbo status --json` prints, over HTTP."""

from dagster import DagsterInstance
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from kbo_pipeline.core.errors import ExtractError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate.runs.status import newest_extract, read_status

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
