"""The net changes between two published extracts, and what identifies the states at them.

A row that came and went in between is in neither side of a net change; nor is one that both states
have. Only versions that were opened or closed in between are read. With `KBO_PRIVACY`, whom the
versions up to an extract show is in the state at it, as an export at that time had it: so somebody
may come into view, or leave it, with all rows that were there before.

The state at one extract is counted and hashed whole once; those at others are derived from it.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import duckdb

from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import indented, listed, union_all
from kbo_pipeline.core.tables import ALL_TABLES, Privacy, Table
from kbo_pipeline.read.content import Content, Contents, hash_of, read_content
from kbo_pipeline.read.state_sql import is_shown, numbers_of, shown_numbers

Report = Callable[[str, int, int], None]
"""Takes the name of what is at work, how many are done, and of how many."""

ADDED, REMOVED = "added", "removed"

_BEFORE, _AFTER = "temp.shown_before", "temp.shown_after"
"""Tables of the numbers that are shown at the older and at the newer extract."""

_TURNED = """CREATE OR REPLACE TEMP TABLE turned AS
(FROM temp.shown_before EXCEPT FROM temp.shown_after)
UNION ALL
(FROM temp.shown_after EXCEPT FROM temp.shown_before)"""
"""The numbers that came into view, or left it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a net change adds to a table and removes from it."""

    added: Content
    removed: Content


def net_rows(table: Table) -> str:
    """The net changes of a table that `find_net` found: `_change` and its columns, sorted."""
    columns = listed(table.column_names)
    return f"SELECT _change, {columns}\nFROM temp.net_{table.name}\nORDER BY {columns}, _change"


def find_net(
    connection: duckdb.DuckDBPyConnection, since: int, until: int, privacy: Privacy
) -> dict[str, Change]:
    """Collects the net changes of all tables between the states at two published extracts.

    Args:
        connection: has a published register as its default database.
        since: the number of the older one, or of the same.
        until: that of the newer one.
        privacy: who is left out.

    Returns:
        What there is, by table; `net_rows` reads it.
    """
    numbers = {"since": since, "until": until}
    has_turned = False
    if privacy != "full":
        _find_shown(connection, _BEFORE, since)
        _find_shown(connection, _AFTER, until)
        connection.execute(_TURNED)
        ((count,),) = connection.execute("SELECT count(*) FROM temp.turned").fetchall()
        has_turned = count > 0
    changes = {}
    for table in ALL_TABLES:
        connection.execute(_net(table, privacy, has_turned=has_turned), numbers)
        added, removed = (
            read_content(
                connection, table, f"FROM temp.net_{table.name} WHERE _change = '{change}'"
            )
            for change in (ADDED, REMOVED)
        )
        changes[table.name] = Change(added, removed)
    return changes


def _find_shown(connection: duckdb.DuckDBPyConnection, name: str, number: int) -> None:
    create = f"CREATE OR REPLACE TEMP TABLE {name.removeprefix('temp.')} AS"
    connection.execute(f"{create}\n{shown_numbers('$number')}", {"number": number})


def _net(table: Table, privacy: Privacy, *, has_turned: bool) -> str:
    """Makes the table of net changes; in no state is a row twice."""
    holds_after = "(s._deleted_at_extract IS NULL OR s._deleted_at_extract > $until)"
    opened = f"s._extract_number > $since AND s._extract_number <= $until AND {holds_after}"
    closed = """s._deleted_at_extract > $since AND s._deleted_at_extract <= $until
    AND s._extract_number <= $since"""
    turns = [
        (1, is_shown(table, opened, privacy, _AFTER)),
        (-1, is_shown(table, closed, privacy, _BEFORE)),
    ]
    numbers = numbers_of(table)
    if has_turned and numbers:
        which = " OR ".join(f"s.{name} IN (SELECT number FROM temp.turned)" for name in numbers)
        kept = f"s._extract_number <= $since AND {holds_after}\n    AND ({which})"
        for turn, shown, hidden in ((1, _AFTER, _BEFORE), (-1, _BEFORE, _AFTER)):
            was_hidden = f"NOT ({is_shown(table, 'true', privacy, hidden)})"
            turns.append((turn, f"{is_shown(table, kept, privacy, shown)}\n    AND {was_hidden}"))
    columns = listed(table.column_names)
    rows = union_all(
        f"SELECT {columns}, {turn} AS turn\nFROM main.{table.name} s\nWHERE {where}"
        for turn, where in turns
    )
    return f"""CREATE OR REPLACE TEMP TABLE net_{table.name} AS
