"""`kbo doctor`: looks at one thing after the other and says what is wrong and what to do.

What it looks at is in `health.py`, `privacy.py`, `leftovers.py` and `defs/examining.py`. To look at
one thing more, add a function to one of the two lists here.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from kbo_pipeline import health, leftovers, privacy
from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.foreign_errors import line_of
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.defs import examining
from kbo_pipeline.defs.examining import Installation, first_line
from kbo_pipeline.defs.importing import open_instance
from kbo_pipeline.defs.storage import explained
from kbo_pipeline.findings import Finding, found_error
from kbo_pipeline.postgres import embedded_server_url

_T = TypeVar("_T")

_ON_DISK: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "settings": health.check_settings,
    "secrets": privacy.check_secrets,
    "PostgreSQL's address": privacy.check_postgres_url,
    "directories": health.check_directories,
    "privacy": privacy.check_privacy,
    "disk": health.check_disks,
    "kbo start": health.check_start,
    "pause": health.check_pause,
    "published register": health.check_published,
    "register at work": health.check_register,
    "inbox": leftovers.check_inbox,
    "leftovers": leftovers.check_leftovers,
}

_EXAMINATIONS: dict[str, Callable[[Installation], Iterator[Finding]]] = {
    "ledger": examining.check_ledger,
    "daemon": examining.check_daemons,
    "sensors": examining.check_sensors,
    "runs": examining.check_stuck_runs,
    "failed runs": examining.check_failed_runs,
    "pools": examining.check_pools,
    "extracts": examining.check_extracts,
    "rows set aside": examining.check_rejected_rows,
    "portal": examining.check_portal,
    "freshness": examining.check_freshness,
}


def diagnose(settings: Settings) -> Iterator[Finding]:
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
            installation = Installation(settings, instance, health.start_process(settings))
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
        known = line_of(error) or f"{type(error).__name__}: {first_line(str(error))}"
        said = f"cannot be looked at: {known}"
        yield Finding("error", subject, said, "mend that, then kbo doctor again")
