"""The Reconciliation API of the W3C (version 0.2), by which OpenRefine matches a column.

https://www.w3.org/community/reports/reconciliation/CG-FINAL-specs-0.2-20230410/
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.read import question
from kbo_pipeline.read.match import CANDIDATES
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline.read.types import Entry, Match, Matched
from kbo_pipeline.read.web.asking import Asker
from kbo_pipeline.read.web.models import to_json
from kbo_pipeline.read.web.routes import BEGINNING, PROBLEMS, check_characters
from kbo_pipeline.read.web.served import Opened

VERSION = "0.2"

IDENTIFIERS = "https://kbopub.economie.fgov.be/kbopub/zoeknummerform.html?nummer="
SCHEMA = "https://schema.org/Organization"
"""What the identifiers are, and of what: the same for all services with KBO's numbers."""

BATCH = 100
"""Queries that are answered at once."""

_PATH = f"{BEGINNING}/reconcile"
_SUGGESTED = 10
_LONGEST_SHOWN = 300

_FORM = "application/x-www-form-urlencoded"
_EXAMPLE = '{"q0": {"query": "Bakkerij", "properties": [{"pid": "zipcode", "v": "6010"}]}}'
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {
                "schema": {
                    "type": "object",
                    "required": ["queries"],
                    "properties": {"queries": {"type": "string", "examples": [_EXAMPLE]}},
                }
            }
        },
    }
}


@dataclass(frozen=True, slots=True)
class Named:
    """A type, or a property, of entities."""

    id: str
    name: str


ENTERPRISE = Named("enterprise", "Enterprise")

PROPERTIES = (
    Named("zipcode", "Postcode of any address"),
    Named("number", "Number of the enterprise, a unit or a branch"),
)
"""What a query may say besides a name."""

Value = str | bool | float | Mapping[str, Any]


@checked(frozen=True)
class Property:
    """What a query says besides the name."""

    pid: str
    v: Value | list[Value]

    @property
    def text(self) -> str | None:
        """The first of the values that says anything."""
        for value in self.v if isinstance(self.v, list) else [self.v]:
            known = value.get("id") if isinstance(value, Mapping) else value
            if known not in (None, ""):
                whole = isinstance(known, float) and known.is_integer()
                return str(int(known) if whole else known)
        return None


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Asked:
    """A query. All entities have the same type, so that types leave nobody out."""

    query: str = ""
    type: str | list[str] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    properties: list[Property] = field(default_factory=list)
    type_strict: Literal["any", "should", "all"] | None = None

    @property
    def entry(self) -> Entry:
        """Who is looked for.

        Raises:
            HTTPException: nobody is, or a property is unknown.
        """
        known = {p.id for p in PROPERTIES}
        for asked in self.properties:
            if asked.pid not in known:
                raise _malformed(f"no property {asked.pid[:40]!r}; there are zipcode, number")
        values = {asked.pid: asked.text for asked in self.properties}
        entry = Entry(self.query, values.get("zipcode"), values.get("number"))
        if not self.query.strip() and not self.properties:
            raise _malformed("a query without query and properties")
        check_characters(entry.name, entry.zipcode, entry.number)
        return entry


@dataclass(frozen=True, slots=True)
class Candidate:
    """An enterprise that may be meant; `match` where it certainly is."""

    id: str
    name: str
    description: str
    type: tuple[Named, ...]
    score: float
    match: bool


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is found for a query, the best first."""

    result: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the beginning of a text may become."""

    id: str
    name: str
    description: str
    notable: tuple[Named, ...] = ()


