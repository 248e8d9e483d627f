"""How far each extract is, as Dagster's storage knows it; the register stays closed."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg
from sqlalchemy import or_, select

from kbo_pipeline.core.extracts import (
    ExtractKey,
    LedgerEntry,
    PublishedState,
    key_or_none,
    next_to_apply,
)
from kbo_pipeline.core.tables import ALL_TABLES, CODE, ENTERPRISE, TABLES
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.runs.partitions import batch_or_none, batches_by_extract

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorState

EXTRACT_TAG = "kbo/extract"
"""Tag of every run that we start: the key of its extract."""

CANCELLED_TAG = "kbo/cancelled"
"""Tag of the newest run of an extract that was cancelled: the run's own id."""

INBOX_TAG = "kbo/inbox"
"""Tag of the runs that the inbox starts: which ZIP, and when it was claimed."""

ACCEPT_LOSS_TAG = "kbo/accept_loss"
"""Tag of a run that publishes an extract although it takes away many rows: who accepts that."""

ACCEPT_FAULTS_TAG = "kbo/accept_faults"
"""Tag of a run that sets aside any number of faulty rows of an extract: who accepts that."""

REPAIR_TAG = "kbo/repair"
"""Tag of the runs by which a Full takes the place of the published extract: the Full."""

PUBLISH_JOB = "publish_extract"
"""The job that publishes an extract, and makes its report."""

ROLLBACK_JOB = "rollback_extract"
"""The job that undoes an extract."""

SEARCH_JOB = "build_search_index"
"""The job that makes the search index; it is about what is published, whatever that is then."""

VERIFY_JOB = "verify_full"
"""The job that compares the register with a Full."""

EXPORT_JOB = "export_parquet"
"""The job that writes what is published as Parquet."""

ASSETS_OF_JOBS = {
    "stage_extract": ["extract_zip", *(f"import_staging_{table.name}" for table in ALL_TABLES)],
    "apply_batches": [table.name for table in TABLES],
    "publish_extract": [CODE.name, "published_extract", "change_report"],
}
"""What a run that the UI or a backfill started is called after: the job with these assets."""

_UI_JOB = "__ASSET_JOB"
"""What Dagster calls the job of such a run, whatever its assets are."""

_IMPORT_JOBS = frozenset({*ASSETS_OF_JOBS, ROLLBACK_JOB})
_IMPORTED = frozenset(dg.AssetKey(name) for names in ASSETS_OF_JOBS.values() for name in names)

NOT_FINISHED_STATUSES = [
    status
    for status in dg.DagsterRunStatus
    if status.value not in ("SUCCESS", "FAILURE", "CANCELED", "MANAGED")
]

# Names of Dagster's own, which its public API does not have.
PARTITION_TAG = "dagster/partition"
MAX_RETRIES_TAG = "dagster/max_retries"
WILL_RETRY_TAG = "dagster/will_retry"
AUTO_RETRY_RUN_ID_TAG = "dagster/auto_retry_run_id"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

_EXTRACT_TAGS = (EXTRACT_TAG, PARTITION_TAG, RANGE_START_TAG)
"""The tags that say which extract a run is about; the first that is there counts."""

STAGED = dg.AssetKey(f"import_staging_{ENTERPRISE.name}")
"""The asset whose materialization says that an extract is staged."""

WARNINGS = "warnings"
"""Metadata of a staging: what was odd in the ZIP."""

REJECTED_ROWS = "rejected_rows"
"""Metadata of a staging: how many records of the ZIP are set aside."""

LEDGER_HASH = "ledger/hash"
"""Metadata of a publication: the chained hash of the ledger."""

PUBLISHED = dg.AssetKey("published_extract")
"""The asset whose materialization says that readers see an extract."""

REPORTED = dg.AssetKey("change_report")
"""The asset whose materialization says that the report on an extract is made."""


