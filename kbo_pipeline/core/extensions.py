"""DuckDB's extensions: loaded from installed packages, never downloaded."""

from importlib.util import find_spec
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import literal
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.text import first_line


def load_extension(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Loads an extension into a connection: from its package, or one that DuckDB has already.

    Args:
        connection: where it is loaded.
        name: as DuckDB names it.

    Raises:
        StorageError: it is not installed; says what to install.
    """
    file = _packaged(name)
    connection.execute("SET autoinstall_known_extensions = false")  # LOAD would download it
    try:
        connection.execute(f"LOAD {literal(file) if file is not None else name}")
    except duckdb.Error as error:
        said = first_line(error)
        raise StorageError(
            f"DuckDB {duckdb.__version__} cannot load its extension {name} ({said}); pip install"
            f" duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__}"
        ) from None


def _packaged(name: str) -> Path | None:
    """The file of an extension in its package, of the version of DuckDB that runs."""
    found = find_spec(f"duckdb_extension_{name}")
    for directory in (found.submodule_search_locations or []) if found is not None else []:
        version = f"v{duckdb.__version__}"
        file = Path(directory) / "extensions" / version / f"{name}.duckdb_extension"
        if file.is_file():
            return file
    return None
