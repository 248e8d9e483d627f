"""`kbo doctor`: looks at one thing after the other and says what is wrong and what to do.

What it looks at is in `disk_checks.py` and `dagster_checks.py`. To check one thing more, add a row
to the table in `findings.py`, and a function that yields it to one of the two lists here.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import first_line, line_of
from kbo_pipeline.operate.instance import open_instance
from kbo_pipeline.operate.processes.postgres import embedded_server_url
from kbo_pipeline.operate.processes.storage import explained
from kbo_pipeline.operate.repair import dagster_checks, disk_checks
from kbo_pipeline.operate.repair.dagster_checks import Installation, Sensors
from kbo_pipeline.operate.repair.findings import Finding, found, found_error, found_ok

_T = TypeVar("_T")

_ON_DISK: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "settings": disk_checks.check_settings,
    "secrets": disk_checks.check_secrets,
    "PostgreSQL's address": disk_checks.check_postgres_url,
    "directories": disk_checks.check_directories,
    "privacy": disk_checks.check_privacy,
    "disk": disk_checks.check_disks,
    "kbo start": disk_checks.check_start,
    "pause": disk_checks.check_pause,
    "published register": disk_checks.check_published,
    "register at work": disk_checks.check_register,
    "inbox": disk_checks.check_inbox,
    "leftovers": disk_checks.check_leftovers,
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
        yield found_ok("PostgreSQL", "none yet; kbo start and kbo import create it")
        return
    where = "at DAGSTER_POSTGRES_URL" if settings.postgres_url else f"in {settings.postgres_dir}"
    try:
        with open_instance(settings) as instance:
            instance.get_runs_count()
            yield found_ok("PostgreSQL", f"answers, {where}")
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
    except Exception as error:  # whatever it is: something is wrong there, and it is shown
        line = line_of(error) or f"{type(error).__name__}: {first_line(error)}"
        yield found("check failed", None, subject, error=line)