@dataclass(frozen=True)
class Progress:
    """A view on the events of an instance, read when asked for.

    Events have growing storage ids. A batch counts as applied when its newest materialization is
    younger than the staging of its extract: so an extract that was staged again is applied again.
    """

    instance: dg.DagsterInstance

    @cached_property
    def staged(self) -> Mapping[ExtractKey, int]:
        """Storage id of the newest staging of each extract."""
        return _by_extract(self._materialized(STAGED))

    def staged_among(self, keys: Collection[ExtractKey]) -> Mapping[ExtractKey, int]:
        """What `staged` says of these extracts alone."""
        return _by_extract(self._materialized(STAGED, set(map(str, keys)))) if keys else {}

    @cached_property
    def published(self) -> Mapping[ExtractKey, int]:
        """Storage id of the newest publication of each extract."""
        return _by_extract(self._materialized(PUBLISHED))

    @cached_property
    def reported(self) -> set[ExtractKey]:
        """The extracts on which the report is made."""
        return set(_by_extract(self._materialized(REPORTED)))

    @cached_property
    def known(self) -> set[ExtractKey]:
        """All extracts that have a partition."""
        return set(
            _by_extract(dict.fromkeys(self.instance.get_dynamic_partitions("kbo_extracts"), 0))
        )

    @cached_property
    def batches(self) -> Mapping[ExtractKey, list[str]]:
        """Batch keys of each extract, in number order."""
        return batches_by_extract(self.instance)

    @property
    def newest_published(self) -> ExtractKey | None:
        """The newest published extract."""
        return max(self.published, default=None)

    @property
    def next_to_apply(self) -> ExtractKey | None:
        """The extract that is to be applied and published next; it may still be at staging.

        One that is at staging, or was cancelled, keeps later ones waiting: extracts are published
        in number order, whichever is staged first.
        """
        waiting = {k for k in self.staged if k in self.batches} | self.at_staging | self.cancelled
        return next_to_apply(waiting - self.published.keys(), self.newest_published)

    @cached_property
    def at_staging(self) -> set[ExtractKey]:
        """Extracts whose staging is queued or runs."""
        runs = [run for run in self.unfinished_runs if does(run, "stage_extract", STAGED)]
        staging = {extract_of(run) for run in runs}
        return {key for key in self.known if str(key) in staging}

    @cached_property
    def unfinished_runs(self) -> list[dg.DagsterRun]:
        """The runs that are queued or at work."""
        return list(self.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)))

    @property
    def unfinished_imports(self) -> list[dg.DagsterRun]:
        """Those of them that import or undo an extract."""
        return [run for run in self.unfinished_runs if imports(run)]

    @cached_property
    def newest_runs(self) -> Mapping[str, dg.RunRecord]:
        """The newest run that imports or undoes each extract, by its key."""
        return self._newest_imports(None)

    @cached_property
    def last_runs(self) -> Mapping[str, dg.RunRecord]:
        """The newest run about each extract, whatever it does, by its key."""
        run_ids = {text: ids[0] for text, ids in _run_ids(self.instance).items()}
        return _found(self.instance, run_ids)

    def newest_run(self, key: ExtractKey) -> dg.DagsterRun | None:
        """The newest run that imports or undoes an extract; None when there is none."""
        record = self._newest_imports([key]).get(str(key))
        return record.dagster_run if record is not None else None

    @cached_property
    def cancelled(self) -> set[ExtractKey]:
        """Unpublished extracts that were cancelled, and not taken up since."""
        unpublished = self.known - self.published.keys()
        newest = self._newest_imports(unpublished)
        return {
            key
            for key in unpublished
            if (record := newest.get(str(key))) is not None and is_cancelled(record.dagster_run)
        }

    def _newest_imports(self, keys: Collection[ExtractKey] | None) -> Mapping[str, dg.RunRecord]:
        """The newest run that imports or undoes each of these extracts, or of all.

        What a run of the UI makes is in its body, which is read of the newest run of each extract;
        of the one before where that only reads.
        """
        newest: dict[str, dg.RunRecord] = {}
        left = {
            text: iter(ids)
            for text, ids in _run_ids(self.instance, keys, only_imports=True).items()
        }
        while left:
            looked_at = {text: run_id for text, ids in left.items() if (run_id := next(ids, None))}
            records = _found(self.instance, looked_at)
            newest |= {t: record for t, record in records.items() if imports(record.dagster_run)}
            left = {text: left[text] for text in looked_at.keys() - newest.keys()}
        return newest

    @cached_property
    def staging_failures(self) -> Mapping[ExtractKey, list[float]]:
        """When the staging of an extract failed, the last time first, in seconds of the epoch.

        Only for extracts that were not staged since. Dagster's own retries count, too.
        """
        failed_at: dict[ExtractKey, list[float]] = {}
        run_ids = _run_ids(self.instance, self.known - self.staged.keys())
        wanted = [run_id for ids in run_ids.values() for run_id in ids]
        for record in _records(self.instance, wanted, [dg.DagsterRunStatus.FAILURE]):
            if record.dagster_run.job_name != "stage_extract":
                continue
            key = ExtractKey.parse(str(extract_of(record.dagster_run)))
            failed_at.setdefault(key, []).append(record.end_time or record.start_time or 0.0)
        return failed_at

    def rejected_rows(self, key: ExtractKey) -> int:
        """Records of an extract's ZIP that its last staging set aside."""
        return int(str(self._staging_metadata(key, REJECTED_ROWS) or 0))

    def warnings(self, key: ExtractKey) -> list[str]:
        """What its last staging found odd in an extract's ZIP, but for rows set aside."""
        lines = self._staging_metadata(key, WARNINGS)
        warnings = map(str, lines) if isinstance(lines, list) else ()
        return [line for line in warnings if "set aside, see rejected_row" not in line]

    def _staging_metadata(self, key: ExtractKey, name: str) -> object:
        wanted = dg.AssetRecordsFilter(asset_key=STAGED, asset_partitions=[str(key)])
        for record in self.instance.fetch_materializations(wanted, limit=1).records:
            event = record.asset_materialization
            value = event.metadata.get(name) if event else None
            return None if value is None else value.value
        return None

    def applied(self, key: ExtractKey) -> dict[str, dict[str, int]]:
        """Storage ids of the applied batches of an extract, by table name and batch key."""
        staged = self.staged.get(key, 0)
        batches = set(self.batches.get(key, ()))
        return {
            table.name: {
                batch: storage_id
                for batch, storage_id in self._materialized(
                    dg.AssetKey(table.name), batches
                ).items()
                if storage_id > staged
            }
            for table in TABLES
        }

    def missing_batches(self, key: ExtractKey) -> list[str]:
        """Batch keys that are not applied for every table, in number order."""
        applied = self.applied(key)
        return [
            batch
            for batch in self.batches.get(key, [])
            if any(batch not in applied[table.name] for table in TABLES)
        ]

    def _materialized(
        self, asset: dg.AssetKey, partitions: set[str] | None = None
    ) -> Mapping[str, int]:
        return self.instance.event_log_storage.get_latest_storage_id_by_partition(
            asset, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=partitions
        )


