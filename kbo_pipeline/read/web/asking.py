"""Answers questions in threads of their own, within a time, for as long as somebody waits."""

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import duckdb
from fastapi import HTTPException, Request, Response

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.read.question import Question
from kbo_pipeline.read.register import PublishedRegister, unreadable
from kbo_pipeline.read.web.models import to_json
from kbo_pipeline.read.web.served import Opened, Served

ANSWER_SECONDS = 10.0
"""For which a question is answered, the time that it waits for its turn included."""

THREADS = 8
"""Questions that are answered at a time; others wait."""

WAITING = 100
"""Questions that wait at most; who comes then is asked to come again."""

_LOOK_SECONDS = 0.25  # whether who asks is still there

Ask = Callable[[PublishedRegister], Any]
Make = Callable[[Opened], bytes]
Variant = str | Callable[[PublishedRegister], str]


class Asker:
    """Answers from the newest publication."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._threads = ThreadPoolExecutor(THREADS, "kbo-read")
        self._at_work = 0

    async def answer(self, request: Request, ask: Ask, variant: Variant = "") -> Response:
        """What a question finds, as JSON, with its source; 304 for who has it already.

        Args:
            request: whose address is the question.
            ask: what to do with the register.
            variant: which of several answers at that address.

        Raises:
            HTTPException: it takes too long, or too many wait.
            KboError: there is no answer.
        """

        def make(opened: Opened) -> bytes:
            data = ask(opened.register)
            return to_json({"source": opened.source, "data": data})

        return await self.made(request, make, "application/json", variant)

    async def made(
        self, request: Request, make: Make, media_type: str, variant: Variant = ""
    ) -> Response:
        """What is made of a publication; otherwise as `answer`.

        Args:
            request: whose address says what is asked for.
            make: makes it.
            media_type: of what is made.
            variant: which of several answers at that address.
        """
        address = (request.url.path, request.url.query)
        known = request.headers.get("if-none-match", "")

        def work() -> Response:
            with self.served.opened() as opened:
                which = variant if isinstance(variant, str) else variant(opened.register)
                tag = f'"{opened.publication.identity}{which}"'
                headers = {"ETag": tag, "Cache-Control": "no-cache"}
                if _has(known, tag):
                    return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
                return Response(_body(opened, (*address, which), make), 200, headers, media_type)

        response: Response = await self.work(request, work)
        return response

    async def answer_anew(self, request: Request, ask: Ask) -> Response:
        """What a question finds that is not in the address alone; otherwise as `answer`."""

        def work() -> Response:
            with self.served.opened() as opened:
                body = to_json({"source": opened.source, "data": ask(opened.register)})
            return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")

        response: Response = await self.work(request, work)
        return response

    async def work(self, request: Request, work: Callable[[], Any]) -> Any:
        """What a function returns, which asks registers, in one of the threads.

        Takes and raises what `answer` does.
        """
        if self._at_work >= THREADS + WAITING:
            raise _later("too many questions at a time; ask again")
        question = Question()

        def asked() -> Any:
            with question.asked():
                return work()

        ends_at = time.monotonic() + ANSWER_SECONDS
        self._at_work += 1
        task = self._threads.submit(asked)
        answer = asyncio.wrap_future(task)
        try:
            while not (await asyncio.wait({answer}, timeout=_LOOK_SECONDS))[0]:
                if time.monotonic() > ends_at or await request.is_disconnected():
                    raise _later(f"it takes longer than {ANSWER_SECONDS:.0f} s; ask for less")
            return answer.result()
        finally:
            answer.cancel()
            while not task.done() and not task.cancel():  # it is at work, and nobody waits for it
                question.stop()
                await asyncio.sleep(0.05)
            self._at_work -= 1


def forgiving(register: PublishedRegister) -> str:
    """The variant of a search: with the search index, which comes after the publication, or not."""
    return "" if register.why_not_forgiving() else "-forgiving"


def _later(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "5"})


def _body(opened: Opened, address: Hashable, make: Make) -> bytes:
    body = opened.kept(address)
    if body is None:
        try:
            body = make(opened)
        except (duckdb.IOException, duckdb.SerializationException) as error:
            raise NotReadyError(str(unreadable(opened.register.place, error))) from None
        opened.keep(address, body)
    return body


def _has(known: str, tag: str) -> bool:
    """Whether the tags of `If-None-Match` hold this one."""
    return tag in (text.strip().removeprefix("W/") for text in known.split(","))
