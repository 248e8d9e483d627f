"""What the web server answers at `/kbo` and below it: the page, its buttons, the status as JSON.

The guard of the web server stands before all of it. Buttons are POSTs, which it refuses when they
come from another page; each does what the command of its name does, and says what that says.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import requests
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import BaseRoute, Mount, Route

from kbo_pipeline.core.errors import ExtractError, KboError, NotReadyError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import counted, first_line
from kbo_pipeline.fetch.zips import kept_zips
from kbo_pipeline.operate import markers
from kbo_pipeline.operate.processes.dashboard.imports import Acts, router
from kbo_pipeline.operate.processes.dashboard.metrics import of_imports
from kbo_pipeline.operate.processes.dashboard.page import Reader, render
from kbo_pipeline.operate.processes.storage import POSTGRES_ERRORS
from kbo_pipeline.operate.runs.cancellation import cancel_extract
from kbo_pipeline.operate.runs.claims import claim, queue_tags
from kbo_pipeline.operate.runs.partitions import register_extract
from kbo_pipeline.operate.runs.progress import PARTITION_TAG, ROLLBACK_JOB, Progress
from kbo_pipeline.operate.runs.recovery import (
    DueRun,
    due_runs,
    end_dead_runs_of_commands,
    unfinished_runs,
)
from kbo_pipeline.operate.runs.status import newest_extract, read_status
from kbo_pipeline.read.web import application as web

_FILES = Path(__file__).parent / "files"
_FRESH = {"Cache-Control": "no-store"}
_PAGE_HEADERS = {
    **_FRESH,
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'self'",
    # Not `no-referrer`: browsers would say `Origin: null` with a button, which the guard refuses.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_FILE_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}

_READ_ONLY = "read only: nothing can be started or stopped here"
_ELSEWHERE = "the data is on the host of the code location: use the kbo commands there"
_CLAIM_SECONDS = 10.0  # its holder may only note that it is cancelled, on a busy machine
_ANSWER_SECONDS = 60.0

_LAUNCH = """
mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
} }
"""
_LOCATION = {"repositoryLocationName": "kbo_pipeline", "repositoryName": "__repository__"}


@dataclass(frozen=True, slots=True)
class Answers:
    """What answers at `/kbo`.

    Attributes:
        instance: of the web server, read in one of its threads at each request.
        settings: say where the small files are.
        address: where this server reaches itself, to start runs as any program does.
        is_read_only: nothing can be started or stopped.
    """

    instance: dg.DagsterInstance
    settings: Settings
    address: str
    is_read_only: bool = False

    def routes(self) -> list[BaseRoute]:
        """The routes, which come before Dagster's own."""
        below = [
            Route("/status", self._status),
            Route("/status/{extract}", self._status),
            Route("/page.css", _file("page.css"), name="style"),
            Route("/page.js", _file("page.js"), name="script"),
            Route("/retry/{extract}", self._button(self._retry), methods=["POST"]),
            Route("/cancel/{extract}", self._button(self._cancel), methods=["POST"]),
            Route("/pause", self._button(self._pause), methods=["POST"]),
            Route("/resume", self._button(self._resume), methods=["POST"]),
        ]
        acts = Acts(self._import, self._start_due, self._stop, self._undo, self._progress)
        imports = router(acts, is_read_only=bool(self._why_no_buttons()))
        reading = web.application(
            self.settings, imports, collect=lambda: of_imports(self.instance, self.settings)
        )
        return [
            Route("/kbo", self._page()),
            *(Route(path, reading) for path in web.PATHS),
            Mount("/kbo", routes=below),
        ]

    def _status(self, request: Request) -> Response:
        """What `kbo status --json` prints.

        An answer other than 200 is one line of text: 400 for what is no extract, 404 for an extract
        that nothing is known of, 503 while PostgreSQL is away.
        """
        text = request.path_params.get("extract")
        try:
            key = ExtractKey.parse(text) if text else newest_extract(self.instance)
            status = read_status(self.instance, self.settings, key)
            return JSONResponse(status.to_json(), headers=_FRESH)
        except ExtractError as error:
            return _refused(400, error)
        except NotReadyError as error:
            return _refused(404, error)
        except POSTGRES_ERRORS as error:
            return _away(error)

    def _page(self) -> Callable[[Request], Response]:
        reader = Reader(self.instance, self.settings)

        def answer(request: Request) -> Response:
            return self._rendered(reader, 200)

        return answer

    def _rendered(
        self, reader: Reader, code: int, message: str | None = None, *, is_refused: bool = False
    ) -> Response:
        why = self._why_no_buttons()
        try:
            page = reader.read(
                has_buttons=not why, why_no_buttons=why, message=message, is_refused=is_refused
            )
            return HTMLResponse(render(page), code, _PAGE_HEADERS)
        except POSTGRES_ERRORS as error:
            return _away(error)

    def _why_no_buttons(self) -> str:
        if self.is_read_only:
            return _READ_ONLY
        return _ELSEWHERE if self.settings.code_host is not None else ""

    def _button(self, act: Callable[[Request], str]) -> Callable[[Request], Response]:
        """Answers a button by the page, with what came of it; 409 where the command refuses."""
        reader = Reader(self.instance, self.settings)
        at_once = threading.Semaphore(4)  # of many threads that answer; each may take a minute

        def answer(request: Request) -> Response:
            why = self._why_no_buttons()
            if why:
                return _refused(403, why)
            if not at_once.acquire(blocking=False):
                return _refused(503, "too many buttons at a time; press it again")
            try:
                return self._rendered(reader, 200, act(request))
            except (KboError, dg.DagsterError, requests.RequestException) as error:
                return self._rendered(reader, 409, first_line(error), is_refused=True)
            except POSTGRES_ERRORS as error:
                return _away(error)
            finally:
                at_once.release()

        return answer

    def _pause(self, request: Request) -> str:
        done = markers.pause(self.settings)
        return markers.PAUSED if done else f"{markers.PAUSED}: nothing to do"

    def _resume(self, request: Request) -> str:
        return "resumed" if markers.resume(self.settings) else "not paused: nothing to do"

    def _cancel(self, request: Request) -> str:
        return self._stop(ExtractKey.parse(request.path_params["extract"]))

    def _retry(self, request: Request) -> str:
        return self._start_due(ExtractKey.parse(request.path_params["extract"]))

    def _progress(self, key: ExtractKey) -> dict[str, Any]:
        return read_status(self.instance, self.settings, key).to_json()

    def _stop(self, key: ExtractKey) -> str:
        cancel_extract(self.instance, self.settings, key)
        return f"{key}: cancelled; kbo retry {key} continues it"

    def _import(self, key: ExtractKey) -> str:
        """Starts an extract whose ZIP is here, or may be fetched.

        Raises:
            NotReadyError: its ZIP is not here, and there is no account to fetch it with.
        """
        if not self.settings.has_account and not kept_zips(self.settings, key):
            raise NotReadyError(
                f"{key}: no ZIP of it in {self.settings.downloads_dir}, and"
                f" {self.settings.account_not_set} not set; put the ZIP into"
                f" {self.settings.inbox_dir}"
            )
        register_extract(self.instance, key)
        return self._start_due(key)

    def _undo(self, key: ExtractKey) -> str:
        """Starts the job that undoes an extract, if it is the newest; the run says so if not."""
        if key not in Progress(self.instance).known:
            raise NotReadyError(f"{key}: no such extract; see kbo status for the one at work")
        with claim(self.settings, key, _CLAIM_SECONDS):
            self._launch(key, DueRun(ROLLBACK_JOB, {PARTITION_TAG: str(key)}))
        return f"{key}: started {ROLLBACK_JOB}; its progress says when it is done"

    def _start_due(self, key: ExtractKey) -> str:
        """Starts what `kbo retry` would run first; the sensors start what follows it."""
        due_runs(self.instance, self.settings, key)
        with claim(self.settings, key, _CLAIM_SECONDS):
            due = due_runs(self.instance, self.settings, key)
            if not due:
                return f"{key}: published: nothing to retry"
            end_dead_runs_of_commands(self.instance, self.settings, key)
            if unfinished_runs(self.instance, key):
                raise NotReadyError(f"{key}: a run of it waits in the queue; nothing was done")
            for one in due:
                self._launch(key, one)
        return f"{key}: started {counted(len(due), 'run')} of {due[0].job}; the rest follows"

    def _launch(self, key: ExtractKey, due: DueRun) -> None:
        """Starts a run as any program does, by GraphQL.

        Raises:
            StorageError: Dagster does not start it; says why.
        """
        tags = {**queue_tags(key, is_staged=due.job != "stage_extract"), **due.tags}
        selector: dict[str, Any] = {**_LOCATION, "jobName": due.job}
        if due.assets:
            selector["assetSelection"] = [{"path": asset.path} for asset in due.assets]
        parameters = {
            "selector": selector,
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between this server and itself
            answer = session.post(
                f"{self.address}/graphql",
                json={"query": _LAUNCH, "variables": {"p": parameters}},
                timeout=_ANSWER_SECONDS,
            )
        found: dict[str, Any] = {"errors": [{"message": answer.text}]}
        if answer.ok:
            found = answer.json()
        launched = (found.get("data") or {}).get("launchRun") or {}
        if launched.get("__typename") != "LaunchRunSuccess":
            error = found["errors"][0] if found.get("errors") else launched
            reason = first_line(error.get("message") or error.get("__typename"))
            raise StorageError(f"{key}: {due.job} was not started: {reason}; see kbo doctor")


def _file(name: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        return FileResponse(_FILES / name, headers=_FILE_HEADERS)

    return answer


def _refused(status: int, line: object) -> Response:
    return PlainTextResponse(f"kbo_pipeline: {line}\n", status, _FRESH)


def _away(error: BaseException) -> Response:
    reason = first_line(error.__cause__ or error)
    return _refused(503, f"Dagster's storage: {reason}; ask again later")