def newest_published(state: PublishedState, progress: Progress) -> ExtractKey | None:
    """The newest published extract: as the published register says, or else as events do."""
    return state.newest or progress.newest_published


def extract_of(run: dg.DagsterRun) -> str | None:
    """The key of the extract that a run is about, whoever started it."""
    return _extract_in(run.tags)


def _extract_in(tags: Mapping[str, str]) -> str | None:
    partition = next((tags[name] for name in _EXTRACT_TAGS if tags.get(name)), None)
    batch = batch_or_none(partition) if partition else None
    return str(batch.extract) if batch else partition


def runs_about(
    instance: dg.DagsterInstance,
    keys: Collection[ExtractKey],
    statuses: Collection[dg.DagsterRunStatus] = (),
) -> list[dg.DagsterRun]:
    """The runs about extracts, the newest first, whoever started them.

    Args:
        instance: where they are recorded.
        keys: the extracts.
        statuses: of which status; all without it.
    """
    run_ids = [run_id for ids in _run_ids(instance, keys).values() for run_id in ids]
    return [record.dagster_run for record in _records(instance, run_ids, statuses)]


def import_runs(
    instance: dg.DagsterInstance,
    keys: Collection[ExtractKey],
    statuses: Collection[dg.DagsterRunStatus] = (),
) -> list[dg.DagsterRun]:
    """Those of `runs_about` that import or undo extracts."""
    run_ids = [i for ids in _run_ids(instance, keys, only_imports=True).values() for i in ids]
    runs = (record.dagster_run for record in _records(instance, run_ids, statuses))
    return [run for run in runs if imports(run)]


def _found(instance: dg.DagsterInstance, run_ids: Mapping[str, str]) -> Mapping[str, dg.RunRecord]:
    """The records of these runs, under the same names; without those that are gone."""
    records = _records(instance, [*run_ids.values()])
    by_id = {record.dagster_run.run_id: record for record in records}
    return {text: by_id[run_id] for text, run_id in run_ids.items() if run_id in by_id}


def _records(
    instance: dg.DagsterInstance,
    run_ids: Collection[str],
    statuses: Collection[dg.DagsterRunStatus] = (),
) -> list[dg.RunRecord]:
    """The records of these runs, the newest first; of some statuses only where they are given."""
    if not run_ids:  # which Dagster refuses in a filter
        return []
    wanted = dg.RunsFilter(run_ids=list(run_ids), statuses=list(statuses))
    return list(instance.get_run_records(wanted))


def _run_ids(
    instance: dg.DagsterInstance,
    keys: Collection[ExtractKey] | None = None,
    *,
    only_imports: bool = False,
) -> Mapping[str, list[str]]:
    """The ids of the runs about extracts, the newest first, by extract.

    However many newer ones there are: a look at the newest runs alone would take an extract whose
    runs are older for one that has none.

    Args:
        instance: where they are recorded.
        keys: the extracts; all of which there are runs without it.
        only_imports: without runs of jobs that only read. One of the UI may be among them.
    """
    if keys is not None and not keys:
        return {}
    wanted = None if keys is None else {str(key) for key in keys}
    run_ids: dict[str, list[str]] = {}
    for run_id, tags in _tags_of_runs(instance, wanted, only_imports=only_imports):
        extract = _extract_in(tags)
        if extract is not None and (wanted is None or extract in wanted):
            run_ids.setdefault(extract, []).append(run_id)
    return run_ids


