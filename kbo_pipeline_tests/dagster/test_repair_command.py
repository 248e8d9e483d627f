"""`kbo repair`: what it does to the register, to readers, and to Dagster's records."""

import json
import shutil
import time
import zipfile
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.operate.repair.repair import plan_of, watch
from kbo_pipeline.operate.runs.progress import Progress, extract_of
from kbo_pipeline.read.published import published_state_of, read_proofs
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations, partition_states

SAMPLE = Sample(enterprises=60, seed=8)
FIRST, UPDATE, FULL = (ExtractKey.parse(text) for text in ("0140-full", "0141-update", "0141-full"))
FULL_ZIP = "KboOpenData_0141_2025_10_06_Full.zip"

pytestmark = pytest.mark.file_only("damages a file by hand; test_repairing.py has a lake")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory at an Update, and ZIPs: the Full of the same number, and a later Update."""
    directory = tmp_path_factory.mktemp("made")
    zips = directory / "zips"
    extracts = [SAMPLE.write_full(zips, 140), SAMPLE.write_update(zips, 141)]
    pipeline = Pipeline(directory / "data")
    pipeline.prepare()
    pipeline.kbo("import", *extracts)
    SAMPLE.write_full(zips, 141).rename(directory / "full.zip")
    SAMPLE.write_update(zips, 142).rename(directory / "later.zip")
    return directory


@pytest.fixture
def pipeline(made: Path, tmp_path: Path) -> Pipeline:
    shutil.copytree(made / "data", tmp_path / "data")
    return Pipeline(tmp_path / "data")


def damage(pipeline: Pipeline) -> None:
    for file in (pipeline.directory / "work" / "register.duckdb", pipeline.database):
        with duckdb.connect(str(file)) as connection:
            connection.execute(
                "UPDATE denomination SET denomination = 'by hand' WHERE _is_current AND"
                " denomination = (SELECT min(denomination) FROM denomination WHERE _is_current)"
            )


def refused(pipeline: Pipeline, *arguments: str | Path) -> str:
    done = pipeline.kbo(*arguments, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr


def assert_agreed(pipeline: Pipeline, newest: ExtractKey) -> None:
    """Readers, the register at work and Dagster have this extract as the newest."""
    settings = load_settings(pipeline.settings)
    assert published_state_of(settings.database).newest == newest
    assert published_state_of(settings.register).newest == newest
    with pipeline.instance() as instance:
        progress = Progress(instance)
        assert {*progress.published} == {FIRST, newest}
        assert plan_of(instance, settings).lines == ()
        states = partition_states(instance, str(newest))
        assert {status for found in states.values() for status in found.values()} == {
            "MATERIALIZED"
        }
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert [run for run in failed if extract_of(run) != "0142-update"] == []


def test_a_difference_is_closed_and_proven(pipeline: Pipeline, made: Path) -> None:
    assert refused(pipeline, "repair", "0141-update") == (
        "kbo: 0141-update: not compared with its Full yet; kbo verify does it\n"
    )
    assert refused(pipeline, "repair", "0140-full").startswith(
        "kbo: 0140-full: only the newest number can be repaired, that of 0141-update; kbo verify"
    )
    damage(pipeline)
    verified = pipeline.kbo("verify", made / "full.zip", check=False)
    assert verified.returncode == 1
    assert "kbo repair 0141-update closes the difference" in verified.stderr
    # Before anything is changed, the Full must be at hand.
    assert "0141-full: no ZIP of it in " in refused(pipeline, "repair", "0141-update")
    assert_agreed(pipeline, UPDATE)

    downloads = pipeline.directory / "downloads"
    shutil.copy(made / "full.zip", downloads / FULL_ZIP)
    done = pipeline.kbo("repair", "0141-update")
    assert done.stdout.startswith("0141-full: equal to KBO's Full, ")
    assert_agreed(pipeline, FULL)
    (proof,) = read_proofs(load_settings(pipeline.settings)).values()
    assert (proof.published, proof.is_equal) == ("0141-full", True)
    with pipeline.instance() as instance:
        assert materializations(instance, "full_verification") == {"0141-full": 1}
        runs = [run.job_name for run in instance.get_runs()][:5]
    assert runs == [
        *("verify_full", "publish_extract", "apply_batches", "rollback_extract", "stage_extract")
    ]
    assert json.loads(pipeline.kbo("status", "0141-full", "--json").stdout)["status"] == "completed"
    replaced = pipeline.kbo("status", "0141-update").stdout
    assert "0141-update: pending (0141-full is published in its place)" in replaced
    changes = pipeline.kbo("changes", "0141-full").stdout
    assert "denomination  corrected" in changes and "by hand" in changes
    since = pipeline.kbo("changes", "--since", "0140-full", "--kind", "corrected", "--json").stdout
    assert {json.loads(line)["table"] for line in since.splitlines()} == {"denomination"}
    assert "nothing to repair; kbo verify" in refused(pipeline, "repair", "0141-full")

    pipeline.kbo("rollback", "0141-full")
    assert_agreed_after_rollback(pipeline)
    pipeline.kbo("retry", "0141-update")
    assert_agreed(pipeline, UPDATE)


def assert_agreed_after_rollback(pipeline: Pipeline) -> None:
    settings = load_settings(pipeline.settings)
    state = published_state_of(settings.database)
    assert (state.newest, state.rolled_back) == (FIRST, frozenset({UPDATE, FULL}))
    with pipeline.instance() as instance:
        assert plan_of(instance, settings).lines == ()
        assert {*Progress(instance).published} == {FIRST}


KILLED = """
import os, sys
from kbo_pipeline.commands import runs
from kbo_pipeline.cli import main
from kbo_pipeline.defs import jobs
if sys.argv[1] == "forgetting":  # what the register has undone
    jobs.forget_extract = lambda *args, **named: os._exit(9)
