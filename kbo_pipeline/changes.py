"""What an extract changed, entity by entity, each change by its kind. No Dagster.

The kinds are declared in `kinds.py`. All functions read a published register that is the default
database of a connection, and see what its readers may see.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from kbo_pipeline.errors import NotFoundError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.kinds import KINDS
from kbo_pipeline.sql import changes as changes_sql
from kbo_pipeline.sql import looking_up as looking_up_sql

_FETCHED = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change of one entity in an extract.

    Attributes:
        table: the table in which it is seen.
        kind: the kind's name; see `kbo_pipeline.kinds.KINDS`.
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


def published_key(connection: duckdb.DuckDBPyConnection, extract: int | str) -> ExtractKey:
    """The published extract that a number such as 141, or a key such as `0141-update`, names.

    Raises:
        ExtractError: the text is no key of an extract.
        NotFoundError: it is not published; names what is.
    """
    rows = connection.execute(looking_up_sql.EXTRACTS).fetchall()
    published = [ExtractKey(number, kind) for _, number, kind, _ in rows]
    is_number = not isinstance(extract, str) or bool(re.fullmatch("[0-9]{1,9}", extract))
    number = int(extract) if is_number else ExtractKey.parse(str(extract)).number
    found = next((key for key in published if key.number == number), None)
    if found is not None and (is_number or str(found) == extract):
        return found
    known = f"{published[-1]} to {published[0]} are" if published else "nothing is yet"
    if found is not None:
        known = f"{found} is"
    raise NotFoundError(f"{extract}: not among the published extracts; {known}")


def count_changes(
    connection: duckdb.DuckDBPyConnection, extract: int | str
) -> dict[tuple[str, str], int]:
    """Counts the entities that an extract changed, by table and kind; all kinds, in their order.

    Args:
        connection: a published register.
        extract: the number or key of a published extract.

    Raises:
        NotFoundError: the extract is not published.
    """
    number = published_key(connection, extract).number
    rows = connection.execute(changes_sql.COUNT_CHANGES, {"number": number}).fetchall()
    counts = {(table, kind): count for table, kind, count in rows}
    return {(k.table.name, k.name): counts.get((k.table.name, k.name), 0) for k in KINDS}


def changed_entities(
    connection: duckdb.DuckDBPyConnection, extract: int | str
) -> duckdb.DuckDBPyRelation:
    """What an extract changed, as a relation with one row for each kind of change of each entity.

    Columns: `table_name`, `kind`, `entity_number`, `enterprise_number`, `name`, `before`, `after`,
    as in `Change`; in the order of tables, then kinds, then numbers. The relation is computed now,
    and lives as long as the connection.

    Args:
        connection: a published register.
        extract: the number or key of a published extract.

    Raises:
        NotFoundError: the extract is not published.
    """
    number = published_key(connection, extract).number
    return connection.sql(changes_sql.CHANGED_ENTITIES, params={"number": number})


def iterate_changes(connection: duckdb.DuckDBPyConnection, extract: int | str) -> Iterator[Change]:
    """What `changed_entities` says, as one `Change` after the other.

    Raises:
        NotFoundError: the extract is not published.
    """
    relation = changed_entities(connection, extract)  # now: an error is not to wait for a reader
    pieces = iter(lambda: relation.fetchmany(_FETCHED), [])
    return (Change(*row) for rows in pieces for row in rows)
