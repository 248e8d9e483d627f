"""The whole way with a register in a DuckLake, and out of it and in again, by commands alone.

`make test-lake` runs the other tests of the whole way so; CI runs this one.
"""

from pathlib import Path

import pytest

from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.read.published import content_hash
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core, rows_of, sorted_rows
from kbo_pipeline_tests.support.lakes import new_lake, variables
from kbo_pipeline_tests.support.pipeline import Pipeline

SAMPLE = Sample(enterprises=50, seed=7, change_shares=(0.2,))


def copy(pipeline: Pipeline, source: str | Path, target: str | Path, lake: Lake) -> str:
    """Runs `kbo copy-register`, with a lake as `KBO_DATABASE`; the hash that it says."""
    command = ("-m", "kbo_pipeline.cli", "copy-register", source, target)
    said = pipeline.run(*command, settings=variables(lake)).stdout
    assert ": equal, content " in said
    return said.split()[-1]


@pytest.mark.timeout(1800)  # a minute where nothing else is at work
def test_commands_import_into_a_lake_what_they_import_into_a_file_and_copy_it_out_and_in(
    tmp_path: Path,
) -> None:
    full, update = SAMPLE.write_full(tmp_path, 140), SAMPLE.write_update(tmp_path, 141)
    lake, other = (new_lake(tmp_path / name) for name in ("lake", "other"))
    file = Core(tmp_path / "file", batch_rows=200, max_batches=6)
    pipeline = Pipeline(tmp_path / "data", variables(lake))
    with pipeline.instance():
        for number, zip_file in ((140, full), (141, update)):
            file.import_zip(zip_file)
            pipeline.kbo("import", zip_file)
            with pipeline.read() as reader:
                for table in ALL_TABLES:
                    expected = sorted_rows(SAMPLE.rows(table.name, number))
                    assert rows_of(reader, table, f"current.{table.name}") == expected
                assert content_hash(reader) == file.content_hash()
    assert not pipeline.database.exists()
    assert not (pipeline.directory / "work" / "register.duckdb").exists()

    out, back = tmp_path / "out.duckdb", tmp_path / "back.duckdb"
    hashes = [
        copy(pipeline, "KBO_DATABASE", out, lake),
        copy(pipeline, out, "KBO_DATABASE", other),
        copy(pipeline, "KBO_DATABASE", back, other),
    ]
    assert hashes == [file.content_hash()] * 3
    refused = pipeline.run(
        *("-m", "kbo_pipeline.cli", "copy-register", out, "KBO_DATABASE"), check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"kbo: {lake}: a register is there")
