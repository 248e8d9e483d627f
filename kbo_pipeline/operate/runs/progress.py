"""How far each extract is, as Dagster's storage knows it; the register stays closed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import dagster as dg

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import ExtractKey, next_to_apply
from kbo_pipeline.core.ledger import LedgerEntry, PublishedState
from kbo_pipeline.core.tables import ALL_TABLES, CODE, ENTERPRISE, TABLES
from kbo_pipeline.operate.runs.partitions import batch_or_none, batches_by_extract
from kbo_pipeline.operate.undocumented import tags_of_runs

EXTRACT_TAG = "kbo/extract"
"""Tag of every run that we start: the key of its extract."""

CANCELLED_TAG = "kbo/cancelled"
"""Tag of the newest run of an extract that was cancelled: the run's own id."""

PUBLISH_JOB = "publish_extract"
"""The job that shows an extract to readers, and makes its report."""

ROLLBACK_JOB = "rollback_extract"
"""The job that undoes an extract."""

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

_EXTRACTS = "kbo_extracts"
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
        return set(_by_extract(dict.fromkeys(self.instance.get_dynamic_partitions(_EXTRACTS), 0)))

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
        staging = {extract_of(run) for run in self.unfinished_runs if _is_staging(run)}
        return {key for key in self.known if str(key) in staging}

    @cached_property
    def unfinished_runs(self) -> list[dg.DagsterRun]:
        """The runs that are queued or at work."""
        return list(self.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)))

    @cached_property
    def newest_runs(self) -> Mapping[str, dg.RunRecord]:
        """The newest run of each extract, by its key."""
        return self._newest_runs(_run_ids(self.instance))

    def newest_run(self, key: ExtractKey) -> dg.DagsterRun | None:
        """The newest run about an extract; None when there is none."""
        record = self._newest_runs(_run_ids(self.instance, [key])).get(str(key))
        return record.dagster_run if record is not None else None

    @cached_property
    def cancelled(self) -> set[ExtractKey]:
        """Unpublished extracts that somebody has cancelled, and nobody has taken up since."""
        unpublished = self.known - self.published.keys()
        newest = self._newest_runs(_run_ids(self.instance, unpublished))
        return {
            key
            for key in unpublished
            if (record := newest.get(str(key))) is not None and is_cancelled(record.dagster_run)
        }

    def _newest_runs(self, run_ids: Mapping[str, list[str]]) -> Mapping[str, dg.RunRecord]:
        wanted = [ids[0] for ids in run_ids.values()]
        records = _records(self.instance, wanted)
        found = {record.dagster_run.run_id: record for record in records}
        return {text: found[ids[0]] for text, ids in run_ids.items() if ids[0] in found}

    @cached_property
    def staging_failures(self) -> Mapping[ExtractKey, list[float]]:
        """When the staging of an extract failed, the last time first, in seconds of the epoch.

        Of extracts that were not staged since; retries that Dagster makes by itself included.
        """
        found: dict[ExtractKey, list[float]] = {}
        run_ids = _run_ids(self.instance, self.known - self.staged.keys())
        wanted = [run_id for ids in run_ids.values() for run_id in ids]
        for record in _records(self.instance, wanted, [dg.DagsterRunStatus.FAILURE]):
            if record.dagster_run.job_name != "stage_extract":
                continue
            key = ExtractKey.parse(str(extract_of(record.dagster_run)))
            found.setdefault(key, []).append(record.end_time or record.start_time or 0.0)
        return found

    def rejected_rows(self, key: ExtractKey) -> int:
        """Records of an extract's ZIP that were set aside when it was staged last."""
        return int(str(self._said_at_staging(key, REJECTED_ROWS) or 0))

    def warnings(self, key: ExtractKey) -> list[str]:
        """What was odd in an extract's ZIP when it was staged last, but for rows set aside."""
        found = self._said_at_staging(key, WARNINGS)
        warnings = map(str, found) if isinstance(found, list) else ()
        return [line for line in warnings if "set aside, see rejected_row" not in line]

    def _said_at_staging(self, key: ExtractKey, name: str) -> object:
        wanted = dg.AssetRecordsFilter(asset_key=STAGED, asset_partitions=[str(key)])
        for record in self.instance.fetch_materializations(wanted, limit=1).records:
            event = record.asset_materialization
            found = event.metadata.get(name) if event else None
            return None if found is None else found.value
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


