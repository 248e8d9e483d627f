"""docs/data.md: its queries run, what it says of columns is current, its links lead somewhere."""

import datetime
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools import data_docs

TEXT = data_docs.FILE.read_text(encoding="utf-8")
QUERIES = {
    title: query
    for title, query in re.findall(r"### ([^\n]+)\n(?:(?!###).)*?```sql\n(.*?)```", TEXT, re.DOTALL)
}
Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A Full and three Updates that change a lot."""
    directory = tmp_path_factory.mktemp("docs")
    sample = Sample(enterprises=1500, seed=12, change_shares=(0.3, 0.3, 0.3))
    core = Core(directory, batch_rows=5000)
    core.import_zip(sample.write_full(directory, 140))
    for number in (141, 142, 143):
        core.import_zip(sample.write_update(directory, number))
    return core


@pytest.fixture(scope="module")
def reader(core: Core) -> Iterator[duckdb.DuckDBPyConnection]:
    with core.read() as connection:
        yield connection


def renamed(reader: duckdb.DuckDBPyConnection) -> str:
    """An enterprise that was renamed and has moved."""
    ((number,),) = reader.execute(
        "SELECT min(entity_number) FROM (SELECT entity_number FROM denomination"
        " WHERE _deleted_at_extract IS NOT NULL INTERSECT SELECT entity_number FROM address"
        " WHERE type_of_address = 'REGO' AND _deleted_at_extract IS NOT NULL INTERSECT"
        " SELECT enterprise_number FROM current.enterprise INTERSECT"
        " SELECT enterprise_number FROM enterprise_at(141))"
    ).fetchall()
    assert number
    return str(number)


def postcode(reader: duckdb.DuckDBPyConnection) -> str:
    """One where there is a restaurant with a sign."""
    ((zipcode,),) = reader.execute(
        "SELECT min(zipcode) FROM current.address WHERE entity_number IN"
        " (SELECT entity_number FROM current.denomination WHERE type_of_denomination = '003')"
        " AND entity_number IN (SELECT entity_number FROM current.activity"
        " WHERE nace_version = '2025' AND nace_code LIKE '56%') AND type_of_address = 'BAET'"
    ).fetchall()
    assert zipcode
    return str(zipcode)


def signs(rows: Rows) -> None:
    assert len(rows) > 3
    assert all(None not in row[:3] for row in rows)
    assert any(row[3] for row in rows)


def by_sections(rows: Rows) -> None:
    assert len({section for section, _, _ in rows}) > 8
    assert {province for _, province, _ in rows} == {
        *("Brussels", "Antwerp", "Flemish Brabant", "Liège", "Namur", "Hainaut"),
        *("West Flanders", "East Flanders"),
    }
    assert sum(count for _, _, count in rows) > 500


def by_time(rows: Rows) -> None:
    assert all(isinstance(start, datetime.date) and count > 0 for start, count in rows)
    assert sum(count for _, count in rows) > 1
    assert [start for start, _ in rows] == sorted(start for start, _ in rows)


def moved(rows: Rows) -> None:
    assert len(rows) > 10
    assert all(before != after for *_, before, after in rows)


def largest(rows: Rows) -> None:
    assert len(rows) == 10
    assert rows[0][-1] >= rows[-1][-1] > 1


def history(rows: Rows) -> None:
    assert {what for _, _, what, _ in rows} == {"situation", "name", "seat"}
    ended = [row for row in rows if row[1] is not None]
    assert {what for _, _, what, _ in ended} >= {"name", "seat"}
    assert all(since < until for since, until, _, _ in ended)


def at_least(count: int, filled: int = 1) -> Callable[[Rows], None]:
    def check(rows: Rows) -> None:
        assert len(rows) >= count
        for place in range(filled):
            assert any(row[place] is not None for row in rows), place

    return check


EXPECTED: dict[str, Callable[[Rows], None]] = {
    "Restaurants and cafés of a postcode": signs,
    "An enterprise as it was at an extract": at_least(1, filled=5),
    "Enterprises by section and province": by_sections,
    "Bankruptcies by month": by_time,
    "New enterprises by week": by_time,
    "Who moved its seat in an extract": moved,
    "Who has the most establishment units": largest,
    "Names in several languages": at_least(5, filled=3),
    "Contacts of a sector": at_least(10, filled=4),
    "What activities mean, in the right version of NACE": at_least(20, filled=4),
    "All that changed of an enterprise": history,
}


def test_every_query_is_run_by_a_test() -> None:
    assert QUERIES.keys() == EXPECTED.keys()
    assert TEXT.count("```sql") == len(EXPECTED) >= 10


@pytest.mark.parametrize("title", EXPECTED)
def test_a_documented_query_finds_something(reader: duckdb.DuckDBPyConnection, title: str) -> None:
    query = QUERIES[title]
    for example, made_up in (("9000", postcode(reader)), ("0403.170.701", renamed(reader))):
        query = query.replace(f"'{example}'", f"'{made_up}'")
    EXPECTED[title](reader.execute(query).fetchall())


def test_what_is_generated_is_current() -> None:
    assert data_docs.written(TEXT) == TEXT, "python -m kbo_pipeline_tests.tools.data_docs writes it"
    for table in ALL_TABLES:
        for column in table.columns:
            assert f"| `{column.name}` | {column.type} | {column.description} |" in TEXT


def test_what_was_generated_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "data.md"
    file.write_text(TEXT.replace("| `zipcode` |", "| `postcode` |"), encoding="utf-8")
    data_docs.main(file)
    assert file.read_text(encoding="utf-8") == TEXT


def test_a_column_that_nobody_has_described_is_named() -> None:
    with pytest.raises(KeyError, match="colour_nl"):
        data_docs.meaning("colour_nl")


def test_the_views_have_the_columns_that_are_described(reader: duckdb.DuckDBPyConnection) -> None:
    for view in ("enterprise_profile", "invoicing", "activity_described", "nace", "source"):
        found = reader.execute(f"DESCRIBE current.{view}").fetchall()
        assert [(name, kind) for name, kind, *_ in found] == [*data_docs.view_columns(view)]


def test_its_links_lead_somewhere() -> None:
    titles = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) >= 4
    for link in links:
        file, _, anchor = link.partition("#")
        assert not file or (REPOSITORY / "docs" / file).is_file(), link
        assert file or anchor in titles, link
    assert "docs/data.md#natural-persons" in (REPOSITORY / "README.md").read_text()
    assert "natural-persons" in titles
