"""Publish: what readers see changes whole, at one instant. No Dagster."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb

from kbo_pipeline.errors import NotReadyError, OrderError, RegisterError
from kbo_pipeline.extracts import Extract, ExtractKey
from kbo_pipeline.files import replace_atomically
from kbo_pipeline.ledger import check_order, published_extracts
from kbo_pipeline.register import (
    Publication,
    open_register_to_copy,
)
from kbo_pipeline.sql import literal
from kbo_pipeline.staging import discard_staged, open_staged


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
        staging_dir: where its staging file is; it and those of extracts before are removed at the
            end.
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
            published, half_applied = (
                register.ledger.published_extracts(),
                register.ledger.half_applied(),
            )
        if published != read_published(connection, database):
            if half_applied is not None:
                raise NotReadyError(f"{key}: {half_applied} is half applied; finish it first")
            with replace_atomically(database) as temporary:
                shutil.copyfile(register_file, temporary)
    discard_staged(staging_dir, published[0][0].number)
    return publication


def is_published(connection: duckdb.DuckDBPyConnection, database: Path, extract: Extract) -> bool:
    """Tells whether readers have this extract already.

    Raises:
        OrderError: the register is past it, or has another file under its key.
    """
    return has_extract(read_published(connection, database), extract)


def has_extract(published: Sequence[tuple[ExtractKey, str]], extract: Extract) -> bool:
    """Tells whether an extract is among the published ones, or need not be.

    Args:
        published: keys and the sha256 of their ZIPs, the newest first.
        extract: the extract.

    Raises:
        OrderError: the register is past it, or has another file under its key.
    """
    for key, sha256 in published:
        if key == extract.key and sha256 != extract.sha256:
            raise OrderError(
                f"{key}: published from another file (sha256 {sha256[:12]}, this one has"
                f" {extract.sha256[:12]}); keep the one that is published"
            )
        if key.number == extract.key.number:
            return True  # a Full and an Update of one number lead to the same state
    if published and extract.key.number <= published[0][0].number:
        check_order(extract.key, published[0][0])
    return False


def read_published(
    connection: duckdb.DuckDBPyConnection, database: Path
) -> list[tuple[ExtractKey, str]]:
    """The published extracts with the sha256 of their ZIPs, the newest first.

    Empty when there is no file, or somebody has it open for writing: nothing may stop us then.

    Raises:
        RegisterError: the file is no register.
    """
    if not database.exists():
        return []
    if not database.is_file():
        raise RegisterError(f"{database}: no file; move it away")
    try:  # without its type, DuckDB would fetch an extension for a file of another database
        connection.execute(f"ATTACH {literal(database)} AS published (READ_ONLY, TYPE duckdb)")
    except duckdb.IOException as error:
        if "lock" in str(error):
            return []
        raise RegisterError(f"{database}: {_first_line(error)}; move it away") from None
    except duckdb.Error as error:
        raise RegisterError(f"{database}: {_first_line(error)}; move it away") from None
    try:
        connection.execute("USE published")
        return published_extracts(connection)
    except (duckdb.CatalogException, duckdb.BinderException):
        raise RegisterError(
            f"{database}: a DuckDB file, but no register of this pipeline; move it away"
        ) from None
    except duckdb.IOException as error:
        raise RegisterError(f"{database}: {_first_line(error)}; move it away") from None
    finally:
        connection.execute("USE memory")
        connection.execute("DETACH published")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
