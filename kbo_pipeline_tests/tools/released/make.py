"""Makes the data directories of released versions that tests go on with: one `COMMIT.tar.xz` each.

    python -m kbo_pipeline_tests.tools.released.make [COMMIT]...

in a clone with its history; without a commit, all of `RELEASES`. The code of the commit is unpacked
beside, and run with the packages that are installed here: it imports a Full and an Update, and
applies a part of the next Update. Packed are the register at work, the published file, the staging
file, the ZIPs, and Dagster's database as a dump, because PostgreSQL's own files are large.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.zips import keys_for, rows_for, write_extract

RELEASES = {
    "f3fef66": "before the register had views; its staging files have a schema of their own",
    "0a20a57": "before a DuckLake; the first Full is adopted, the register has views",
    "cdb8a06": "the first that says which layout it has",
}
"""The commits, and what their data directories have or lack."""

NUMBERS = [f"0200.000.{n:03d}" for n in range(6)]
FULL, UPDATE, HALF = ExtractKey(140, "full"), ExtractKey(141, "update"), ExtractKey(142, "update")

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[2]
_APPLY_A_PART = """
import sys
from pathlib import Path
from kbo_pipeline_tests.core import Core
core = Core(Path(sys.argv[1]), batch_rows=13)
with core.applying(core.stage(Path(sys.argv[2])).extract.key) as (register, staged):
    register.apply(staged, staged.batches[0])
"""
_DUMP = """
import subprocess, sys
from pathlib import Path
from sqlalchemy import make_url
from kbo_pipeline.operate.processes.postgres import _programs, embedded_server_url
url = make_url(embedded_server_url(Path(sys.argv[1]) / "postgres"))
command = [str(_programs() / "pg_dump"), "--format=plain", "--no-owner", "--no-privileges"]
command += ["--host", str(url.query["host"]), "--username", url.username, url.database]
subprocess.run([*command, "--file", sys.argv[2]], check=True)
"""


def archive(commit: str) -> Path:
    """Where the data directory of a release is."""
    return _HERE / f"{commit}.tar.xz"


def write_zips(directory: Path) -> dict[ExtractKey, Path]:
    """The extracts that a release imports; of the last one a part of the batches only."""
    return {
        FULL: write_extract(directory, FULL, rows_for(NUMBERS, "a")),
        UPDATE: write_extract(
            directory, UPDATE, rows_for(NUMBERS[1:3], "b"), keys_for(NUMBERS[1:3])
        ),
        HALF: write_extract(directory, HALF, rows_for(NUMBERS[2:5], "c"), keys_for(NUMBERS[2:5])),
    }


def make(commit: str) -> None:
    """Makes the archive of a release anew."""
    with tempfile.TemporaryDirectory(prefix="kbo-released-") as temporary:
        code, work, directory = (Path(temporary) / name for name in ("code", "data", "data/core"))
        directory.mkdir(parents=True)
        code.mkdir()
        sources = subprocess.run(
            ["git", "archive", commit], cwd=_REPOSITORY, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "x"], cwd=code, input=sources, check=True)
        zips = write_zips(work)
        _run(code, directory, "-m", "kbo_pipeline.cli", "import", zips[FULL], zips[UPDATE])
        _run(code, directory, "-c", _DUMP, directory, work / "dagster.sql")
        _run(code, directory, "-c", _APPLY_A_PART, directory, zips[HALF])
        kept = [
            *(directory / name for name in ("kbo.duckdb", "work/register.duckdb")),
            directory / "staging" / f"{HALF}.duckdb",
            work / "dagster.sql",
            *zips.values(),
        ]
        with tarfile.open(archive(commit), "w:xz") as packed:
            for file in kept:
                packed.add(file, file.relative_to(work))
    print(f"{archive(commit)}: {archive(commit).stat().st_size:,} bytes")


def _run(code: Path, directory: Path, *arguments: str | Path) -> None:
    """Runs Python with the code of a release, and settings for its data directory alone."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KBO_", "DAGSTER_"))}
    settings = {"KBO_DATA_DIR": str(directory), "KBO_BATCH_ROWS": "13", "PYTHONPATH": str(code)}
    settings |= {"KBO_MAX_LOSS_PERCENT": "100"}
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, cwd=code, env=inherited | settings, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or RELEASES:
        make(name)
