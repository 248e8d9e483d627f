"""Publish: what readers see changes whole, at one instant. No Dagster."""

import shutil
from pathlib import Path

import duckdb

from kbo_pipeline import sql
from kbo_pipeline.errors import NotReadyError, RegisterError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.files import replace_atomically
from kbo_pipeline.register import Publication, open_register_to_copy, published_extract
from kbo_pipeline.staging import open_staged, staging_file


def publish(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    *,
    register_file: Path,
    staging_dir: Path,
    database: Path,
) -> Publication:
    """Publishes an extract whose batches are all applied; once, however often called.

    Args:
        connection: an in-memory DuckDB.
        key: the extract.
        register_file: the register at work.
        staging_dir: where its staging file is; the file is removed at the end.
        database: the file that readers open; replaced at one instant, never opened for writing.

    Raises:
        NotReadyError: it is not staged, or batches are missing.
        OrderError: it does not follow what is published.
    """
    with open_register_to_copy(connection, register_file) as attach:
        with attach() as register:
            publication = register.completed_publication(key)
            if publication is None:
                with open_staged(connection, staging_dir, key) as staged:
                    publication = register.complete(staged)
            register.checkpoint()
            newest, half_applied = register.published(), register.half_applied()
        if newest != read_published(connection, database):
            if half_applied is not None:
                raise NotReadyError(f"{key}: {half_applied} is half applied; finish it first")
            with replace_atomically(database) as temporary:
                shutil.copyfile(register_file, temporary)
    staging_file(staging_dir, key).unlink(missing_ok=True)
    (staging_dir / f"{key}.lock").unlink(missing_ok=True)
    return publication


def read_published(connection: duckdb.DuckDBPyConnection, database: Path) -> ExtractKey | None:
    """The newest extract in a published file; None when there is none, or a writer has it open.

    Raises:
        RegisterError: the file is no register.
    """
    if not database.is_file():
        return None
    try:
        connection.execute(f"ATTACH {sql.literal(database)} AS published (READ_ONLY)")
    except duckdb.IOException:
        return None
    except duckdb.Error as error:
        first_line = str(error).split("\n", 1)[0]
        raise RegisterError(f"{database}: {first_line}; move it away") from None
    try:
        connection.execute("USE published")
        return published_extract(connection)
    except duckdb.CatalogException:
        raise RegisterError(
            f"{database}: a DuckDB file, but no register of this pipeline; move it away"
        ) from None
    finally:
        connection.execute("USE memory")
        connection.execute("DETACH published")