called = runs.run_job
def run_job(instance, job_name, *rest, **named):
    if job_name == sys.argv[1]:
        os._exit(9)
    called(instance, job_name, *rest, **named)
    if f"after {job_name}" == sys.argv[1]:
        os._exit(9)
runs.run_job = run_job
main(["repair", "0141-update"], prog_name="kbo")
"""


@pytest.mark.parametrize(
    ("place", "by"),
    [
        ("rollback_extract", "repair"),
        ("forgetting", "repair"),
        ("forgetting", "retry"),
        ("apply_batches", "repair"),
        ("apply_batches", "retry"),
        ("publish_extract", "repair"),
        ("publish_extract", "publish"),
        ("after publish_extract", "verify"),
    ],
)
def test_a_killed_repair_is_brought_to_its_end(
    pipeline: Pipeline, made: Path, place: str, by: str
) -> None:
    damage(pipeline)
    shutil.copy(made / "full.zip", pipeline.directory / "downloads" / FULL_ZIP)
    pipeline.kbo("verify", check=False)
    assert pipeline.run("-c", KILLED, place, check=False).returncode == 9
    settings = load_settings(pipeline.settings)
    after = FULL if place.startswith("after") else UPDATE  # which readers keep
    assert published_state_of(settings.database).newest == after
    if (place, by) == ("apply_batches", "repair"):  # the later one waits for this one
        told = refused(pipeline, "import", made / "later.zip")
        assert "0142-update: 0141-full is half applied; finish it first" in told
    if by == "repair":
        done = pipeline.kbo("repair", "0141-update")
        assert done.stdout.startswith("0141-full: equal to KBO's Full, ")
    else:
        if by != "verify":
            pipeline.kbo(by, "0141-full")
        assert "not compared with its Full yet" in refused(pipeline, "repair", "0141-full")
        pipeline.kbo("verify")
    assert_agreed(pipeline, FULL)
    assert [proof.is_equal for proof in read_proofs(settings).values()] == [True]


@pytest.fixture(scope="module")
def made_full(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data directory, with a Full as its only extract, and one with a Full at its end."""
    directory = tmp_path_factory.mktemp("made full")
    for name in ("first", "last"):
        shutil.copytree(made / "data", directory / name)
        pipeline = Pipeline(directory / name)
        pipeline.kbo("rollback", "0141-update")
        if name == "first":
            pipeline.kbo("rollback", "0140-full")
        pipeline.kbo("import", shutil.copy(made / "full.zip", directory / FULL_ZIP))
    return directory


