"""SQL as people read it: literals, lists over several lines, named queries. No statements.

Statements are beside the modules that run them. Their identifiers come from the table declarations
only; values are bound as `$name` parameters.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

_WIDTH = 80
"""Characters of a line of a list, before its indentation."""


def indented(text: str, by: int = 4) -> str:
    """SQL as it stands inside other SQL: all lines but the first are moved to the right."""
    return text.replace("\n", "\n" + " " * by)


def listed(items: Iterable[str], between: str = ", ", by: int = 4) -> str:
    """Expressions one after the other, on indented lines that are not too long to read.

    Args:
        items: the expressions.
        between: what stands between two; a line ends after `, `, and begins with other words.
        by: the indentation of all lines but the first.
    """
    before, after = ("", between.rstrip()) if between == ", " else (between.lstrip(), "")
    lines = [""]
    for item in items:
        joined = f"{lines[-1]}{between}{item}" if lines[-1] else item
        if lines[-1] and ("\n" in item or len(joined.split("\n")[-1]) > _WIDTH):
            lines[-1] += after
            lines.append(f"{before}{item}")
        else:
            lines[-1] = joined
    return ("\n" + " " * by).join(lines)


def all_of(conditions: Iterable[str], by: int = 4) -> str:
    """Whether all of some conditions hold; true of none."""
    return listed(conditions, " AND ", by) or "true"


def union_all(queries: Iterable[str]) -> str:
    """The rows of several queries."""
    return "\nUNION ALL\n".join(queries)


def with_queries(
    queries: Mapping[str, str], query: str, *, materialized: bool | None = False
) -> str:
    """A query that reads others by their names.

    Args:
        queries: the others, by name; each may read those before it.
        query: reads them.
        materialized: each of them is computed once; or, if False, becomes part of the query
            wherever it is read, so that DuckDB skips what the query does not ask for; None leaves
            that to DuckDB.
    """
    how = {True: " MATERIALIZED", False: " NOT MATERIALIZED", None: ""}[materialized]
    named = (f"{name} AS{how} (\n    {indented(text)}\n)" for name, text in queries.items())
    return f"WITH {', '.join(named)}\n{query}"


def literal(text: str | Path) -> str:
    """A text as an SQL literal, for the few statements that take no parameters."""
    return "'" + str(text).replace("'", "''") + "'"


def glob_escaped(path: Path) -> str:
    """A path as `read_csv` takes it: the characters that it would expand stand for themselves."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
