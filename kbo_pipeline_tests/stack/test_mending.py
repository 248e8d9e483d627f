"""Damage and loss through Dagster: `kbo rebuild`, and `kbo start` by itself."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbo_pipeline.commands.demo import damage
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.operate.repair.repair import read_recorded
from kbo_pipeline.operate.runs.partitions import register_extract, staging_asset
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline.stage.staged import staging_file
from kbo_pipeline_tests.support.core import Core, chain_of, flip, hash_of
from kbo_pipeline_tests.support.pipeline import BAD, Pipeline
from kbo_pipeline_tests.support.postgres import leave
from kbo_pipeline_tests.support.server import PATIENCE, running_server

FULL, UPDATE, NEXT = (ExtractKey.parse(k) for k in ("0140-full", "0141-update", "0142-update"))


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    sample = Sample(enterprises=120, seed=6, default_share=0.2, change_shares=())
    return write_sample(tmp_path_factory.mktemp("zips"), sample, 2)[:3]


@pytest.fixture(scope="module")
def truth(zips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the register holds when nothing happens to it."""
    core = Core(tmp_path_factory.mktemp("truth"), batch_rows=200, max_batches=6)
    for zip_file in zips:
        core.import_zip(zip_file)
    return core.content_hash()


def work(pipeline: Pipeline) -> Path:
    return pipeline.directory / "work" / "register.duckdb"


@pytest.mark.rare
def test_rebuild_mends_what_is_damaged_and_imports_what_is_lost(
    pipeline: Pipeline, zips: list[Path], truth: str
) -> None:
    pipeline.kbo("import", *zips[:2])
    said = pipeline.kbo("rebuild").stdout
    assert said == "register, published file and Dagster agree: nothing to rebuild\n"
    with pipeline.instance() as instance:
        recorded = read_recorded(instance)
    assert recorded.published == {FULL: None, UPDATE: chain_of(work(pipeline))[-1].hash}

    kept = pipeline.directory / "work" / "published" / f"{FULL}.duckdb"
    flip(work(pipeline), 300_000)
    flip(pipeline.database, 300_000)
    failed = pipeline.kbo("import", zips[2], check=False)
    assert failed.returncode == 1
    assert "kbo rebuild repairs it" in failed.stderr
    said = pipeline.kbo("rebuild").stdout
    assert f"copies of {kept}" in said
    assert f"{UPDATE}: published according to Dagster, but not in the register" in said
    assert f"{NEXT}: {NEXT}-0001" in said  # what had failed for the damage comes to its end too
    assert hash_of(work(pipeline)) == hash_of(pipeline.database) == truth
    assert pipeline.kbo("rebuild").stdout.startswith("register, published file and Dagster agree")


@pytest.mark.rare
def test_rebuild_from_zips_gives_the_same_register_and_a_forgetful_dagster_is_told(
    pipeline: Pipeline, zips: list[Path], truth: str
) -> None:
    pipeline.kbo("import", *zips)
    chain = chain_of(work(pipeline))
    kept = pipeline.directory / "work" / "published" / f"{UPDATE}.duckdb"
    for file in (work(pipeline), pipeline.database, kept):
        flip(file, 300_000)
    refused = pipeline.kbo("rebuild", check=False)
    assert refused.returncode == 1
    assert "kbo rebuild --from-zips" in refused.stderr
    zip_file = pipeline.directory / "downloads" / zips[1].name
    shutil.move(zip_file, pipeline.directory / "aside")
    refused = pipeline.kbo("rebuild", "--from-zips", check=False)
    assert refused.returncode == 1
    assert "kbo fetch 0141-update" in refused.stderr
    shutil.move(pipeline.directory / "aside", zip_file)
    said = pipeline.kbo("rebuild", "--from-zips").stdout
    assert f"{FULL} to {NEXT}; history begins with {FULL}" in said
    assert hash_of(pipeline.database) == hash_of(work(pipeline)) == truth
    assert chain_of(pipeline.database) == chain
    assert not (pipeline.directory / "work" / "rebuild").exists()


@pytest.mark.rare
def test_a_dagster_that_has_forgotten_everything_is_told(
    tmp_path: Path, zips: list[Path], truth: str
) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.kbo("import", *zips[:2])
    shutil.rmtree(tmp_path / "postgres")
    with pipeline.instance() as instance:
        said = pipeline.kbo("rebuild").stdout
        assert "0140-full, 0141-update: published, but unknown to Dagster: recorded there" in said
        assert set(read_recorded(instance).published) == {FULL, UPDATE}
        pipeline.kbo("import", zips[2])
    assert hash_of(pipeline.database) == truth


def wreck_control_file(data: Path) -> None:
    (data / "global" / "pg_control").write_bytes(bytes(8192))


