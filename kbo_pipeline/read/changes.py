"""What an extract changed, entity by entity, each change by its kind. No Dagster.

The kinds are declared in `kinds.py`. All functions read a published register that is the default
database of a connection, and see what its readers may see.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.read import changes_sql, queries
from kbo_pipeline.read.kinds import KINDS
from kbo_pipeline.read.types import ExtractName, PublishedExtract, named

_FETCHED = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change of one entity in an extract.

    Attributes:
        table: the table in which it is seen.
        kind: the kind's name; see `kbo_pipeline.read.kinds.KINDS`.
        entity_number: of the enterprise, establishment unit or branch.
        enterprise_number: of the enterprise that it is or belongs to; None when KBO knows none.
        name: its main name, after the extract or else before it; the number when it has none.
        before: what it was, as text in KBO's codes; None when it was nothing.
        after: what it is now.
    """

    table: str
    kind: str
    entity_number: str
    enterprise_number: str | None
    name: str
    before: str | None
    after: str | None


def published_key(connection: duckdb.DuckDBPyConnection, extract: ExtractName) -> ExtractKey:
    """The published extract that a number such as 141, a key or a date names.

    Raises:
        ExtractError: the text is no name of an extract.
        NotFoundError: it is not published; says what is.
    """
    rows = connection.execute(queries.EXTRACTS).fetchall()
    return ExtractKey.parse(named([PublishedExtract(*row) for row in rows], extract).key)


def count_changes(
    connection: duckdb.DuckDBPyConnection, extract: ExtractName
) -> dict[tuple[str, str], int]:
    """Counts the entities that an extract changed, by table and kind; all kinds, in their order.

    Args:
        connection: a published register.
        extract: a published extract, by number, key or date.

    Raises:
        NotFoundError: the extract is not published.
    """
    number = published_key(connection, extract).number
    rows = connection.execute(changes_sql.COUNT_CHANGES, {"number": number}).fetchall()
    counts = {(table, kind): count for table, kind, count in rows}
    return {(k.table.name, k.name): counts.get((k.table.name, k.name), 0) for k in KINDS}


def changed_entities(
    connection: duckdb.DuckDBPyConnection, extract: ExtractName
) -> duckdb.DuckDBPyRelation:
    """What an extract changed, as a relation with one row for each kind of change of each entity.

    Columns: `table_name`, `kind`, `entity_number`, `enterprise_number`, `name`, `before`, `after`,
    as in `Change`; in the order of tables, then kinds, then numbers. The relation is computed now,
    and lives as long as the connection.

    Args:
        connection: a published register.
        extract: a published extract, by number, key or date.

    Raises:
        NotFoundError: the extract is not published.
    """
    number = published_key(connection, extract).number
    return connection.sql(changes_sql.CHANGED_ENTITIES, params={"number": number})


def iterate_changes(
    connection: duckdb.DuckDBPyConnection, extract: ExtractName
) -> Iterator[Change]:
    """What `changed_entities` says, as one `Change` after the other.

    Nothing else may be asked of the connection before the last one is read.

    Raises:
        NotFoundError: the extract is not published.
    """
    number = published_key(connection, extract).number  # now: an error does not wait for a reader
    result = connection.execute(changes_sql.CHANGED_ENTITIES, {"number": number})
    pieces = iter(lambda: result.fetchmany(_FETCHED), [])
    return (Change(*row) for rows in pieces for row in rows)
