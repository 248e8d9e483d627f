"""Other ways to bring a Full into a database: `python -m ...bench.importers NAME ZIP DIRECTORY`.

Each keeps to what its users do, and does nothing besides: no ledger, no history, no checks.
"""

import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from kbo_pipeline.core.tables import ALL_TABLES

_CHUNK_ROWS = 500_000


def bare(zip_file: Path, directory: Path) -> None:
    """Unzips, and lets DuckDB make a table of each file, all of it text."""
    import duckdb

    with zipfile.ZipFile(zip_file) as archive:
        archive.extractall(directory)
    with duckdb.connect(str(directory / "bare.duckdb")) as connection:
        for table in ALL_TABLES:
            connection.execute(
                f"CREATE TABLE {table.name} AS FROM read_csv($file, header=true, all_varchar=true)",
                {"file": str(directory / f"{table.name}.csv")},
            )


def cbe(zip_file: Path, directory: Path) -> None:
    """The package `cbe` of PyPI: pandas into SQLite, text without keys and indexes.

    With the keys of its own schema it refuses rows that stand in a file twice, as they do.
    """
    columns = {"meta": ["Variable", "Value"]}
    columns |= {table.name: [column.csv_name for column in table.columns] for table in ALL_TABLES}
    schema = directory / "schema.sql"
    schema.write_text(
        "\n".join(
            f"CREATE TABLE {name} ({', '.join(f'{column} TEXT' for column in found)});"
            for name, found in columns.items()
        )
    )
    package = importlib.import_module("cbe")  # make bench installs it
    package.CBEOpenData(str(zip_file), str(directory / "cbe.sqlite"), schema_path=str(schema))


def pandas(zip_file: Path, directory: Path) -> None:
    """Pandas reads the files in the ZIP piece by piece, DuckDB keeps them."""
    import duckdb
    import pandas

    with (
        zipfile.ZipFile(zip_file) as archive,
        duckdb.connect(str(directory / "pandas.duckdb")) as connection,
    ):
        for table in ALL_TABLES:
            with archive.open(f"{table.name}.csv") as file:
                chunks = pandas.read_csv(file, dtype=str, chunksize=_CHUNK_ROWS)
                for number, chunk in enumerate(chunks):
                    connection.register("chunk", chunk)
                    begin = "INSERT INTO {}" if number else "CREATE TABLE {} AS"
                    connection.execute(f"{begin.format(table.name)} SELECT * FROM chunk")


IMPORTERS: dict[str, Callable[[Path, Path], None]] = {"bare": bare, "cbe": cbe, "pandas": pandas}
FILES = {"bare": "bare.duckdb", "cbe": "cbe.sqlite", "pandas": "pandas.duckdb"}

if __name__ == "__main__":
    name, zip_file, directory = sys.argv[1:]
    IMPORTERS[name](Path(zip_file), Path(directory))
