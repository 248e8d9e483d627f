"""What answers programs below `/kbo/v1`."""

from collections.abc import Callable
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Depends, HTTPException, Path, Query, Request, Response
from pydantic import TypeAdapter

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.read import feed, question
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline.read.types import Entry, Language, Match, Matched, dotted
from kbo_pipeline.read.web.asking import Asker, forgiving
from kbo_pipeline.read.web.models import Answer, EnterpriseShown, Events, Problem, Published

T = TypeVar("T")

BEGINNING = "/kbo/v1"
"""With what the addresses begin."""

MAX_HITS = 100
MAX_ENTRIES = 1000
MAX_EVENTS = 10_000

_PROBLEM = {"application/problem+json": {"schema": TypeAdapter(Problem).json_schema()}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Why it cannot be answered, in one line.", "content": _PROBLEM},
    "503": {"description": "Why there is no answer now; ask again later.", "content": _PROBLEM},
}
"""What is answered where there is no other answer."""

_UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "What `If-None-Match` names is still the answer."}
}

Number = Annotated[
    str,
    Path(
        description="Of an enterprise, or of one of its establishment units or branches; with or"
        " without dots and BE.",
        max_length=100,
        examples=["0230.673.126"],
    ),
]
At = Annotated[
    str | None,
    Query(
        description="As it was at this extract: a number, a key or a date.",
        max_length=40,
        examples=["140", "0141-update", "2025-10-05"],
    ),
]
Lang = Annotated[Language, Query(description="Language of codes, streets and places.")]
Zipcode = Annotated[
    str | None,
    Query(
        description="Of an address of the enterprise or of one of its units.",
        max_length=20,
    ),
]


def router(asker: Asker) -> APIRouter:
    """The routes, which answer from what an `Asker` has open."""
    answers = APIRouter(
        prefix=BEGINNING,
        responses=PROBLEMS | _UNCHANGED,
        dependencies=[Depends(_only_known_parameters)],
    )
    _add_enterprise(answers, asker)
    _add_find(answers, asker)
    _add_match(answers, asker)
    _add_changes(answers, asker)
    _add_source(answers, asker)
    return answers


def _only_known_parameters(request: Request) -> None:
    """Refuses a misspelt parameter, without which something else would be answered."""
    known = sorted(p.alias for p in request.scope["route"].dependant.query_params)
    for name in request.query_params:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there is none"
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, f"{name[:40]!r}: no parameter here; {there}"
            )


def _well_formed(check: Callable[[], T]) -> T:
    """What a function makes of what was asked for, where its error is about that alone."""
    try:
        return check()
    except NotFoundError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None


def check_characters(*texts: str | None) -> None:
    """Refuses half a character, which JSON can escape and nothing else can hold."""
    for text in texts:
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, f"{ascii(text)[:60]}: a character that UTF-8 does not have"
            ) from None


def _add_enterprise(answers: APIRouter, asker: Asker) -> None:
    @answers.get("/enterprises/{number}", response_model=Answer[EnterpriseShown])
    async def enterprise(
        request: Request, number: Number, at: At = None, lang: Lang = "nl"
    ) -> Response:
        """One enterprise with all that belongs to it, and its history.

        As `kbo show --json` prints it.
        """
        known = _well_formed(lambda: dotted(number))

        def ask(register: PublishedRegister) -> Any:
            return EnterpriseShown.values(register.enterprise(known, at, lang))

        return await asker.answer(request, ask)


def _add_find(answers: APIRouter, asker: Asker) -> None:
    @answers.get("/find", response_model=Answer[list[Match]])
    async def find(
        request: Request,
        q: Annotated[
            str,
            Query(
                description="Words of a name, with legal form or place; an address; a number.",
                max_length=200,
                examples=["bakker"],
            ),
        ] = "",
        zipcode: Zipcode = None,
        nace: Annotated[
            str | None,
            Query(
                description="First digits of a NACE code of an activity of any of them.",
                max_length=10,
            ),
        ] = None,
        nace_version: Annotated[
            str | None, Query(description="Of that code; by default the newest.", max_length=4)
        ] = None,
        status: Annotated[
            str | None, Query(description="KBO's code, such as AC.", max_length=10)
        ] = None,
        limit: Annotated[int, Query(description="At most.", ge=1, le=MAX_HITS)] = 20,
    ) -> Response:
        """Current enterprises by name, address, number or activity, the best matches first.

        One of `q`, `zipcode` and `nace` is needed. `q` may be misspelt, unless the search index is
        being made: `is_exact` says what was forgiven.
        """
        codes = {
            "zipcode": zipcode,
            "nace": nace,
            "nace_version": nace_version,
            "status": status,
        }

        def ask(register: PublishedRegister) -> Any:
            matches = _well_formed(lambda: register.find(q, limit=limit, **codes))
            if not matches:
                register.check_known(**codes)
            return matches

        return await asker.answer(request, ask, forgiving)


def _add_match(answers: APIRouter, asker: Asker) -> None:
    @answers.post("/match", response_model=Answer[list[Matched]])
    async def match(
        request: Request,
        entries: Annotated[
            list[Entry],
            Body(
                description=f"Who is looked for, {MAX_ENTRIES:,} at most.",
                max_length=MAX_ENTRIES,
                examples=[[{"name": "Bakkerij Kerremeulen 801", "zipcode": "6010"}]],
            ),
        ],
    ) -> Response:
        """Who the entries of a list are: the candidates, the best first, and whether it is certain.

        The answers come in the order of the entries.
        """
        for entry in entries:
            check_characters(entry.name, entry.zipcode, entry.number)

        def ask(register: PublishedRegister) -> Any:
            found = []
            for matched in register.match(entries):
                question.check()
                found.append(matched)
            return found

        return await asker.answer_anew(request, ask)


def _add_changes(answers: APIRouter, asker: Asker) -> None:
    @answers.get("/changes", response_model=Answer[Events])
    async def changes(
        request: Request,
        after: Annotated[
            str,
            Query(
                description="The cursor of the last event that was read, or an extract.",
                max_length=200,
                examples=["0140-full"],
            ),
        ],
        kind: Annotated[
            list[str] | None,
            Query(description="Of this kind; may be repeated.", max_length=50),
        ] = None,
        number: Annotated[
            str | None,
            Query(
                description="Of this entity; of an enterprise, with its units and branches.",
                max_length=100,
            ),
        ] = None,
        limit: Annotated[int, Query(description="At most.", ge=1, le=MAX_EVENTS)] = 1000,
    ) -> Response:
        """The changes of all extracts after a cursor or an extract, in their order.

        Ask again with `after` set to `next`. Behind a rollback, the first event is `rolled_back`.
        """
        kinds = _well_formed(lambda: feed.known("kind", kind))
        known = None if number is None else _well_formed(lambda: dotted(number))

        def ask(register: PublishedRegister) -> Any:
            every = register.changes_since(after, kinds=kinds, number=known)
            events = tuple(islice(every, limit + 1))
            has_more = len(events) > limit
            # Whatever the parameters left out need not be read again.
            following = events[limit - 1].cursor if has_more else register.cursor()
            return Events(events[:limit], following, has_more)

        return await asker.answer(request, ask)


def _add_source(answers: APIRouter, asker: Asker) -> None:
    @answers.get("/source", response_model=Answer[Published])
    async def source(request: Request) -> Response:
        """What is published: the extracts, who is shown, and what is proven."""

        def ask(register: PublishedRegister) -> Any:
            shown = register.publication
            return Published(
                register.extracts, shown.privacy, shown.proven_extract_number, shown.proven_at
            )

        return await asker.answer(request, ask)
