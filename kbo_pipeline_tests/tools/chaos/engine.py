"""The process that chaos kills: fetch, stage, apply, publish, by the core alone.

`python -m kbo_pipeline_tests.tools.chaos.engine DIRECTORY PORTAL_URL ...` goes on from whatever an
earlier one left, and ends with 0 when all that the portal offers is published.
"""

import argparse
import random
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline_tests.tools.chaos.faults import MADE_UP, Fault, install

if TYPE_CHECKING:
    from kbo_pipeline.apply.register import Register
    from kbo_pipeline.core.extracts import Batch, ExtractKey
    from kbo_pipeline.core.settings import Settings
    from kbo_pipeline.stage.staged import Staged
    from kbo_pipeline_tests.support.core import Core

BATCH_ROWS, MAX_BATCHES = 200, 6


def main() -> None:
    """Reads the command line, puts the fault in place, imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("portal_url")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", default="none")
    parser.add_argument("--at", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--attempts", type=int, default=1, help="of the import, as a run retries")
    parser.add_argument("--rebuild", action="store_true", help="in the end, from the kept ZIPs")
    options = parser.parse_args()
    # DuckDB imports it for the first bound value, and needs it for nothing here.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    chance = random.Random(options.seed)
    settings = load_settings(
        {
            "KBO_DATA_DIR": str(options.directory),
            "KBO_PORTAL_URL": options.portal_url,
            "KBO_USERNAME": "demo",
            "KBO_PASSWORD": "demo",
            "KBO_BATCH_ROWS": str(BATCH_ROWS),
            "KBO_MAX_BATCHES": str(MAX_BATCHES),
        },
        options.directory,
    )
    mend(settings)
    print("mended", flush=True)
    install(Fault(options.fault, options.at, options.delay), chance)
    for left in reversed(range(options.attempts)):
        try:
            import_all(options.directory, options.portal_url, chance)
            break
        except Exception as error:
            if not left or MADE_UP not in "".join(traceback.format_exception(error)):
                raise
    if options.rebuild:
        rebuild(settings)


def mend(settings: "Settings") -> None:
    """Compares the files, as `kbo start` does before anything runs."""
    from kbo_pipeline.operate.repair.witness import Recorded, damaged_staging
    from kbo_pipeline_tests.support.core import Core

    Core(settings.data_dir).mend(Recorded())
    for file in damaged_staging(settings).values():
        file.unlink()


def rebuild(settings: "Settings") -> None:
    """Makes the register anew from the kept ZIPs."""
    from kbo_pipeline.operate.repair.repair import rebuild_register

    rebuild_register(settings, None, lambda line: None)


def import_all(directory: Path, portal_url: str, chance: random.Random) -> None:
    """Brings everything that the portal offers into the register, batches in random order."""
    from kbo_pipeline.core.errors import OrderError
    from kbo_pipeline.fetch.portal import Portal
    from kbo_pipeline_tests.support.core import Core

    core = Core(directory, BATCH_ROWS, MAX_BATCHES)
    with Portal(portal_url, "demo", "demo") as portal:
        for offer in portal.list_extracts():
            if (newest := published(core)) is not None and newest >= offer.key.number:
                core.publish(offer.key)  # as Dagster does: the run that died is retried
                continue
            zip_file = portal.download(offer, directory / "downloads", lambda line: None)
            if not (core.staging_dir / f"{offer.key}.duckdb").exists():
                core.stage(zip_file)
            with suppress(OrderError):  # all is applied and completed, but not published
                _apply_all(core, offer.key, chance)
            core.publish(offer.key)


def _apply_all(core: "Core", key: "ExtractKey", chance: random.Random) -> None:
    with core.applying(key) as (register, staged):
        batches = list(staged.batches)
        chance.shuffle(batches)
        for batch in batches:
            _apply(register, staged, batch)


def _apply(register: "Register", staged: "Staged", batch: "Batch") -> None:
    """With further attempts on the same connection, as Dagster's shell does."""
    from kbo_pipeline.core.database import is_transient

    for attempt in range(1, 6):
        try:
            register.apply(staged, batch, attempt=attempt)
            return
        except Exception as error:
            if attempt == 5 or not is_transient(error):
                raise


def published(core: "Core") -> int | None:
    """The number of the newest published extract."""
    from kbo_pipeline.read.published import published_state_of

    newest = published_state_of(core.readers).newest
    return newest.number if newest else None


if __name__ == "__main__":
    main()
