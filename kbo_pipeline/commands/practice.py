"""`make practice`: an import of which two batches have failed, to practise the repair on."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import duckdb

from kbo_pipeline.core.errors import ImportFailedError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.signals import listen
from kbo_pipeline.core.tables import ACTIVITY, Table
from kbo_pipeline.core.text import run
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline.stage.staged import staging_file

_DIRECTORY = Path("data/practice")
_KEY = ExtractKey(140, "full")
_DAMAGED = (3, 7)


def main() -> None:
    """Imports a made-up Full into a directory of its own, and spoils what is staged on the way."""
    from kbo_pipeline.commands.runs import retry_extract, run_job
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.partitions import register_extract

    listen()
    if _DIRECTORY.exists():
        sys.exit(f"practice: {_DIRECTORY} is there already; remove it to start over")
    zip_file = Sample().write_full(_DIRECTORY / "zips", _KEY.number)
    os.environ["KBO_DATA_DIR"] = str(_DIRECTORY)
    os.environ.pop("KBO_DATABASE", None)
    settings = load_settings()
    with open_instance(settings) as instance:
        register_extract(instance, _KEY)
        source = {"ops": {"extract_zip": {"config": {"source_file": str(zip_file.absolute())}}}}
        run_job(instance, "stage_extract", _KEY, partition_key=str(_KEY), run_config=source)
        sound = damage(staging_file(settings.staging_dir, _KEY), _DAMAGED)
        try:
            retry_extract(instance, settings, _KEY)
        except ImportFailedError as error:
            print(error)
        else:
            sys.exit("practice: nothing has failed")
    staged = staging_file(_DIRECTORY / "staging", _KEY)
    print(
        f"\nTwo batches have failed: rows are missing in {staged}.\n"
        "Look at it, fix it, continue:\n\n"
        f"  export KBO_DATA_DIR={_DIRECTORY}\n"
        "  .venv/bin/kbo status\n"
        f"  mv {sound.relative_to(Path.cwd())} {staged}\n"
        f"  .venv/bin/kbo retry {_KEY}"
    )


def damage(file: Path, batches: Sequence[int], table: Table = ACTIVITY) -> Path:
    """Takes a row of a table out of each of these staged batches; returns a sound copy."""
    sound = file.with_suffix(".sound")
    shutil.copyfile(file, sound)
    with duckdb.connect(str(file)) as connection:
        for number in batches:
            connection.execute(
                f"DELETE FROM main.{table.name} WHERE rowid = (SELECT min(row_sequence)"
                f" FROM import_staging_{table.name} WHERE batch_number = $1)",
                [number],
            )
    return sound


if __name__ == "__main__":
    run("practice", main)
