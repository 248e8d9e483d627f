"""What programs start and stop at `/kbo/v1/imports`, as people do by the buttons of `/kbo`."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import dagster as dg
import requests
from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse

from kbo_pipeline.core.errors import ExtractError, KboError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate.processes.storage import POSTGRES_ERRORS

_AT_ONCE = 4  # of many threads that answer; each may take a minute


@dataclass(frozen=True, slots=True)
class ImportAsked:
    """Which extract is to be imported.

    Attributes:
        extract: its key, such as `0141-update`.
    """

    extract: str


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a call: the line that the command would print."""

    extract: str
    message: str


@dataclass(frozen=True, slots=True)
class Acts:
    """What can be done with an extract; each returns the line that the command prints."""

    start: Callable[[ExtractKey], str]
    retry: Callable[[ExtractKey], str]
    cancel: Callable[[ExtractKey], str]
    rollback: Callable[[ExtractKey], str]
    progress: Callable[[ExtractKey], dict[str, Any]]


def router(acts: Acts, *, is_read_only: bool) -> APIRouter:
    """The routes; those that start or stop something are not there where that cannot be done."""
    answers = APIRouter(prefix="/kbo/v1/imports")

    @answers.get("/{extract}/progress")
    def progress(extract: str) -> JSONResponse:
        """How far the import of an extract is: what `kbo status --json` prints."""
        try:
            return JSONResponse({"data": acts.progress(_key(extract))}, headers=_FRESH)
        except NotReadyError as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from None
        except POSTGRES_ERRORS as error:
            raise _away(error) from None

    if not is_read_only:
        _add_calls(answers, acts)
    return answers


_FRESH = {"Cache-Control": "no-store"}


def _add_calls(answers: APIRouter, acts: Acts) -> None:
    at_once = threading.Semaphore(_AT_ONCE)

    def called(extract: str, act: Callable[[ExtractKey], str]) -> Done:
        key = _key(extract)
        if not at_once.acquire(blocking=False):
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many calls at a time; ask again",
                {"Retry-After": "5"},
            )
        try:
            return Done(str(key), act(key))
        except (KboError, dg.DagsterError, requests.RequestException) as error:
            raise HTTPException(HTTPStatus.CONFLICT, first_line(error)) from None
        except POSTGRES_ERRORS as error:
            raise _away(error) from None
        finally:
            at_once.release()

    @answers.post("", status_code=HTTPStatus.ACCEPTED)
    def start(asked: ImportAsked) -> dict[str, Done]:
        """Imports an extract whose ZIP is in the downloads directory or on the portal."""
        return {"data": called(asked.extract, acts.start)}

    @answers.post("/{extract}/retry", status_code=HTTPStatus.ACCEPTED)
    def retry(extract: str) -> dict[str, Done]:
        """Starts what failed or is missing of an extract, as `kbo retry` does."""
        return {"data": called(extract, acts.retry)}

    @answers.post("/{extract}/resume", status_code=HTTPStatus.ACCEPTED)
    def resume(extract: str) -> dict[str, Done]:
        """Goes on with an extract that was cancelled; the same as `retry`."""
        return {"data": called(extract, acts.retry)}

    @answers.post("/{extract}/cancel")
    def cancel(extract: str) -> dict[str, Done]:
        """Stops the import of an extract after the running batch, as `kbo cancel` does."""
        return {"data": called(extract, acts.cancel)}

    @answers.post("/{extract}/rollback", status_code=HTTPStatus.ACCEPTED)
    def rollback(extract: str) -> dict[str, Done]:
        """Starts to undo the newest extract, as `kbo rollback` does."""
        return {"data": called(extract, acts.rollback)}


def _key(text: str) -> ExtractKey:
    try:
        return ExtractKey.parse(text)
    except ExtractError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None


def _away(error: BaseException) -> HTTPException:
    reason = first_line(error.__cause__ or error)
    return HTTPException(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"Dagster's storage: {reason}; ask again later",
        {"Retry-After": "5"},
    )
