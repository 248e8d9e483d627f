"""`kbo mcp` as an agent uses it: a client of the protocol asks a real process."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from kbo_pipeline.publish.copy import renew_views
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.bakery import BAKER, FOREIGN, LATE, PERSON, SHOP, make_bakery
from kbo_pipeline_tests.support.core import Core

pytestmark = pytest.mark.file_only("the process opens a file")

Call = tuple[str, dict[str, Any]]

QUESTIONS: list[tuple[str, Call, Any]] = [
    ("What is the baker called?", ("show", {"number": BAKER}), "Bakkerij"),
    ("And in French?", ("show", {"number": BAKER, "language": "fr"}), "Boulangerie Céleste"),
    ("Whose is this shop?", ("show", {"number": SHOP}), BAKER),
    ("Which number is that, as on an invoice?", ("show", {"number": f"BE {BAKER}"}), BAKER),
    ("Where is its shop?", ("show", {"number": BAKER}), "Zavelbeke"),
    ("Since when does it exist?", ("show", {"number": BAKER}), "2001-02-03"),
    ("Is it a legal person?", ("show", {"number": BAKER}), "Rechtspersoon"),
    ("What was it called at first?", ("at", {"number": BAKER, "extract": "140"}), "Céleste"),
    ("And on a day?", ("at", {"number": BAKER, "extract": "2025-05-21"}), "0140-full"),
    ("Was the foreigner there then?", ("at", {"number": FOREIGN, "extract": "141"}), "Crumbs"),
    ("Who is new?", ("changes", {"since": "140", "kind": "new"}), LATE),
    ("Who has stopped?", ("changes", {"since": "141", "kind": "stopped"}), FOREIGN),
    ("What happened to it?", ("changes", {"since": "140", "number": BAKER}), BAKER),
    ("Who is at Zavelbeke?", ("find", {"zipcode": "1005"}), BAKER),
    ("Who sells bread?", ("find", {"nace": "4724"}), BAKER),
    ("What can be asked?", ("describe", {}), "current.enterprise_profile"),
    ("Who has gone?", ("describe", {"name": "stopped_enterprise"}), "last_snapshot_date"),
    ("What is in an address?", ("describe", {"name": "address"}), "Postal code"),
    ("What are the situations?", ("describe", {"name": "JuridicalSituation"}), "Normale toestand"),
    ("How many?", ("sql", {"query": "SELECT count(*) + 40 FROM current.enterprise"}), "43"),
    (
        "Whom may I send an invoice?",
        ("sql", {"query": "SELECT participant_id FROM current.invoicing"}),
        "0208:0200065765",
    ),
    (
        "Who was there at first?",
        ("sql", {"query": "SELECT primary_name FROM enterprise_at(140)"}),
        "Crumbs Ltd",
    ),
]
REFUSED: list[tuple[Call, str]] = [
    (("show", {"number": "0999.999.922"}), "not in the register"),
    (("show", {"number": "nobody"}), "nobody"),
    (("at", {"number": BAKER, "extract": "999"}), "not among the published extracts"),
    (("at", {"number": LATE, "extract": "140"}), "it is from 141 on"),
    (("changes", {"since": "140", "kind": "nothing"}), "kind"),
    (("find", {}), "look for"),
    (("find", {"zipcode": "9999"}), "9999"),
    (("find", {"zipcode": "1005", "limit": 5000}), "100"),
    (("match", {"name": "Bakkerij"}), "search index"),
    (("describe", {"name": "no'table"}), "no table, view, macro or category"),
    (("sql", {"query": "DROP TABLE main.enterprise"}), "one SELECT"),
    (("sql", {"query": "SELECT 1; SELECT 2"}), "one SELECT"),
    (("sql", {"query": "COPY (SELECT 1) TO '/tmp/kbo-agent'"}), "one SELECT"),
    (("sql", {"query": "SET lock_configuration = false"}), "one SELECT"),
    (("sql", {"query": "ATTACH 'x.duckdb'"}), "one SELECT"),
    (("sql", {"query": "FROM read_csv('/etc/passwd')"}), "disabled by configuration"),
    (("sql", {"query": "FROM read_text('/proc/self/environ')"}), "disabled by configuration"),
    (("sql", {"query": "FROM '/etc/passwd'"}), ""),
    (("sql", {"query": "FROM 'https://example.com/x.parquet'"}), ""),
    (("sql", {"query": "FROM register"}), ""),
    (("sql", {"query": "SELECT repeat('x', 500000)"}), "bytes"),
    (("sql", {"query": "SELECT"}), "Parser Error"),
    (("delete_everything", {}), "nknown tool"),
]


def play(core: Core, calls: list[Call], **settings: str) -> tuple[list[str], list[Any]]:
    """The names of the tools, and the result of each call, by one process."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KBO_")}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "kbo_pipeline.cli", "mcp"],
        env={**inherited, **core.settings, **settings},
        cwd=REPOSITORY,
    )

    async def ask() -> tuple[list[str], list[Any]]:
        async with (
            stdio_client(parameters) as (read, write),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            return names, [await called(session, *call) for call in calls]

    return asyncio.run(ask())


async def called(session: ClientSession, name: str, arguments: dict[str, Any]) -> Any:
    try:
        return await session.call_tool(name, arguments)
    except MCPError as error:  # a tool that is not there
        return error


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return make_bakery(tmp_path_factory.mktemp("agents"))


@pytest.fixture(scope="module")
def played(core: Core) -> tuple[list[str], list[Any]]:
    return play(core, [call for _, call, _ in QUESTIONS] + [call for call, _ in REFUSED])


def test_written_questions_have_their_answers_and_each_says_where_it_is_from(
    played: tuple[list[str], list[Any]],
) -> None:
    names, results = played
    assert names == ["find", "match", "show", "at", "changes", "describe", "sql"]
    for (question, _, expected), result in zip(QUESTIONS, results, strict=False):
        assert not result.is_error, (question, result)
        assert expected in result.content[0].text, question
        source = result.structured_content["source"]
        assert source["extract"] == "0142-update"
        assert (
            source["line"]
            == f"Source: KBO Open Data, FPS Economy; data of {source['snapshot_date']}"
        )


def test_what_cannot_or_must_not_be_answered_is_an_error_of_one_line(
    played: tuple[list[str], list[Any]], core: Core
) -> None:
    before = core.content_hash()
    for (call, expected), result in zip(REFUSED, played[1][len(QUESTIONS) :], strict=True):
        text = str(result) if isinstance(result, MCPError) else result.content[0].text
        assert isinstance(result, MCPError) or result.is_error, (call, text)
        assert expected in text, (call, text)
        assert "root:" not in text
        assert "Traceback" not in text
    assert not Path("/tmp/kbo-agent").exists()
    assert core.content_hash() == before


def test_natural_persons_are_left_out_and_there_is_no_sql(core: Core, tmp_path: Path) -> None:
    copy = Core(tmp_path)
    copy.database.write_bytes(core.database.read_bytes())
    assert renew_views(copy.database, "legal-persons")
    calls: list[Call] = [
        ("show", {"number": PERSON}),
        ("show", {"number": BAKER}),
        ("sql", {"query": "FROM main.enterprise"}),
    ]
    names, (person, baker, sql) = play(copy, calls, KBO_PRIVACY="legal-persons")
    assert "sql" not in names
    assert "left out by KBO_PRIVACY" in person.content[0].text
    assert not baker.is_error
    assert isinstance(sql, MCPError) or sql.is_error


@pytest.mark.long
def test_a_query_that_takes_too_long_is_stopped(core: Core) -> None:
    endless = "SELECT sum(a.i * b.i) FROM range(100000000) a(i), range(100000000) b(i)"
    calls: list[Call] = [("sql", {"query": endless}), ("show", {"number": BAKER})]
    _, (stopped, baker) = play(core, calls)
    assert stopped.is_error
    assert "longer than 20 s" in stopped.content[0].text
    assert not baker.is_error
