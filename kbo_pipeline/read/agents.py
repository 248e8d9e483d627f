"""The published register for agents: the tools of `kbo mcp`, over the Model Context Protocol.

Each answer says which extract it is from, of which day, and the line to show with the data. A
publication is taken over as soon as it is there. Nothing can be changed.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any, Literal

import duckdb
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import KboError, NotFoundError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read.question import Question
from kbo_pipeline.read.register import PublishedRegister, open_as_set
from kbo_pipeline.read.types import Entry, Language
from kbo_pipeline.read.views import macro_queries, view_queries
from kbo_pipeline.read.web.models import EnterpriseShown, Source, to_json
from kbo_pipeline.read.web.served import Served

ANSWER_SECONDS = 20.0
MAX_ROWS = 1000
MAX_BYTES = 400_000
"""Of an answer: more than that fills an agent's memory."""

_INSTRUCTIONS = (
    "The Belgian register of enterprises (KBO/BCE Open Data): enterprises, their names, addresses,"
    " activities and establishment units, as of each published extract. Numbers look like"
    " 0403.170.701. Name `source.line` wherever you show the data. Personal data must not be used"
    " for direct marketing. Look for names with `find`, then ask for all of one with `show`."
)

Number = Annotated[
    str, Field(description="Of an enterprise, unit or branch; dots and BE are optional.")
]
Extract = Annotated[str, Field(description="A number, a key such as 0141-update, or a date.")]
Few = Annotated[int, Field(ge=1, le=100, description="At most so many.")]


def serve(settings: Settings) -> None:
    """Answers on standard input and output, until that is closed."""
    tools(settings).run("stdio")


def tools(settings: Settings) -> MCPServer[Any]:
    """The server with its tools; `sql` only where everybody may be shown."""
    server: MCPServer[Any] = MCPServer("kbo", instructions=_INSTRUCTIONS, log_level="ERROR")
    asker = _Asker(settings)
    every: list[Callable[..., Any]] = [
        asker.find,
        asker.match,
        asker.show,
        asker.at,
        asker.changes,
        asker.describe,
    ]
    if settings.privacy == "full":  # the tables that views leave somebody out of hold everybody
        every.append(asker.sql)
    for tool in every:
        server.tool()(tool)
    return server