def _tags_of_runs(
    instance: dg.DagsterInstance, extracts: Collection[str] | None, *, only_imports: bool
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Ids of runs with their tags, the newest run first: of all that are about these extracts.

    Perhaps of others, too. Where possible without the runs' bodies, and with those tags alone that
    say what a run is about.

    Args:
        instance: where the runs are recorded.
        extracts: keys of extracts; None for any.
        only_imports: as of `_run_ids`.
    """
    jobs = [_UI_JOB, *_IMPORT_JOBS]
    if not insides.are_tested():
        for run in instance.get_runs():
            if not only_imports or run.job_name in jobs:
                yield run.run_id, run.tags
        return
    from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    column = RunTagsTable.c
    query = (
        select(column.run_id, column.key, column.value)
        .join(RunsTable, RunsTable.c.run_id == column.run_id)
        .where(column.key.in_(_EXTRACT_TAGS))
        .order_by(RunsTable.c.id.desc())
    )
    if only_imports:
        query = query.where(RunsTable.c.pipeline_name.in_(jobs))
    if extracts is not None:
        of_batches = (column.value.like(f"{extract}-%") for extract in extracts)
        is_about = or_(column.value.in_(list(extracts)), *of_batches)
        query = query.where(
            column.run_id.in_(select(column.run_id).where(column.key.in_(_EXTRACT_TAGS), is_about))
        )
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    tags: dict[str, dict[str, str]] = {}
    with storage.connect() as connection:
        for run_id, name, value in connection.execute(query):
            tags.setdefault(run_id, {})[name] = value
    yield from tags.items()


def job_of(run: dg.DagsterRun) -> str:
    """The job of a run; for a run of the UI or of a backfill, the job that has its assets.

    Dagster calls the job of all those `__ASSET_JOB`. Where no job has the assets it is
    `materialize`, as in the view `kbo_queue`.
    """
    if run.job_name != _UI_JOB:
        return run.job_name
    names = {asset.to_user_string() for asset in run.asset_selection or ()}
    jobs = (job for job, assets in ASSETS_OF_JOBS.items() if names and names <= {*assets})
    return next(jobs, "materialize")


def imports(run: dg.DagsterRun) -> bool:
    """Whether a run brings its extract further or back.

    Any other, such as one that exports or compares, reads what is published: whatever becomes of
    it, the extract stands where it stood.
    """
    if run.job_name != _UI_JOB:
        return run.job_name in _IMPORT_JOBS
    return not run.asset_selection or not _IMPORTED.isdisjoint(run.asset_selection)


def is_rollback(run: dg.DagsterRun) -> bool:
    """Whether a run has undone its extract."""
    return run.job_name == ROLLBACK_JOB and run.is_success


def is_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tells whether Dagster itself retries a failed run, or may.

    It says so by a tag, a moment after the failure; until then only runs without retries, such as
    those of `kbo` commands, are certain.
    """
    will_retry = run.tags.get(WILL_RETRY_TAG)
    if will_retry is not None:
        return will_retry == "true"
    return instance.run_retries_enabled and run.tags.get(MAX_RETRIES_TAG) != "0"


def is_cancelled(run: dg.DagsterRun) -> bool:
    """Whether the run says that its extract was cancelled.

    Only people cancel a run of the daemon. Ctrl-C also cancels the run of a `kbo` command, but does
    not mean its extract, so that `kbo cancel` marks such a run. A retry inherits tags, but not the
    id.
    """
    if run.tags.get(CANCELLED_TAG) == run.run_id:
        return True
    return run.status == dg.DagsterRunStatus.CANCELED and "kbo/started_by" not in run.tags


def does(run: dg.DagsterRun, job: str, asset: dg.AssetKey) -> bool:
    """Whether a run is one of a job, or makes the asset of that job by itself."""
    return run.job_name == job or asset in (run.asset_selection or ())


def _by_extract(ids: Mapping[str, int]) -> dict[ExtractKey, int]:
    """Leaves out partitions that anyone may have added in the UI under other names."""
    return {key: id_ for text, id_ in ids.items() if (key := key_or_none(text)) is not None}


def ledger_metadata(entry: LedgerEntry) -> dict[str, int | str]:
    """What a publication records of the ledger: the witness against which it is compared later."""
    return {
        "ledger/batches": entry.batches,
        "ledger/records": entry.records,
        LEDGER_HASH: entry.hash,
    }


def sensor_states(instance: dg.DagsterInstance) -> list["InstigatorState"]:
    """What Dagster knows of each sensor that has ever looked, or was started or stopped."""
    states = instance.all_instigator_state()
    return [state for state in states if state.instigator_type.value == "SENSOR"]