@pytest.mark.parametrize(
    ("which", "by"),
    [("last", "repair"), ("last", "retry"), ("last", "start"), ("first", "start")],
)
def test_a_full_that_takes_its_own_place_is_not_taken_for_published(
    made_full: Path, tmp_path: Path, which: str, by: str
) -> None:
    """Killed when the register had undone it, and Dagster had not forgotten it."""
    shutil.copytree(made_full / which, tmp_path / "data")
    pipeline = Pipeline(tmp_path / "data")
    damage(pipeline)
    pipeline.kbo("verify", check=False)
    assert pipeline.run("-c", KILLED, "forgetting", check=False).returncode == 9
    settings = load_settings(pipeline.settings)
    assert published_state_of(settings.database).newest == FULL  # as readers know it
    if by == "start":
        with pipeline.instance():
            assert watch(settings, print, ended_at=time.time(), is_start=True) == FULL
    pipeline.kbo("repair" if by == "repair" else "retry", "0141-full")
    if by != "repair":
        pipeline.kbo("verify")
    assert [proof.is_equal for proof in read_proofs(settings).values()] == [True]
    with pipeline.instance() as instance:
        assert FULL in Progress(instance).published
        assert plan_of(instance, settings).lines == ()
    changes = pipeline.kbo("changes", "0141-full", "--json").stdout
    assert "by hand" in changes or which == "first"


def test_a_full_with_faulty_rows_repairs_when_they_are_accepted(
    pipeline: Pipeline, made: Path
) -> None:
    """More than are set aside by themselves: rows without a number."""
    file = pipeline.directory / "downloads" / FULL_ZIP
    with zipfile.ZipFile(made / "full.zip") as whole, zipfile.ZipFile(file, "w") as faulty:
        for name in whole.namelist():
            text = whole.read(name)
            if name == "contact.csv":
                text += b"".join(b'"no number %d","ENT","TEL","1"\n' % n for n in range(20))
            faulty.writestr(name, text)
    damage(pipeline)
    pipeline.kbo("verify", check=False)
    assert "; kbo repair 0141-full --accept-faults imports the rest" in refused(
        pipeline, "repair", "0141-update"
    )
    assert published_state_of(load_settings(pipeline.settings).register).newest == UPDATE
    done = pipeline.kbo("repair", "0141-update", "--accept-faults")
    assert done.stdout.startswith("0141-full: equal to KBO's Full, ")
    with duckdb.connect(str(pipeline.database), read_only=True) as reader:
        assert reader.execute("SELECT count(*) FROM rejected_row").fetchall() == [(20,)]
    (proof,) = read_proofs(load_settings(pipeline.settings)).values()
    assert (proof.published, proof.is_equal) == ("0141-full", True)


def test_a_repair_that_a_check_refuses_says_what_is_left(pipeline: Pipeline, made: Path) -> None:
    """Rows that a hand has added are a loss when the Full takes them away."""
    for file in (pipeline.directory / "work" / "register.duckdb", pipeline.database):
        with duckdb.connect(str(file)) as connection:
            connection.execute(
                "INSERT INTO contact BY NAME SELECT c.* REPLACE ('by hand' || i AS value)"
                " FROM (FROM contact WHERE _is_current LIMIT 30) c, range(30) t(i)"
            )
    shutil.copy(made / "full.zip", pipeline.directory / "downloads" / FULL_ZIP)
    pipeline.kbo("verify", check=False)
    pipeline.settings["KBO_MAX_LOSS_PERCENT_FULL"] = "5"
    message = refused(pipeline, "repair", "0141-update")
    assert "kbo publish 0141-full --accept-loss publishes it" in message
    assert "kbo rebuild --from-zips" in message
    assert published_state_of(load_settings(pipeline.settings).database).newest == UPDATE
    pipeline.kbo("publish", "0141-full", "--accept-loss")
    pipeline.kbo("verify")
    assert_agreed_but_for_runs(pipeline)


def assert_agreed_but_for_runs(pipeline: Pipeline) -> None:
    settings = load_settings(pipeline.settings)
    assert published_state_of(settings.database).newest == FULL
    with pipeline.instance() as instance:
        assert plan_of(instance, settings).lines == ()
        for table in TABLES:
            found = partition_states(instance, "0141-full")[table.name]
            assert {*found.values()} == {"MATERIALIZED"}
