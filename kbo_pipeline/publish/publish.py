"""Publish and roll back: what readers see changes whole, at one instant. No Dagster.

The newest published files stay: the one that readers open, and older ones as
`published/<extract key>.duckdb` beside the register at work.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb

from kbo_pipeline.apply.register import open_register, open_register_to_copy
from kbo_pipeline.core.errors import CheckFailedError, NotReadyError, OrderError, StorageError
from kbo_pipeline.core.extracts import Extract, ExtractKey, key_or_none
from kbo_pipeline.core.files import link_or_copy, replace_atomically
from kbo_pipeline.core.ledger import PublishedState
from kbo_pipeline.core.order import check_order
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.settings import Privacy
from kbo_pipeline.publish.checking import CheckResult, check_register, stop_on_errors
from kbo_pipeline.publish.publication import Publication, Rollback, complete, completed, roll_back
from kbo_pipeline.publish.readers_file import show_to_readers
from kbo_pipeline.read.published import open_published
from kbo_pipeline.stage.staging import discard_staged, open_staged, staging_file


def publish(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    *,
    register: Place,
    staging_dir: Path,
    database: Place,
    privacy: Privacy = "full",
    keep_published: int = 1,
    max_loss_percent: float = 2.0,
    max_loss_percent_full: float = 5.0,
    accept_loss: bool = False,
    report_checks: Callable[[Sequence[CheckResult]], None] = lambda results: None,
) -> Publication:
    """Publishes an extract whose batches are all applied; once, however often called.

    Args:
        connection: an in-memory DuckDB.
        key: the extract.
        register: the register at work.
        staging_dir: where its staging file is; it and those of extracts before are removed at the
            end.
        database: what readers open: a file, replaced at one instant and never opened for writing;
            or the register itself, where they share it.
        privacy: who is in its views.
        keep_published: published files that are kept, the one that readers open included; of a
            shared register there is none.
        max_loss_percent: rows of a table that an Update may take away, 0 to 100.
        max_loss_percent_full: rows of a table that a Full may take away.
        accept_loss: it may take away more.
        report_checks: takes what the checks found, before anything is decided.

    Raises:
        NotReadyError: it is not staged, or batches are missing.
        OrderError: it does not follow what is published.
        CheckFailedError: readers must not see it; its batches stay applied, the ledger says why.
    """

    def look(*, is_staged: bool, accept_loss: bool) -> list[CheckResult]:
        results = check_register(
            connection,
            key,
            is_staged=is_staged,
            max_loss_percent=max_loss_percent,
            max_loss_percent_full=max_loss_percent_full,
            accept_loss=accept_loss,
        )
        report_checks(results)
        return results

    with open_register_to_copy(connection, register) as attach:
        with attach() as opened:
            ledger = opened.ledger
            publication = completed(opened, key)
            if publication is None:
                with open_staged(connection, staging_dir, key) as staged:
                    try:
                        publication = complete(
                            opened,
                            staged,
                            lambda: stop_on_errors(
                                key, look(is_staged=True, accept_loss=accept_loss)
                            ),
                            privacy,
                        )
                    except CheckFailedError as error:
                        ledger.fail_job(key, str(error))
                        raise
            elif (ledger.published(), ledger.half_applied()) == (key, None):
                opened.migrate()
                look(is_staged=False, accept_loss=True)  # to tell of it: nothing stops it now
            opened.checkpoint()
            standing, half_applied = ledger.standing(), ledger.half_applied()
        if isinstance(register, Path) and isinstance(database, Path):
            _show(
                connection,
                key,
                standing,
                half_applied,
                register,
                database,
                privacy,
                keep_published,
            )
    discard_staged(staging_dir, standing.published[0][0].number)
    return publication


def rollback(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    *,
    register: Place,
    staging_dir: Path,
    database: Place,
    privacy: Privacy = "full",
    keep_published: int = 1,
) -> Rollback:
    """Undoes the newest extract, published or half applied; readers see the state before it.

    Calling it again after a crash does what is left. When nothing is published any more, readers
    get an empty register.

    Args:
        connection: an in-memory DuckDB.
        key: the extract.
        register: the register at work.
        staging_dir: where its staging file is; the file is removed at the end.
        database: what readers open: a file, replaced at one instant and never opened for writing;
            or the register itself, where they share it.
        privacy: who is in its views.
        keep_published: published files that are kept, the one that readers open included; of a
            shared register there is none.

    Raises:
        OrderError: another extract is the newest; names it.
    """
    with open_register_to_copy(connection, register) as attach:
        with attach() as opened:
            done = roll_back(opened, key, privacy)
            opened.checkpoint()
            standing, half_applied = opened.ledger.standing(), opened.ledger.half_applied()
        if isinstance(register, Path) and isinstance(database, Path):
            _show(
                connection,
                key,
                standing,
                half_applied,
                register,
                database,
                privacy,
                keep_published,
            )
    _remove_staged(staging_dir, key)
    return done


def check_rollback(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    register: Place,
    *,
    lock_timeout: float = 60.0,
) -> None:
    """Makes sure that an extract may be rolled back; changes nothing.

    Takes what `open_register` takes.

    Raises:
        OrderError: another extract is the newest; names it.
        StorageError: another process keeps the register.
    """
    with open_register(connection, register, lock_timeout=lock_timeout) as opened:
        opened.ledger.check_rollback(key)


def _show(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    standing: PublishedState,
    half_applied: ExtractKey | None,
    register_file: Path,
    database: Path,
    privacy: Privacy,
    keep_published: int,
) -> None:
    """Lets readers see the register at work, where they do not yet; it must be detached."""
    directory = register_file.with_name("published")
    before = read_published_state_of(connection, database)
    if standing != before:
        if half_applied is not None:
            raise NotReadyError(f"{key}: {half_applied} is half applied; finish it first")
        older = [published for published, _ in standing.published[1:]]
        if keep_published > 1 and before.newest in older:
            with replace_atomically(directory / f"{before.newest}.duckdb") as temporary:
                link_or_copy(database, temporary)
        # Before the copy, so that it does not need more disk than in the end.
        _remove_kept(directory, standing, keep_published - 1)
        show_to_readers(register_file, database, privacy)
    _remove_kept(directory, standing, keep_published - 1)


def kept_files(register_file: Path) -> list[Path]:
    """The older published files that are kept, the newest first."""
    files = register_file.with_name("published").glob("*.duckdb")
    keys = {file: key for file in files if (key := key_or_none(file.stem)) is not None}
    return sorted(keys, key=lambda file: keys[file], reverse=True)


def _remove_kept(directory: Path, standing: PublishedState, keep: int) -> None:
    """Removes the kept files but the newest; those of extracts that were rolled back too."""
    kept = {file: key_or_none(file.stem) for file in directory.glob("*.duckdb")}
    in_order = [key for key, _ in standing.published[1:] if key in kept.values()]
    for file, key in kept.items():
        if key is not None and key not in in_order[:keep]:
            file.unlink(missing_ok=True)
    for leftover in directory.glob("*.part"):  # of a process that was killed: we hold the lock
        leftover.unlink(missing_ok=True)


def _remove_staged(staging_dir: Path, key: ExtractKey) -> None:
    staging_file(staging_dir, key).unlink(missing_ok=True)
    (staging_dir / f"{key}.lock").unlink(missing_ok=True)


def is_published(connection: duckdb.DuckDBPyConnection, database: Place, extract: Extract) -> bool:
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
    connection: duckdb.DuckDBPyConnection, database: Place
) -> list[tuple[ExtractKey, str]]:
    """The published extracts with the sha256 of their ZIPs, the newest first.

    Raises:
        RegisterError: the file is no register.
    """
    return list(read_published_state_of(connection, database).published)


def read_published_state_of(
    connection: duckdb.DuckDBPyConnection, database: Place
) -> PublishedState:
    """What readers are told of extracts.

    Nothing when nothing is published. Nothing too when somebody has the file open for writing:
    nothing may stop us then.

    Raises:
        RegisterError: the file is no register.
        StorageError: a shared register does not answer.
    """
    try:
        with open_published(connection, database) as standing:
            return standing
    except NotReadyError:
        return PublishedState()
    except StorageError:
        if isinstance(database, Path):
            return PublishedState()
        raise


def published_state_of(database: Place) -> PublishedState:
    """What `read_standing_of` says, on a connection of its own.

    Raises:
        RegisterError: the file is no register.
        StorageError: a shared register does not answer.
    """
    with duckdb.connect(":memory:") as connection:
        return read_published_state_of(connection, database)
