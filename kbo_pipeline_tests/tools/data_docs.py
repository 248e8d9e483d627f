"""`python -m kbo_pipeline_tests.tools.data_docs` writes columns and keys into docs/data.md."""

from collections.abc import Iterator
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.schema import create
from kbo_pipeline.core.tables import ADDRESS, ALL_TABLES, ENTERPRISE, Column, Table
from kbo_pipeline.read.views import ACTIVITY_GROUPS, INVOICING, PROFILE, create_views
from kbo_pipeline_tests.support import REPOSITORY

FILE = REPOSITORY / "docs" / "data.md"

_LANGUAGES = {"nl": "Dutch", "fr": "French", "de": "German"}
_OWNERS = {"0": "enterprise", "2": "establishment", "9": "branch"}
_MEANINGS = {
    "vat_number": "The number as VAT numbers are written, such as `BE0403170701`.",
    "primary_name": "The name, by the rule above.",
    "primary_name_language": "Language of that name, as KBO codes it; none for a number.",
    "abbreviation": "Name of type 002, by the same rule.",
    "commercial_name": "Name of type 003, by the same rule.",
    "main_nace_version": "NACE version of the main activity, by the rule above.",
    "main_nace_code": "Code of the main activity.",
    "main_section": "Letter of its section.",
    "main_classification": "MAIN, unless the enterprise has no such activity in that version.",
    "main_activity_group": "Who registered the activity.",
    "establishments": "Number of current establishment units.",
    "public_search_url": "KBO's page about the enterprise.",
    "division": "First two digits of the code.",
    "section": "Letter of the section that the division is in.",
    "level": "section, division, group, class, subclass, or detail (7 digits, KBO's own).",
    "parent_code": "The code above; none for a section.",
    "nace_version": "2003, 2008 or 2025.",
    "nace_code": "The code, as text.",
    "extract": "Key of the newest published extract.",
    "extract_number": "Its number.",
    "snapshot_date": "The data is as of the end of this day.",
    "source": "The source line to show with the data.",
    "privacy": "Who is in the views: `full`, or `legal-persons`.",
    "proven_extract_number": "Number of the newest extract at which the register was equal to KBO's"
    " Full; `NULL` if nobody has compared.",
    "proven_at": "When that was.",
    "participant_id": "Its identifier as a participant in Peppol: `0208:` and ten digits.",
    "address_of": "Number of the enterprise if the address is its seat, or of the establishment"
    " unit whose address it is; `NULL` if there is none.",
    "last_extract_number": "Number of the last extract that had it.",
    "last_snapshot_date": "Date of that extract: the enterprise was last seen on it.",
    "stopped_at_extract": "Number of the extract in which it went.",
} | {
    f"has_{word}_activities": f"Whether it or a unit of it has an activity of group {code}."
    for code, word in ACTIVITY_GROUPS.items()
}
_VIEWS = {
    PROFILE: "One row for each enterprise, with what the other tables say about it.",
    INVOICING: "One row for each enterprise, with what [an invoice](#invoicing) to it needs.",
    "activity_described": "One row for each activity, with the meaning of its codes.",
    "nace": "One row for each NACE code of each version.",
    "source": "One row: the source of the data.",
}
_MACROS = {
    "stopped_enterprise": "One row for each enterprise that had gone by extract *n*, as it was at"
    " last.",
}


def diagram() -> str:
    """How the tables refer to each other, as a diagram in Mermaid."""
    lines = ["```mermaid", "erDiagram"]
    for table in ALL_TABLES:
        for column in table.columns:
            if not column.number or (table.unique_key and column.name == table.key):
                continue
            for digit in (d for d in column.number if d in _OWNERS):
                lines.append(f"    {_OWNERS[digit]} ||--o{{ {table.name} : {column.name}")
    for table in ALL_TABLES:
        lines.append(f"    {table.name} {{")
        for column in table.columns:
            mark = " PK" if table.unique_key and column.name == table.key else ""
            lines.append(f"        {column.type} {column.name}{mark}")
        lines.append("    }")
    return "\n".join([*lines, "```"])


def tables() -> str:
    """All tables and views, column by column."""
    parts = [_of_table(table) for table in ALL_TABLES]
    named = {f"current.{name}": (f'FROM "current".{name}', text) for name, text in _VIEWS.items()}
    named |= {f"{name}(n)": (f"FROM {name}(1)", text) for name, text in _MACROS.items()}
    parts += [_of_query(title, query, text) for title, (query, text) in named.items()]
    return "\n\n".join(parts)


def _of_table(table: Table) -> str:
    key = f"`{table.key}`, one current row each" if table.unique_key else "none"
    named = ", ".join(f"`{name}`" for name in table.natural_key)
    rows = [f"| `{c.name}` | {c.type} | {c.description} | {_codes(c)} |" for c in table.columns]
    return "\n".join(
        [
            f"### `{table.name}`",
            "",
            f"{table.description} Unique: {key}; rows are told apart by {named}.",
            "",
            "| column | type | meaning | in `code` |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _codes(column: Column) -> str:
    category = column.code_category or ""
    return (
        f"`{category}`".replace("{nace_version}", "2003`, `Nace2008`, `Nace2025")
        if category
        else ""
    )


def _of_query(title: str, query: str, text: str) -> str:
    return "\n".join(
        [
            f"### `{title}`",
            "",
            text,
            "",
            "| column | type | meaning |",
            "|---|---|---|",
            *(f"| `{c}` | {kind} | {meaning(c)} |" for c, kind in _columns_of(query)),
        ]
    )


def view_columns(name: str) -> Iterator[tuple[str, str]]:
    """The columns of a view and their types, as DuckDB says."""
    return _columns_of(f'FROM "current".{name}')


def _columns_of(query: str) -> Iterator[tuple[str, str]]:
    with duckdb.connect(":memory:") as connection:
        connection.execute("ATTACH ':memory:' AS register; USE register")
        create(Database(connection), has_keys=True)
        for statement in create_views("full"):
            connection.execute(statement)
        rows = connection.execute(f"DESCRIBE {query}").fetchall()
    for column, kind, *_ in rows:
        yield column, kind


def meaning(column: str) -> str:
    """What a column of a view means.

    Raises:
        KeyError: nobody has written it down.
    """
    if column in _MEANINGS:
        return _MEANINGS[column]
    declared = {c.name: c.description for table in ALL_TABLES for c in table.columns}
    declared |= {c.name: c.description for c in ENTERPRISE.columns}
    declared |= {f"seat_{c.name}": f"Of the seat. {c.description}" for c in ADDRESS.columns}
    if column in declared:
        return declared[column]
    stem, _, language = column.rpartition("_")
    if stem.endswith(("name", "description")):
        return (
            f"The same in {_LANGUAGES[language]}."
            if stem != "description"
            else (f"What it means, in {_LANGUAGES[language]}.")
        )
    if stem in declared or stem in _MEANINGS:
        return f"What `{stem}` means, in {_LANGUAGES[language]}."
    raise KeyError(column)


def written(text: str) -> str:
    """The document with its generated parts made anew."""
    for name, part in (("diagram", diagram()), ("tables", tables())):
        begin = f"<!-- {name} -->\n"
        before, rest = text.split(begin, 1)
        after = rest.split("<!-- end -->", 1)[1]
        text = f"{before}{begin}{part}\n<!-- end -->{after}"
    return text


def main(file: Path = FILE) -> None:
    """Writes them."""
    file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
