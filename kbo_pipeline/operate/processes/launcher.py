"""How runs are ended: one that applies batches may finish the one that it is at."""

import logging
import threading

import dagster as dg

from kbo_pipeline.core.signals import PATIENCE
from kbo_pipeline.core.tables import ENTERPRISE
from kbo_pipeline.operate import insides

_APPLIED = dg.AssetKey(ENTERPRISE.name)


class KboRunLauncher(dg.DefaultRunLauncher):
    """Dagster's own launcher, but for the end of runs that apply batches.

    Such a run looks before each batch whether somebody ends it. Only when it does not come to that
    in time is it interrupted, which rolls its batch back.
    """

    def terminate(self, run_id: str) -> bool:
        """Tells a run to end; told once more, it is interrupted."""
        run = self._instance.get_run_by_id(run_id) if insides.are_tested() else None
        if run is None or run.status != dg.DagsterRunStatus.STARTED or not _applies(run):
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        timer = threading.Timer(PATIENCE, self._interrupt, [run_id])
        timer.daemon = True
        timer.start()
        return True

    def _interrupt(self, run_id: str) -> None:
        try:
            super().terminate(run_id)  # type: ignore[no-untyped-call]
        except Exception as error:  # Dagster's monitoring cancels the run after three minutes
            logging.getLogger("kbo_pipeline").warning("run %s: not interrupted: %s", run_id, error)


def _applies(run: dg.DagsterRun) -> bool:
    return run.job_name == "apply_batches" or _APPLIED in (run.asset_selection or ())
