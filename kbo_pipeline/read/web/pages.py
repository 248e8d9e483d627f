"""What answers people: pages that need no script, in their language."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kbo_pipeline.core.errors import ExtractError, KboError, NotFoundError
from kbo_pipeline.core.text import sanitize
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline.read.types import dotted
from kbo_pipeline.read.web.asking import Asker, forgiving
from kbo_pipeline.read.web.served import Opened
from kbo_pipeline.read.web.words import READERS, Reader, Words, reader_of

FILES = Path(__file__).parent / "files"

PATHS = ("/kbo/search", "/kbo/enterprises/{number}")
"""Where the pages are that the web UI has too."""

_HITS = 50
_SHOWN = 50  # establishment units, and extracts of the history, of one enterprise
_MAP = "https://www.openstreetmap.org/search?query="
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:;"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
}

Lang = Annotated[Reader | None, Query()]
Text = Annotated[str, Query(max_length=200)]


@dataclass(frozen=True, slots=True)
class _Pages:
    """Renders pages, and says why where there is nothing to show."""

    asker: Asker
    templates: Environment

    async def answer(
        self,
        request: Request,
        lang: Reader | None,
        name: str,
        read: Callable[[PublishedRegister, Words], Mapping[str, Any]],
        variant: Callable[[PublishedRegister], str] = lambda register: "",
    ) -> Response:
        """The page of a template, with what is read for it; 304 for who has it already."""
        words = Words(lang or reader_of(request.headers.get("accept-language", "")))

        def make(opened: Opened) -> bytes:
            values = read(opened.register, words)
            return self.render(name, request, words, source=opened.source, **values)

        try:
            page = await self.asker.made(
                request, make, "text/html", lambda register: f"-{words.reader}{variant(register)}"
            )
        except (KboError, HTTPException) as error:
            status, line = _status_of(error)
            body = self.render("error.html", request, words, line=line)
            page = Response(body, status, media_type="text/html")
        page.headers.update({**_HEADERS, "Vary": "Accept-Language"})
        return page

    def render(self, name: str, request: Request, words: Words, **values: Any) -> bytes:
        """A page; every text is escaped."""
        asked = {k: v for k, v in request.query_params.items() if k != "lang"}
        page = self.templates.get_template(name).render(
            {"source": None, "q": asked.get("q", ""), "zipcode": asked.get("zipcode", "")}
            | values
            | {
                "root": request.scope.get("root_path", ""),
                "path": request.url.path,
                "asked": "".join(f"&{quote(k)}={quote(v)}" for k, v in asked.items()),
                "words": words,
                "readers": READERS,
            }
        )
        return page.encode("utf-8", "replace")


def _status_of(error: KboError | HTTPException) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, NotFoundError):
        return HTTPStatus.NOT_FOUND, str(error)
    if isinstance(error, ExtractError):
        return HTTPStatus.BAD_REQUEST, str(error)
    return HTTPStatus.SERVICE_UNAVAILABLE, str(error)


def router(app: FastAPI, asker: Asker) -> APIRouter:
    """The routes of pages."""
    templates = Environment(
        loader=FileSystemLoader(FILES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {
        "clean": sanitize,
        "map": lambda address: _MAP + quote(str(address)),
        "by_extract": _by_extract,
    }
    pages = _Pages(asker, templates)
    answers = APIRouter(include_in_schema=False)
    _add_files(answers, app, templates)
    _add_pages(answers, pages)
    return answers


def _add_files(answers: APIRouter, app: FastAPI, templates: Environment) -> None:
    @answers.get("/kbo/v1/docs")
    async def docs(request: Request) -> Response:
        page = templates.get_template("docs.html").render(
            api=app.openapi(), root=request.scope.get("root_path", "")
        )
        return Response(page, media_type="text/html", headers=_HEADERS)

    @answers.get("/kbo/v1/pages.css")
    async def style() -> Response:
        headers = {"Cache-Control": "max-age=3600"}
        return Response((FILES / "pages.css").read_bytes(), 200, headers, "text/css")


def _add_pages(answers: APIRouter, pages: _Pages) -> None:
    @answers.get("/kbo")
    async def home(request: Request, lang: Lang = None) -> Response:
        def read(register: PublishedRegister, words: Words) -> Mapping[str, Any]:
            return {"extracts": register.extracts}

        return await pages.answer(request, lang, "home.html", read)

    @answers.get("/kbo/search")
    async def search(
        request: Request, q: Text = "", zipcode: Text = "", lang: Lang = None
    ) -> Response:
        number = _number_in(q)
        if number is not None:
            root = request.scope.get("root_path", "")
            where = f"{root}/kbo/enterprises/{number}" + (f"?lang={lang}" if lang else "")
            return RedirectResponse(where, HTTPStatus.SEE_OTHER)

        def read(register: PublishedRegister, words: Words) -> Mapping[str, Any]:
            found = None
            if q.strip() or zipcode.strip():
                found = register.find(q, zipcode=zipcode.strip() or None, limit=_HITS + 1)
            return {"found": found, "most": _HITS}

        return await pages.answer(request, lang, "search.html", read, forgiving)

    @answers.get("/kbo/enterprises/{number}")
    async def enterprise(
        request: Request,
        number: str,
        at: Annotated[str | None, Query(max_length=40)] = None,
        everything: Annotated[bool, Query(alias="all")] = False,
        lang: Lang = None,
    ) -> Response:
        def read(register: PublishedRegister, words: Words) -> Mapping[str, Any]:
            found = register.enterprise(number, at, words.data)
            most = None if everything else _SHOWN
            return {"enterprise": found, "at": at, "most": most}

        return await pages.answer(request, lang, "enterprise.html", read)


def _number_in(text: str) -> str | None:
    try:
        return dotted(text)
    except NotFoundError:
        return None


def _by_extract(history: Any) -> list[tuple[Any, list[Any]]]:
    """Events of one extract together: its number and date, and they."""
    groups = groupby(history, key=lambda event: (event.extract_number, event.snapshot_date))
    return [(extract, list(events)) for extract, events in groups]