SELECT {columns}, CASE WHEN sum(turn) > 0 THEN '{ADDED}' ELSE '{REMOVED}' END AS _change
FROM (
    {indented(rows)}
)
GROUP BY {columns}
HAVING sum(turn) <> 0"""


def moved(contents: Contents, changes: Mapping[str, Change], *, back: bool = False) -> Contents:
    """The content of the state after some changes, or of that before them."""
    sides = {
        name: (change.removed, change.added) if back else (change.added, change.removed)
        for name, change in changes.items()
    }
    return {name: contents[name] + came - went for name, (came, went) in sides.items()}


def contents_at(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    number: int,
    report: Callable[[str], None],
) -> Contents:
    """The content of the state at a published extract, of what `KBO_PRIVACY` shows.

    It is derived from the state that was asked for last, which a file keeps; where nothing is
    known, or the register has changed by other ways than extracts, all rows are read, once: about
    20 s for 47 million.

    Args:
        connection: has the published register as its default database.
        settings: say where the file is, and who is left out.
        number: of the extract.
        report: takes what is at work, where all rows are read.
    """
    file, privacy = settings.work_dir / "content.json", settings.privacy
    known = _read_known(file)
    contents = _derived(connection, known.get(privacy), number, privacy)
    if contents is None:
        contents = _count_all(connection, number, privacy, report)
    known[privacy] = _Known(number, _identity(connection, number), contents)
    with replace_atomically(file) as temporary:
        text = {name: one.to_json() for name, one in known.items()}
        temporary.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    return contents


def _derived(
    connection: duckdb.DuckDBPyConnection, last: "_Known | None", number: int, privacy: Privacy
) -> Contents | None:
    """The content of the state at an extract, as it follows from a known one.

    None where it does not follow: the known state is another one now, a repair has closed what a
    hand had made of its rows, or a comparison with a Full has counted something else.
    """
    if last is None or last.identity != _identity(connection, last.number):
        return None
    contents = last.contents
    if last.number != number:
        since, until = sorted((last.number, number))
        if connection.execute(_CORRECTED, {"since": since, "until": until}).fetchone():
            return None
        changes = find_net(connection, since, until, privacy)
        contents = moved(contents, changes, back=number < last.number)
    if privacy == "full":
        for place, content in ((last.number, last.contents), (number, contents)):
            counted = connection.execute(_COUNTED, {"number": place}).fetchone()
            if counted not in (None, (hash_of(content),)):
                return None
    return contents


_CORRECTED = """
SELECT 1
FROM correction
WHERE extract_number > $since AND extract_number <= $until
LIMIT 1
"""

_COUNTED = "SELECT content_hash FROM proof WHERE extract_number = $number"


def _count_all(
    connection: duckdb.DuckDBPyConnection,
    number: int,
    privacy: Privacy,
    report: Callable[[str], None],
) -> Contents:
    if privacy != "full":
        _find_shown(connection, _AFTER, number)
    holds = """s._extract_number <= $number
    AND (s._deleted_at_extract IS NULL OR s._deleted_at_extract > $number)"""
    contents = {}
    for table in ALL_TABLES:
        report(f"hash of {table.name}")
        where = is_shown(table, holds, privacy, _AFTER)
        query = f"SELECT {listed(table.column_names)}\nFROM main.{table.name} s\nWHERE {where}"
        contents[table.name] = read_content(connection, table, query, {"number": number})
    return contents


@dataclass(frozen=True, slots=True)
class _Known:
    """The content of a state, and what identifies this state of the register."""

    number: int
    identity: str
    contents: Contents

    def to_json(self) -> dict[str, object]:
        tables = {name: [c.rows, str(c.row_hash)] for name, c in self.contents.items()}
        return {"extract_number": self.number, "identity": self.identity, "tables": tables}


def _read_known(file: Path) -> dict[str, _Known]:
    """What the file keeps, by who is shown; nothing where it is missing or cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return {
            privacy: _Known(
                int(one["extract_number"]),
                str(one["identity"]),
                {t.name: Content(*map(int, one["tables"][t.name])) for t in ALL_TABLES},
            )
            for privacy, one in json.loads(file.read_text(encoding="utf-8")).items()
        }
    return {}


_PUBLICATIONS = """
SELECT id, sha256, epoch_us(completed_at)
FROM import_jobs
WHERE status = 'completed' AND extract_number <= $number
ORDER BY extract_number, completed_at
"""
"""How the register came to a state: what is imported again is another publication."""

_VERSIONS = union_all(
    f"""SELECT '{table.name}' AS table_name,
    count(*) FILTER (_extract_number <= $number) AS opened,
    count(*) FILTER (_deleted_at_extract <= $number) AS closed
FROM main.{table.name}"""
    for table in ALL_TABLES
)
"""How many versions there are: others, where somebody has changed the register by hand."""

_COLUMNS = [table.column_names for table in ALL_TABLES]


def _identity(connection: duckdb.DuckDBPyConnection, number: int) -> str:
    """Identifies a state of the register, without a look at its values."""
    publications, versions = (
        connection.execute(query, {"number": number}).fetchall()
        for query in (_PUBLICATIONS, f"{_VERSIONS}\nORDER BY table_name")
    )
    return sha256(repr((publications, versions, _COLUMNS)).encode()).hexdigest()
