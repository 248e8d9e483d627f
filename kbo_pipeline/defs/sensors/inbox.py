"""The sensor that takes ZIPs out of the inbox, starts their import, and puts them away."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import dagster as dg

from kbo_pipeline.core.errors import ExtractError, KboError, OrderError, StorageError
from kbo_pipeline.core.extracts import Extract, ExtractKey, PublishedState, check_order
from kbo_pipeline.core.files import exclusive_lock, is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import listed, printable
from kbo_pipeline.defs.jobs import stage_extract
from kbo_pipeline.defs.step import load_settings
from kbo_pipeline.fetch.inbox import (
    COPYING_SECONDS,
    SETTLED_SECONDS,
    Inbox,
    InboxFile,
    in_number_order,
    settled,
)
from kbo_pipeline.fetch.zips import drop_zip, keep_zip
from kbo_pipeline.operate.markers import PAUSED, is_paused
from kbo_pipeline.operate.runs.claims import claim_file, queue_tags
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import INBOX_TAG, Progress, is_retried, newest_published
from kbo_pipeline.operate.runs.status import error_of_run, failure_message, step_failure
from kbo_pipeline.read.published import published_state_of

CHECKING_SECONDS = 20.0
"""After so long a tick checks no further ZIP: Dagster gives it 60 s, and one may take 20."""

_LOST_SECONDS = 60.0
"""A requested run that is not there after so long never comes: its daemon died."""

_PAUSE_SECONDS = 60.0  # after a transient failure
_MOST_FAILURES = 3
_MOST_NAMED = 3
_TICK_SECONDS = 2
_AGAIN = "Fix the cause and drop the ZIP into the inbox again; this file here is not imported."

_inboxes: dict[Path, Inbox] = {}  # each knows what it has checked; a code server lives long


@dg.sensor(
    job=stage_extract,
    minimum_interval_seconds=_TICK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Imports the ZIPs that are dropped into the inbox.",
)
def inbox_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Claims sound ZIPs, starts their staging, and puts away those that are done or rejected."""
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    inbox = _inboxes.setdefault(settings.inbox_dir, Inbox(settings.inbox_dir))
    tick = _Tick(context.instance, settings, inbox)
    try:
        with exclusive_lock(settings.work_dir / "inbox.lock"):
            tick.run()
    except KboError as error:
        tick.waiting.append(str(error))
    except OSError as error:
        tick.waiting.append(f"{settings.inbox_dir}: {error.strerror}; see its permissions")
    if not tick.requests:
        return dg.SkipReason(str(tick))
    context.log.info(str(tick))  # one file a tick; a tick without runs shows its reason
    return dg.SensorResult(
        run_requests=tick.requests,
        dynamic_partitions_requests=[
            kbo_extracts.build_add_request(
                [str(request.partition_key) for request in tick.requests]
            )
        ],
    )


