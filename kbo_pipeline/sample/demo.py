"""`make demo`: a Full and three Updates, made up, imported and shown."""

import os
import sys
from pathlib import Path

import duckdb
from rich.console import Console
from rich.table import Table

from kbo_pipeline.sample import Sample, write_sample
from kbo_pipeline.settings import load_settings

_DIRECTORY = Path("data/demo")
_EXTRACTS = 4  # the Full and three Updates


def main() -> None:
    """Imports the demo's extracts into a data directory of its own and prints the register."""
    os.environ["KBO_DATA_DIR"] = str(_DIRECTORY)
    os.environ.pop("KBO_DATABASE", None)
    from kbo_pipeline.cli import main as kbo

    files = write_sample(_DIRECTORY / "zips", Sample(), updates=3)[:_EXTRACTS]
    kbo.main(["import", *map(str, files)], standalone_mode=False)
    _show(load_settings().database)


def _show(database: Path) -> None:
    console = Console()
    with duckdb.connect(str(database), read_only=True) as register:
        (job,) = register.execute(
            "SELECT id, snapshot_date FROM import_jobs ORDER BY extract_number DESC LIMIT 1"
        ).fetchall()
        counts = Table("table", "current rows", "versions", box=None, pad_edge=False)
        for (name,) in register.execute(
            "SELECT view_name FROM duckdb_views() WHERE schema_name = 'current' ORDER BY 1"
        ).fetchall():
            query = f'SELECT count(*) FILTER (_is_current), count(*) FROM main."{name}"'
            (row,) = register.execute(query).fetchall()
            counts.add_row(name, *(f"{count:,}" for count in row))
        names = Table("enterprise_number", "primary_name", box=None, pad_edge=False)
        for row in register.execute(
            "SELECT enterprise_number, left(primary_name, 60) FROM current.enterprise"
            " WHERE type_of_enterprise = '2' ORDER BY enterprise_number LIMIT 5"
        ).fetchall():
            names.add_row(*row)
    console.print(f"\n[bold]In the register after {job[0]}[/bold] (made-up data of {job[1]})")
    console.print(counts)
    console.print(names)
    shown = Path(os.path.relpath(database))
    console.print(f"\nRegister: {shown}  (any DuckDB client opens it)", highlight=False)
    python = Path(os.path.relpath(sys.executable)).parent
    console.print(f"Web UI:   KBO_DATA_DIR={_DIRECTORY} {python}/kbo start", highlight=False)


if __name__ == "__main__":
    main()