class _Asker:
    """The tools; each docstring is what an agent is told of it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._served = Served(settings)

    def find(
        self,
        text: str = "",
        zipcode: str | None = None,
        nace: str | None = None,
        limit: Few = 10,
    ) -> dict[str, Any]:
        """Find current enterprises by name, also misspelt, by place and by activity.

        `text` takes names, a legal form, a place, an address or a number; `zipcode` a postcode;
        `nace` the first digits of a NACE code. Hits are in order, the best first.
        """

        def ask(register: PublishedRegister) -> Any:
            hits = register.find(text, zipcode=zipcode, nace=nace, limit=limit)
            if not hits:
                register.check_known(zipcode=zipcode, nace=nace)
            return hits

        return self._answer(ask)

    def match(
        self, name: str, zipcode: str | None = None, number: str | None = None
    ) -> dict[str, Any]:
        """Say which enterprise a name, as somebody wrote it, most likely is.

        Gives the candidates with a score from 0 to 1, whether the best is certain, and why.
        """
        return self._answer(lambda register: next(register.match([Entry(name, zipcode, number)])))

    def show(self, number: Number, language: Language = "nl") -> dict[str, Any]:
        """Show one enterprise: names, addresses, activities, units, and what changed when."""
        return self._enterprise(number, None, language)

    def at(self, number: Number, extract: Extract, language: Language = "nl") -> dict[str, Any]:
        """Show one enterprise as it was at an earlier extract, or at the end of a day."""
        return self._enterprise(number, extract, language)

    def _enterprise(self, number: str, extract: str | None, language: Language) -> dict[str, Any]:
        return self._answer(
            lambda register: EnterpriseShown.values(register.enterprise(number, extract, language))
        )

    def changes(
        self,
        since: Extract,
        kind: str | None = None,
        number: str | None = None,
        limit: Few = 50,
    ) -> dict[str, Any]:
        """List what changed after an extract, the oldest first: of all, a kind, or a number.

        Kinds are such as new, stopped, moved, name, bankruptcy. `since` also takes the `cursor` of
        the last event that you have, to go on behind it.
        """

        def ask(register: PublishedRegister) -> Any:
            kinds = None if kind is None else [kind]
            return list(islice(register.changes_since(since, kinds=kinds, number=number), limit))

        return self._answer(ask)

    def describe(self, name: str | None = None) -> dict[str, Any]:
        """Describe what `sql` can ask: all tables, views and macros, or the columns of one.

        `name` may also be a category of codes, such as JuridicalForm or Nace2025: its codes are
        listed with their meanings.
        """

        def ask(register: PublishedRegister) -> Any:
            return _everything(register) if name is None else _described(register, name)

        return self._answer(ask)

    def sql(self, query: str) -> dict[str, Any]:
        """Ask one SELECT in the dialect of DuckDB; at most 1,000 rows.

        Use current.<table>, current.enterprise_profile, current.invoicing, <table>_at(n) and
        <table>_changes(n); `describe` lists them with their columns. Select few columns, aggregate
        where you can.
        """
        with self._question() as question, question.asked(), _locked(self._settings) as register:
            rows = _rows(register, query)
            return _packed(Source.of(register, register.publication), rows)

    def _answer(self, ask: Callable[[PublishedRegister], Any]) -> dict[str, Any]:
        with self._question() as question, question.asked(), self._served.opened() as opened:
            return _packed(opened.source, ask(opened.register))

    @contextmanager
    def _question(self) -> Iterator[Question]:
        """Stops what takes too long, and makes errors those of a tool."""
        question = Question()
        timer = threading.Timer(ANSWER_SECONDS, question.stop)
        timer.daemon = True
        timer.start()
        try:
            yield question
        except duckdb.InterruptException:
            raise ToolError(f"longer than {ANSWER_SECONDS:.0f} s; ask for less") from None
        except (KboError, ValueError) as error:
            raise ToolError(str(error)) from None
        except duckdb.Error as error:
            raise ToolError(first_line(error)) from None
        finally:
            timer.cancel()


def _packed(source: Source, data: Any) -> dict[str, Any]:
    """An answer as plain values."""
    text = to_json({"source": source, "data": data})
    if len(text) > MAX_BYTES:
        raise ToolError(f"an answer of {len(text):,} bytes, more than {MAX_BYTES:,}; ask for less")
    answer: dict[str, Any] = json.loads(text)
    return answer


@contextmanager
def _locked(settings: Settings) -> Iterator[PublishedRegister]:
    """A register of its own for one query, which reaches nothing but the register.

    No other file, no address, no extension, no setting: whatever a query might try.
    """
    with open_as_set(settings) as register:
        for statement in (
            "SET temp_directory = ''",
            f"SET memory_limit = '{settings.memory_mb}MiB'",
            "SET enable_external_access = false",
            "SET lock_configuration = true",
        ):
            register.connection.execute(statement)
        yield register


def _rows(register: PublishedRegister, query: str) -> dict[str, Any]:
    statements = register.connection.extract_statements(query)
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise ToolError("one SELECT, and nothing else, may be asked")
    relation = register.sql(query)
    rows = relation.fetchmany(MAX_ROWS + 1)
    return {
        "columns": relation.columns,
        "rows": rows[:MAX_ROWS],
        "has_more": len(rows) > MAX_ROWS,
    }


def _everything(register: PublishedRegister) -> dict[str, Any]:
    described = {f"current.{table.name}": table.description for table in ALL_TABLES}
    categories = register.sql('SELECT DISTINCT category FROM "current".code ORDER BY 1').fetchall()
    return {
        "tables": described,
        "views": [f"current.{name}" for name in view_queries("full")],
        "macros": [f"{name}(n)" for name in macro_queries("full")],
        "extracts": [extract.key for extract in register.extracts],
        "categories": [category for (category,) in categories],
    }


def _described(register: PublishedRegister, name: str) -> dict[str, Any]:
    plain = name.removeprefix("current.").removesuffix("(n)")
    meanings = {c.name: c.description for t in ALL_TABLES if t.name == plain for c in t.columns}
    source: Literal["macro", "view"] | None = None
    if plain in view_queries("full"):
        source = "view"
    elif plain in macro_queries("full"):
        source = "macro"
    if source is None:
        codes = register.sql(
            'SELECT code, language, description FROM "current".code WHERE category = $name'
            " ORDER BY ALL",
            name=name,
        ).fetchmany(MAX_ROWS)
        if not codes:
            raise NotFoundError(f"{name!r}: no table, view, macro or category; describe lists them")
        return {"codes": codes}
    asked = f'"current".{plain}' if source == "view" else f"{plain}({register.extracts[0].number})"
    columns = Database(register.connection).execute(f"DESCRIBE FROM {asked}").fetchall()
    return {
        "columns": [
            {"name": column, "type": kind, "description": meanings.get(column, "")}
            for column, kind, *_ in columns
        ]
    }
