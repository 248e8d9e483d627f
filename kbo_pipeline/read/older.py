"""An older register, shown to readers as one of today: views in memory, and nothing written."""

import functools
from collections.abc import Mapping
from pathlib import Path

import duckdb

from kbo_pipeline.core import schema_sql
from kbo_pipeline.core.database import Database
from kbo_pipeline.core.lake import WORK
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.schema import _check_version, _has_ledger, _version, create, layout_of
from kbo_pipeline.core.schema_sql import VERSION_TABLE
from kbo_pipeline.read.state_sql import HIDDEN_BEFORE, SHOWN
from kbo_pipeline.read.views import create_views

_SHOWN = "shown"
"""What shows an older register as one of today."""


def show_to_reader(connection: duckdb.DuckDBPyConnection, name: str, place: Place) -> str:
    """Shows an attached register as one of today; what shows it is the default database then.

    One of today shows itself. Before an older one come views in memory, in which what it lacks has
    no values, or no rows; they leave out whom its own views leave out.

    Args:
        connection: an in-memory DuckDB.
        name: what the register is attached as.
        place: where it is.

    Returns:
        The name of what shows it; `hide` takes that away.

    Raises:
        RegisterError: the register is of a newer version than this program.
    """
    at_work = "main" if isinstance(place, Path) else WORK
    version = _version(connection, layout_of(connection, name, at_work), f"{name}.{at_work}")
    _check_version(version, place)
    layout = layout_of(connection, name, "main")
    today = _todays_layout()
    is_whole = all(columns.keys() <= layout.get(table, {}).keys() for table, columns in today)
    if (is_whole and HIDDEN_BEFORE not in layout) or not _has_ledger(layout):
        connection.execute(f"USE {name}")
        return name
    connection.execute(schema_sql.attach_empty(_SHOWN))
    try:
        connection.execute(f"USE {_SHOWN}")
        for table, columns in today:
            there = layout.get(table, {}).keys()
            connection.execute(schema_sql.show_older(table, f"{name}.main", columns, there))
        leaves_out = bool({SHOWN, HIDDEN_BEFORE} & layout.keys())
        for statement in create_views("legal-persons" if leaves_out else "full"):
            connection.execute(statement)
    except duckdb.Error:
        hide(connection, _SHOWN)
        raise
    return _SHOWN


def hide(connection: duckdb.DuckDBPyConnection, shown: str) -> None:
    """Takes away what `show_to_reader` has made; the register stays attached."""
    connection.execute("USE memory")
    if shown == _SHOWN:
        connection.execute(f"DETACH {_SHOWN}")


@functools.cache
def _todays_layout() -> tuple[tuple[str, Mapping[str, str]], ...]:
    """What readers see of a register of today: the columns of its tables."""
    with duckdb.connect(":memory:") as connection:
        create(Database(connection), is_shared=True)
        layout = layout_of(connection, "memory", "main")
    return tuple((table, layout[table]) for table in layout if table != VERSION_TABLE)