@dataclass(frozen=True, slots=True)
class Suggestions:
    """What the beginning of a text may become, the best first."""

    result: tuple[Suggestion, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Where the page of an entity is."""

    url: str


@dataclass(frozen=True, slots=True)
class Service:
    """Where suggestions come from."""

    service_url: str
    service_path: str


@dataclass(frozen=True, slots=True)
class Suggests:
    """Of what there are suggestions."""

    entity: Service
    property: Service
    type: Service


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the service is, and what it can do; `name` has the source line."""

    versions: tuple[str, ...]
    name: str
    identifierSpace: str
    schemaSpace: str
    defaultTypes: tuple[Named, ...]
    view: View
    suggest: Suggests
    batchSize: int


Batch = dict[str, Asked]
_BATCH: TypeAdapter[Batch] = TypeAdapter(Batch)

Prefix = Annotated[str, Query(description="The beginning of a text.", max_length=200)]


def router(asker: Asker) -> APIRouter:
    """The routes; parameters that they do not know are ignored, as the protocol has it."""
    answers = APIRouter(prefix=_PATH, responses=PROBLEMS)
    _add_service(answers, asker)
    _add_suggest(answers, asker)
    return answers


def _add_service(answers: APIRouter, asker: Asker) -> None:
    @answers.get("", response_model=Manifest | dict[str, Candidates])
    async def reconcile(
        request: Request,
        queries: Annotated[
            str | None,
            Query(description="As with POST; without it, the answer is the manifest."),
        ] = None,
    ) -> Response:
        """What the service is; or, with `queries`, who their entities are."""
        if queries is None:
            return await _answer(asker, request, lambda opened: _manifest(request, opened))
        return await _reconciled(asker, request, queries)

    @answers.post("", response_model=dict[str, Candidates], openapi_extra=_BODY)
    async def reconcile_form(request: Request) -> Response:
        """Who the entities of queries are: W3C Reconciliation API 0.2, for OpenRefine.

        `queries` is JSON: an object with a query by any name, such as
        `{"q0": {"query": "name", "properties": [{"pid": "zipcode", "v": "9000"}]}}`.
        """
        body = (await request.body()).decode("utf-8", "replace")
        try:
            form = parse_qs(body, max_num_fields=20)
        except ValueError:
            form = {}
        if len(form.get("queries", ())) != 1:
            raise _malformed(f"expected a form ({_FORM}) with one field: queries")
        return await _reconciled(asker, request, form["queries"][0])


def _add_suggest(answers: APIRouter, asker: Asker) -> None:
    @answers.get("/suggest/entity", response_model=Suggestions)
    async def entities(request: Request, prefix: Prefix = "") -> Response:
        """Enterprises whose name begins so, or nearly."""
        check_characters(prefix)

        def make(opened: Opened) -> Suggestions:
            return Suggestions(tuple(map(_suggestion, _found(opened.register, prefix))))

        return await _answer(asker, request, make)

    @answers.get("/suggest/property", response_model=Suggestions)
    async def properties(prefix: Prefix = "") -> Response:
        """What a query may say besides the name."""
        return _known(PROPERTIES, prefix)

    @answers.get("/suggest/type", response_model=Suggestions)
    async def types(prefix: Prefix = "") -> Response:
        """The one type of all entities."""
        return _known((ENTERPRISE,), prefix)


async def _answer(asker: Asker, request: Request, make: Callable[[Opened], Any]) -> Response:
    def work() -> Response:
        with asker.served.opened() as opened:
            body = to_json(make(opened))
        return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")

    response: Response = await asker.work(request, work)
    return response


async def _reconciled(asker: Asker, request: Request, queries: str) -> Response:
    try:
        batch = _BATCH.validate_json(queries.encode("utf-8", "replace"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _malformed(f"queries{'.' if where else ''}{where}: {first['msg']}") from None
    if len(batch) > BATCH:
        detail = f"{len(batch):,} queries; {BATCH} are answered at once"
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    check_characters(*batch)
    entries = [asked.entry for asked in batch.values()]

    def make(opened: Opened) -> dict[str, Candidates]:
        found = {}
        for (name, asked), matched in zip(
            batch.items(), opened.register.match(entries), strict=True
        ):
            question.check()
            found[name] = _candidates(matched, asked.limit or CANDIDATES)
        return found

    return await _answer(asker, request, make)


def _candidates(matched: Matched, limit: int) -> Candidates:
    return Candidates(
        tuple(
            Candidate(
                found.enterprise_number,
                found.name,
                _described(found),
                (ENTERPRISE,),
                round(100 * found.score, 2),
                matched.certain and place == 0,
            )
            for place, found in enumerate(matched.candidates[:limit])
        )
    )


def _found(register: PublishedRegister, prefix: str) -> list[Match]:
    try:
        return register.find(prefix, limit=_SUGGESTED)
    except NotFoundError:  # there is nothing to look for
        return []


def _suggestion(found: Match) -> Suggestion:
    return Suggestion(found.enterprise_number, found.name, _described(found), (ENTERPRISE,))


def _described(found: Match) -> str:
    """What tells an enterprise from others of the same name."""
    parts = [found.enterprise_number, f"{found.zipcode or ''} {found.municipality or ''}".strip()]
    if found.status not in (None, "AC"):
        parts.append(f"status {found.status}")
    if found.matched not in (None, found.name, found.matched_number):
        parts.append(f"found as {found.matched}")
    return ", ".join(filter(None, parts))[:_LONGEST_SHOWN]


def _known(names: tuple[Named, ...], prefix: str) -> Response:
    """Those of some names that hold a text, by id or name."""
    text = prefix.casefold()
    found = (n for n in names if text in n.id.casefold() or text in n.name.casefold())
    suggestions = Suggestions(tuple(Suggestion(n.id, n.name, "") for n in found))
    return Response(to_json(suggestions), media_type="application/json")


def _manifest(request: Request, opened: Opened) -> Manifest:
    root = str(request.base_url).rstrip("/")
    service = f"{root}{_PATH}"
    return Manifest(
        (VERSION,),
        f"Belgian enterprises ({opened.source.line})",
        IDENTIFIERS,
        SCHEMA,
        (ENTERPRISE,),
        View(f"{root}/kbo/enterprises/{{{{id}}}}"),
        Suggests(*(Service(service, f"/suggest/{of}") for of in ("entity", "property", "type"))),
        BATCH,
    )


def _malformed(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.BAD_REQUEST, detail)