def newest_published(standing: PublishedState, progress: Progress) -> ExtractKey | None:
    """The newest published extract: as the file of the readers says, or else as events do."""
    return standing.newest or progress.newest_published


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
    instance: dg.DagsterInstance, keys: Collection[ExtractKey] | None = None
) -> Mapping[str, list[str]]:
    """The ids of the runs about extracts, the newest first, by extract.

    However many newer ones there are: a look at the newest runs alone would take an extract whose
    runs are older for one that has none.

    Args:
        instance: where they are recorded.
        keys: the extracts; all of which there are runs without it.
    """
    if keys is not None and not keys:
        return {}
    wanted = None if keys is None else {str(key) for key in keys}
    found: dict[str, list[str]] = {}
    for run_id, of_run in tags_of_runs(instance, _EXTRACT_TAGS, wanted):
        extract = _extract_in(of_run)
        if extract is not None and (wanted is None or extract in wanted):
            found.setdefault(extract, []).append(run_id)
    return found


def job_of(run: dg.DagsterRun) -> str:
    """The job that a run is of; for one of the UI or of a backfill the job with its assets.

    Dagster calls all of those `__ASSET_JOB`. One that no job has the assets of is `materialize`, as
    in the view `kbo_queue`.
    """
    if run.job_name != "__ASSET_JOB":
        return run.job_name
    names = {asset.to_user_string() for asset in run.asset_selection or ()}
    jobs = (job for job, assets in ASSETS_OF_JOBS.items() if names and names <= {*assets})
    return next(jobs, "materialize")


def is_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tells whether Dagster itself takes a failed run up again, or may.

    It says so by a tag, a moment after the failure; until then only runs without retries, such as
    those of `kbo` commands, are certain.
    """
    will_retry = run.tags.get(WILL_RETRY_TAG)
    if will_retry is not None:
        return will_retry == "true"
    return instance.run_retries_enabled and run.tags.get(MAX_RETRIES_TAG) != "0"


def is_cancelled(run: dg.DagsterRun) -> bool:
    """Whether the run says that its extract was cancelled.

    A run of the daemon is canceled by people only. One of a `kbo` command also by Ctrl-C, which is
    not meant for the extract; so that `kbo cancel` marks it. A retry inherits tags, but not the id.
    """
    if run.tags.get(CANCELLED_TAG) == run.run_id:
        return True
    return run.status == dg.DagsterRunStatus.CANCELED and "kbo/started_by" not in run.tags


def _is_staging(run: dg.DagsterRun) -> bool:
    return run.job_name == "stage_extract" or STAGED in (run.asset_selection or ())


def _by_extract(ids: Mapping[str, int]) -> dict[ExtractKey, int]:
    """Leaves out partitions that anyone may have added in the UI under other names."""
    found = {}
    for text, storage_id in ids.items():
        try:
            found[ExtractKey.parse(text)] = storage_id
        except ExtractError:
            continue
    return found


INBOX_TAG = "kbo/inbox"
"""Tag of the runs that the inbox starts: which ZIP, and when it was claimed."""


ACCEPT_LOSS_TAG = "kbo/accept_loss"
"""Tag of a run that publishes an extract although it takes away many rows: who accepts that."""


LEDGER_HASH = "ledger/hash"


def ledger_metadata(link: LedgerEntry) -> dict[str, int | str]:
    """What a publication records of the ledger: the witness against which it is compared later."""
    return {"ledger/batches": link.batches, "ledger/records": link.records, LEDGER_HASH: link.hash}


ASSETS_OF_JOBS = {
    "stage_extract": ["extract_zip", *(f"import_staging_{table.name}" for table in ALL_TABLES)],
    "apply_batches": [table.name for table in TABLES],
    "publish_extract": [CODE.name, "published_extract", "change_report"],
}
"""What a run that the UI or a backfill started is called after: the job with these assets."""