def wreck_tables(data: Path) -> None:
    """All that is large is garbage: the server starts, and cannot read what it is asked for."""
    (directory,) = (path for path in (data / "base").iterdir() if path.name == "5")
    for file in directory.iterdir():
        if file.name.isdigit() and int(file.name) > 16384 and file.stat().st_size:
            file.write_bytes(b"garbage!" * (file.stat().st_size // 8))


@pytest.mark.rare
@pytest.mark.parametrize("wreck", [wreck_control_file, wreck_tables])
def test_rebuild_dagster_puts_a_damaged_database_aside_and_tells_a_new_one_everything(
    tmp_path: Path, zips: list[Path], truth: str, wreck: Callable[[Path], None]
) -> None:
    pipeline = Pipeline(tmp_path, {"KBO_BATCH_ROWS": "20"})  # so that the Update makes six batches
    pipeline.kbo("import", *zips[:2])
    shutil.copy(zips[2], pipeline.directory / "downloads")
    with pipeline.instance() as instance:
        register_extract(instance, NEXT)
        pipeline.dagster(
            *("asset", "materialize", "-m", "kbo_pipeline.definitions"),
            *("--select", ",".join(["extract_zip", *map(staging_asset, ALL_TABLES)])),
            *("--partition", str(NEXT)),
        )
        staged = staging_file(pipeline.directory / "staging", NEXT)
        sound = damage(staged, BAD)
        assert pipeline.finish(str(NEXT)).returncode == 1
        sound.rename(staged)
        in_use = pipeline.kbo("rebuild", "--dagster", check=False)
        assert "the embedded PostgreSQL is in use; end kbo start" in in_use.stderr
    leave(tmp_path / "postgres")
    data = tmp_path / "postgres" / "data"
    wreck(data)
    helps = "kbo rebuild --dagster moves them aside"
    failed = pipeline.kbo("status", check=False)
    assert failed.returncode == 1
    assert helps in failed.stderr or wreck is wreck_tables
    assert helps in pipeline.kbo("doctor", "--json", check=False).stdout
    said = pipeline.kbo("rebuild", "--dagster").stdout
    assert said.startswith(
        f"Dagster's database was moved aside, to {tmp_path}/postgres/data.aside-1\n"
    )
    assert "0140-full, 0141-update: published, but unknown to Dagster: recorded there" in said
    assert (tmp_path / "postgres" / "data.aside-1" / "PG_VERSION").exists()
    pipeline.kbo("import", zips[2])  # half applied, of which nobody knows any more
    assert hash_of(pipeline.database) == truth
    with pipeline.instance() as instance:
        assert set(read_recorded(instance).published) == {FULL, UPDATE, NEXT}
    assert "data.aside-1" in pipeline.kbo("doctor", "--json", check=False).stdout


@pytest.mark.rare
@pytest.mark.parametrize("harm", ["tail", "flip", "staging"])
def test_kbo_start_makes_good_what_was_lost_while_it_was_away(
    pipeline: Pipeline, zips: list[Path], truth: str, harm: str
) -> None:
    pipeline.settings["KBO_BATCH_ROWS"] = "20"  # so that the Update makes six batches
    pipeline.kbo("import", *zips[:2])
    before = work(pipeline).read_bytes()
    shutil.copy(zips[2], pipeline.directory / "downloads")
    with pipeline.instance() as instance:
        register_extract(instance, NEXT)
        pipeline.dagster(
            *("asset", "materialize", "-m", "kbo_pipeline.definitions"),
            *("--select", ",".join(["extract_zip", *map(staging_asset, ALL_TABLES)])),
            *("--partition", str(NEXT)),
        )
        staged = staging_file(pipeline.directory / "staging", NEXT)
        sound = damage(staged, BAD)
        assert pipeline.finish(str(NEXT)).returncode == 1
        applied = read_recorded(instance).applied[NEXT]
        assert len(applied) == 4
        sound.rename(staged)
        if harm == "tail":
            work(pipeline).write_bytes(before)
        else:
            flip(work(pipeline) if harm == "flip" else staged, 300_000)
        with running_server(pipeline):
            deadline = time.monotonic() + PATIENCE
            lost = pipeline.directory / "work" / "lost"
            while NEXT not in read_recorded(instance).published or lost.exists():
                assert time.monotonic() < deadline, (pipeline.directory / "start.log").read_text()
                time.sleep(1)
            said = (pipeline.directory / "start.log").read_text()
        expected = "its staging file is damaged" if harm == "staging" else "4 batches that Dagster"
        assert expected in said
        assert f"{NEXT}: imported again, or to its end" in said
    assert hash_of(pipeline.database) == truth


def test_what_has_to_come_again_is_noted_before_anything_is_changed(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    pipeline.kbo("import", *zips[:2])
    flip(work(pipeline), 300_000)
    flip(pipeline.database, 300_000)
    aside = pipeline.directory / "work" / "damaged"
    aside.touch()  # where a directory has to be: mending fails at its first change
    failed = pipeline.kbo("rebuild", check=False)
    assert failed.returncode == 1
    assert str(aside) in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert (pipeline.directory / "work" / "lost").read_text() == f"{UPDATE}\n"
    with pipeline.instance() as instance:
        assert UPDATE in read_recorded(instance).published
    aside.unlink()
    assert f"{UPDATE}: staging" in pipeline.kbo("rebuild").stdout
    assert not (pipeline.directory / "work" / "lost").exists()