@dataclass
class _Tick:
    """One look into the inbox: what it did, and what it waits for."""

    instance: dg.DagsterInstance
    settings: Settings
    inbox: Inbox
    requests: list[dg.RunRequest] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    at_work: dict[ExtractKey, tuple[InboxFile, Extract]] = field(default_factory=dict)
    fresh: set[ExtractKey] = field(default_factory=set)

    def __str__(self) -> str:
        parts = {
            "started": [str(request.partition_key) for request in self.requests],
            "done": self.finished,
            "rejected": self.rejected,
            "waiting": self.waiting,
        }
        line = "; ".join(
            f"{what}: {listed(names, _MOST_NAMED)}" for what, names in parts.items() if names
        )
        return printable(line) or f"nothing there; drop ZIPs into {self.settings.inbox_dir}"

    def run(self) -> None:
        self.inbox.prepare()
        now = self.inbox.now()
        arrived, claimed = self.inbox.look(now)
        for dropped in claimed:
            self._take_up(dropped)
        self._take_in(arrived, now)
        if not self.at_work:
            return
        published = published_state_of(self.settings.database)
        staged = [key for key in sorted(self.at_work) if self._is_staged(key, published, now)]
        self._explain(staged, newest_published(published, self.progress))

    @cached_property
    def progress(self) -> Progress:
        """The progress of each extract, read on first use."""
        return Progress(self.instance)

    @cached_property
    def runs(self) -> Mapping[str, list[dg.RunRecord]]:
        """The runs for each claim, the newest first."""
        claims = [_claim_id(*at_work) for at_work in self.at_work.values()]
        runs: dict[str, list[dg.RunRecord]] = {}
        for record in self.instance.get_run_records(dg.RunsFilter(tags={INBOX_TAG: claims})):
            runs.setdefault(record.dagster_run.tags[INBOX_TAG], []).append(record)
        return runs

    def _take_up(self, dropped: InboxFile) -> None:
        """Continues with a ZIP that an earlier tick claimed."""
        try:
            extract = self.inbox.read(dropped)
        except ExtractError as error:
            self._reject(dropped, str(error), _AGAIN)
            return
        if not self._is_twin(dropped, extract):
            self.at_work[extract.key] = (dropped, extract)

    def _take_in(self, arrived: Sequence[InboxFile], now: float) -> None:
        ready = in_number_order(settled(arrived, now))
        if len(ready) < len(arrived):
            self.waiting.append(
                f"{len(arrived) - len(ready)} of {len(arrived)} ZIPs, until none has come for"
                f" {SETTLED_SECONDS:.0f} s"
            )
        began = time.monotonic()
        for position, dropped in enumerate(ready):
            if time.monotonic() - began > CHECKING_SECONDS:
                self.waiting.append(f"{len(ready) - position} ZIPs to be checked")
                return
            self._check_in(dropped, now)

    def _check_in(self, dropped: InboxFile, now: float) -> None:
        try:
            extract = self.inbox.check(dropped)
        except ExtractError as error:
            if not dropped.is_unchanged() or now - dropped.changed_at < COPYING_SECONDS:
                self.waiting.append(f"{dropped.name} to be copied to its end ({error})")
            else:
                self._reject(dropped, str(error), _AGAIN)
            return
        if self._is_twin(dropped, extract):
            return
        try:
            with exclusive_lock(claim_file(self.settings, extract.key)):
                claimed = self.inbox.claim(dropped)
        except StorageError:
            self.waiting.append(f"{extract.key}, which another process works on")
            return
        except OSError as error:
            self.waiting.append(f"{dropped.name}, which cannot be moved ({error.strerror})")
            return
        if claimed is not None:
            self.at_work[extract.key] = (claimed, extract)
            self.fresh.add(extract.key)

    def _is_twin(self, dropped: InboxFile, extract: Extract) -> bool:
        """Puts away a ZIP if another one of the same extract is claimed."""
        if extract.key not in self.at_work:
            return False
        first, claimed = self.at_work[extract.key]
        if claimed.sha256 == extract.sha256:
            self._finish(
                dropped, f"{extract.key}: the same ZIP was there already, as {first.name}."
            )
        else:
            self._reject(
                dropped,
                f"{extract.key}: another ZIP of it is being imported, {first.name}",
                f"If this is the right one, drop it again once the other one is in"
                f" {self.inbox.rejected_dir}.",
            )
        return True

    def _is_staged(self, key: ExtractKey, published: PublishedState, now: float) -> bool:
        """Does the next thing with a claimed ZIP; True when it waits for its turn to be applied."""
        dropped, extract = self.at_work[key]
        if is_locked(claim_file(self.settings, key)):
            self.waiting.append(f"{key}, which is being worked on")
            return False
        if key in self.progress.at_staging:
            self.waiting.append(f"{key}, which is being staged")
            return False
        try:
            if published.has(extract):
                self._put_away(dropped, extract, published.at(key.number))
                return False
        except OrderError as error:
            self._reject(
                dropped, str(error), "Nothing is missing in the register: this ZIP may be deleted."
            )
            return False
        if key in self.progress.staged:
            return True
        records = self.runs.get(_claim_id(dropped, extract), [])
        if records:
            self._follow(key, records)
        elif key in self.fresh:
            self._request(dropped, extract)
        elif now - dropped.changed_at >= _LOST_SECONDS:
            self._request(self.inbox.stamp(dropped), extract)
        else:
            self.waiting.append(f"{key}, whose run is being started")
        return False

    def _put_away(self, dropped: InboxFile, extract: Extract, published: ExtractKey | None) -> None:
        """Puts away a published ZIP, and keeps a Full of an Update's number for comparison."""
        key = extract.key
        if published == key or key.type == "update":
            note = f"{key}: published before it was dropped: nothing was done."
            self._finish(dropped, note if key in self.fresh else None)
            return
        try:
            keep_zip(self.settings, key, dropped.path)
        except StorageError as error:
            self.waiting.append(f"{dropped.name} to be kept ({error})")
            return
        self._finish(
            dropped,
            f"{key}: {published} is published: full_verification compares the register with it.",
        )

    def _follow(self, key: ExtractKey, records: Sequence[dg.RunRecord]) -> None:
        """Deals with the end of a run that staged nothing."""
        dropped, extract = self.at_work[key]
        newest = records[0].dagster_run
        if newest.status == dg.DagsterRunStatus.CANCELED:
            self.waiting.append(f"{key}, whose run was canceled: kbo import {dropped.path}")
            return
        if not newest.is_failure or is_retried(self.instance, newest):
            self.waiting.append(f"{key}, which is being staged")
            return
        event = step_failure(self.instance, newest)
        failures = sum(record.dagster_run.is_failure for record in records)
        message = failure_message(event) if event else error_of_run(self.instance, newest)
        is_transient = event is None or event.step_failure_data.user_failure_data is None
        if not is_transient or failures >= _MOST_FAILURES:
            drop_zip(self.settings, extract)
            self._reject(dropped, message, _AGAIN)
        elif time.time() < (records[0].end_time or 0.0) + _PAUSE_SECONDS:
            self.waiting.append(f"{key} to be staged again, after: {message}")
        else:
            self._request(dropped, extract, failures)

    def _request(self, dropped: InboxFile, extract: Extract, failures: int = 0) -> None:
        """Requests the run that stages a ZIP: one for each claim, and another if that fails."""
        claim = _claim_id(dropped, extract)
        source = {"source_file": str(dropped.path)}
        self.requests.append(
            dg.RunRequest(
                run_key=f"inbox:{claim}:{failures}",
                partition_key=str(extract.key),
                run_config={"ops": {"extract_zip": {"config": source}}},
                tags={**queue_tags(extract.key, is_staged=False), INBOX_TAG: claim},
            )
        )

    def _explain(self, staged: Sequence[ExtractKey], newest: ExtractKey | None) -> None:
        """Adds what each staged extract waits for."""
        following = self.progress.next_to_apply if staged else None
        for key in staged:
            if following is None:
                try:
                    check_order(key, newest)
                except OrderError as error:
                    self.waiting.append(str(error))
            elif key != following:
                self.waiting.append(f"{key} for its turn after {following}")
            elif self._is_failed(key):
                self.waiting.append(f"{key}, whose import failed: kbo retry {key}")
            else:
                self.waiting.append(f"{key}, which is being applied")

    def _is_failed(self, key: ExtractKey) -> bool:
        run = self.progress.newest_run(key)
        return run is not None and run.is_failure and not is_retried(self.instance, run)

    def _finish(self, dropped: InboxFile, note: str | None) -> None:
        try:
            if self.inbox.finish(dropped, note):
                self.finished.append(dropped.name)
        except OSError as error:
            self.waiting.append(f"{dropped.name}, which cannot be moved ({error.strerror})")

    def _reject(self, dropped: InboxFile, reason: str, advice: str) -> None:
        try:
            if self.inbox.reject(dropped, reason, advice):
                self.rejected.append(f"{dropped.name} ({reason})")
        except OSError as error:
            self.waiting.append(f"{dropped.name}, which cannot be moved ({error.strerror})")


def _claim_id(dropped: InboxFile, extract: Extract) -> str:
    """Identifies a claim: a rejected ZIP that is dropped again is a new one."""
    return f"{extract.key}:{extract.sha256[:12]}:{dropped.changed_at_ns}"
