"""`kbo doctor`: looks at one thing after the other and says what is wrong and what to do.

What it looks at is in `disk_checks.py`, `privacy.py`, `leftovers.py` and `dagster_checks.py`. To
look at one thing more, add a function to one of the two lists here.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.foreign_errors import line_of
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate.instance import open_instance
from kbo_pipeline.operate.processes.postgres import embedded_server_url
from kbo_pipeline.operate.processes.storage import explained
from kbo_pipeline.operate.repair import dagster_checks, disk_checks, leftovers, privacy
from kbo_pipeline.operate.repair.dagster_checks import Installation, Sensors
from kbo_pipeline.operate.repair.findings import Finding, found_error

_T = TypeVar("_T")

_ON_DISK: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "settings": disk_checks.check_settings,
    "secrets": privacy.check_secrets,
    "PostgreSQL's address": privacy.check_postgres_url,
    "directories": disk_checks.check_directories,
    "privacy": privacy.check_privacy,
    "disk": disk_checks.check_disks,
    "kbo start": disk_checks.check_start,
    "pause": disk_checks.check_pause,
    "published register": disk_checks.check_published,
    "register at work": disk_checks.check_register,
    "inbox": leftovers.check_inbox,
    "leftovers": leftovers.check_leftovers,
}

_EXAMINATIONS: dict[str, Callable[[Installation], Iterator[Finding]]] = {
    "ledger": dagster_checks.check_ledger,
    "daemon": dagster_checks.check_daemons,
    "sensors": dagster_checks.check_sensors,
    "runs": dagster_checks.check_stuck_runs,
    "failed runs": dagster_checks.check_failed_runs,
    "pools": dagster_checks.check_pools,
    "extracts": dagster_checks.check_extracts,
    "rows set aside": dagster_checks.check_rejected_rows,
    "portal": dagster_checks.check_portal,
    "freshness": dagster_checks.check_freshness,
}


def diagnose(settings: Settings, sensors: Sensors) -> Iterator[Finding]:
    """Looks at everything, one thing after the other; what cannot be looked at is a finding too.

    The embedded PostgreSQL is started for it, if there is one.
    """
    for subject, look in _ON_DISK.items():
        yield from _guarded(subject, look, settings)
    if settings.postgres_url is None and not settings.postgres_dir.exists():
        yield Finding("ok", "PostgreSQL", "none yet; kbo start and kbo import make it")
        return
    where = "at DAGSTER_POSTGRES_URL" if settings.postgres_url else f"in {settings.postgres_dir}"
    try:
        with open_instance(settings) as instance:
            instance.get_runs_count()
            yield Finding("ok", "PostgreSQL", f"answers, {where}")
            installation = Installation(
                settings, instance, disk_checks.start_process(settings), sensors
            )
            for subject, examine in _EXAMINATIONS.items():
                yield from _guarded(subject, examine, installation)
    except KboError as error:
        yield found_error("PostgreSQL", error)
    except SQLAlchemyError as error:
        embedded = settings.postgres_dir if settings.postgres_url is None else None
        url = make_url(settings.postgres_url or embedded_server_url(settings.postgres_dir))
        yield found_error("PostgreSQL", explained(error, url, embedded))


def _guarded(subject: str, look: Callable[[_T], Iterable[Finding]], at: _T) -> Iterator[Finding]:
    """Lets a look that fails be a finding, so that it hides none of the others."""
    try:
        yield from look(at)
    except KboError as error:
        yield found_error(subject, error)
    except Exception as error:  # whatever it is: something is wrong there, and it is told
        known = line_of(error) or f"{type(error).__name__}: {first_line(error)}"
        said = f"cannot be looked at: {known}"
        yield Finding("error", subject, said, "mend that, then kbo doctor again")
