"""SQL that copies a register: the target is the default database, the source is named."""

from kbo_pipeline.core.tables import ALL_TABLES

_KEYS = {table.name: table.key for table in ALL_TABLES}

COPIED = (*_KEYS, "import_jobs", "import_job_batches", "rejected_row")
"""The tables that a register consists of."""

IS_EMPTY = "SELECT count(*) = 0 FROM import_jobs"


def empty(name: str) -> str:
    """Takes all rows out of a table of the target."""
    return f"DELETE FROM {name}"


def copy(name: str, source: str) -> str:
    """Copies a table from what readers of the source see, in the order of its keys.

    Zone maps and statistics of files then skip what nobody asks for.
    """
    order = f" ORDER BY {_KEYS[name]}, _extract_number" if name in _KEYS else ""
    return f"INSERT INTO {name} BY NAME SELECT * FROM {source}.main.{name}{order}"
