"""What identifies the rows of a state: how many each table has, and a sum of their hashes.

Sums can be derived: that of a state is that of another, and what came, less what went.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import duckdb

from kbo_pipeline.core.tables import ALL_TABLES, Table
from kbo_pipeline.read.state_sql import content_of


@dataclass(frozen=True, slots=True)
class Content:
    """The rows of one table, in any order: how many, and the sum of their hashes."""

    rows: int = 0
    row_hash: int = 0

    def __add__(self, other: Self) -> "Content":
        return Content(self.rows + other.rows, self.row_hash + other.row_hash)

    def __sub__(self, other: Self) -> "Content":
        return Content(self.rows - other.rows, self.row_hash - other.row_hash)


Contents = Mapping[str, Content]
"""The rows of all tables, by name."""


def hash_of(contents: Contents) -> str:
    """The content hash of all tables, as docs/certainty.md defines it."""
    lines = (f"{t.name} {contents[t.name].rows} {contents[t.name].row_hash}\n" for t in ALL_TABLES)
    return sha256("".join(lines).encode()).hexdigest()


def read_content(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    query: str,
    parameters: Mapping[str, object] | None = None,
) -> Content:
    """The content of the rows of a query on a table."""
    ((_, count, row_hash),) = connection.execute(
        content_of(table, query), parameters or {}
    ).fetchall()
    return Content(count, int(row_hash))
