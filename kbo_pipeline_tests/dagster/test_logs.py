"""Logs stay small and go after some days; who writes them need not know."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.defs.sensors.inbox import inbox_sensor
from kbo_pipeline.operate.processes import children
from kbo_pipeline.operate.processes.children import (
    MOST_KEPT,
    Children,
    alert_log,
    log_file,
    put_aside,
    remove_old,
    remove_old_outputs,
)
from kbo_pipeline.operate.processes.start import tidy_logs
from kbo_pipeline.operate.repair.alerts import Alert, write_down
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.server import running_server

DAY = 86_400.0


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    settings = load_settings()
    (settings.work_dir / "logs").mkdir(parents=True)
    return settings


def aged(file: Path, days: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.utime(file, (time.time() - days * DAY,) * 2)
    return file


def test_a_large_log_is_put_aside_while_a_process_goes_on_writing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the children of `kbo start` write: to a file that was opened for them, to append."""
    monkeypatch.setattr(children, "MAX_BYTES", 1000)
    log = log_file(settings, "daemon")
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", "for line in open(0): print(line, end='', flush=True)"],
            stdin=subprocess.PIPE,
            stdout=out,
            text=True,
        )
    assert child.stdin is not None
    lines = [f"line {number:07}\n" for number in range(300)]
    aside = []
    for position, line in enumerate(lines):
        child.stdin.write(line)
        child.stdin.flush()
        if position % 100 == 99:
            while not log.read_text().endswith(line):
                time.sleep(0.01)
            monkeypatch.setattr(time, "strftime", lambda *_, name=position: f"at{name:04}")
            aside.append(put_aside(log))
    assert log.read_bytes() == b""  # and no hole before what is written next
    child.communicate("the last one\n", timeout=60)
    assert log.read_text() == "the last one\n"
    assert put_aside(log) is None
    packed = [gzip.decompress(file.read_bytes()).decode() for file in aside if file is not None]
    assert "".join(packed) == "".join(lines)
    assert {file.name for file in log.parent.iterdir()} == {
        *("daemon.log", "daemon.log.at0099.gz", "daemon.log.at0199.gz", "daemon.log.at0299.gz")
    }


def test_a_log_that_cannot_be_copied_stays_as_it_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MAX_BYTES", 10)
    log = log_file(settings, "code")
    log.write_text("more than ten bytes")
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    in_the_way = log.with_name("code.log.now.part")
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        put_aside(log)
    said: list[str] = []
    tidy_logs(settings, ["code"], said.append)
    tidy_logs(settings, ["code"], said.append)
    assert [line.split(":")[0] for line in said] == [str(log)] * 2
    assert log.read_text() == "more than ten bytes"
    assert {*log.parent.iterdir()} == {log, in_the_way}


@pytest.mark.parametrize("days", [1, 14])
def test_what_was_put_aside_goes_after_some_days_or_when_it_is_too_much(
    settings: Settings, days: int
) -> None:
    log = log_file(settings, "webserver")
    log.write_text("stays")
    old = {aged(log.with_name(f"webserver.log.2026-01-0{n}.gz"), days + 1) for n in range(1, 4)}
    young = [
        aged(log.with_name(f"webserver.log.2026-02-{n:02}.gz"), days - 0.5)
        for n in range(1, MOST_KEPT + 3)
    ]
    others = {aged(log.with_name(name), 999) for name in ("code.log.2026-01-01.gz", "daemon.log")}
    assert {*remove_old(log, days, time.time())} == old | {*young[:2]}
    assert {*log.parent.iterdir()} == {log, *young[2:], *others}


def test_what_runs_and_sensors_have_printed_goes_after_some_days(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = settings.dagster_home / "storage"
    old = {
        aged(storage / "__repository__" / "inbox_sensor" / "5.err", 15),
        aged(storage / "0a1b" / "compute_logs" / "step.out", 15),
    }
    aged(storage / "0a1b" / "compute_logs" / "step.err", 15)
    kept = {
        aged(storage / "__repository__" / "alert_sensor" / "6.err", 13),
        aged(storage / "history" / "runs.db", 400),
    }
    assert old < {*remove_old_outputs(settings, time.time())}
    assert {file for file in storage.rglob("*") if file.is_file()} == kept
    assert not (storage / "0a1b").exists()
    assert not (storage / "__repository__" / "inbox_sensor").exists()

    home = settings.data_dir / "their_own"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    theirs = aged(home / "storage" / "0a1b" / "compute_logs" / "step.out", 400)
    assert remove_old_outputs(load_settings(), time.time()) == []
    assert theirs.exists()


def test_kbo_start_tidies_its_logs_those_of_alerts_and_of_postgresql(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MAX_BYTES", 10)
    postgres = settings.postgres_dir / "log"
    large = [log_file(settings, "code"), alert_log(settings), postgres]
    for log in large:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("more than ten bytes")
        log.chmod(0o600)
    said: list[str] = []
    tidy_logs(settings, ["code"], said.append)
    assert said == []
    for log in large:
        assert log.read_text() == ""
        (aside,) = log.parent.glob(f"{log.name}.*.gz")
        assert gzip.decompress(aside.read_bytes()) == b"more than ten bytes"
        assert aside.stat().st_mode & 0o077 == 0
    assert Children(settings, {}).log("code") == large[0]


def test_alerts_have_a_log_of_their_own(settings: Settings) -> None:
    alert = Alert("gap:1", "gap", "0142-update", "portal", "0142-update is missing", "kbo import")
    for _ in range(2):
        write_down(alert, alert_log(settings))
    lines = alert_log(settings).read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.endswith(f" {alert}")
        assert time.strptime(line.split(" ALERT")[0], "%Y-%m-%d %H:%M:%S %z")
    alert_log(settings).unlink()
    alert_log(settings).mkdir()
    with pytest.raises(StorageError, match=r"alerts.log: .*directory"):
        write_down(alert, alert_log(settings))


def test_a_look_into_an_empty_inbox_prints_nothing(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(instance=instance) as context,
    ):
        found = inbox_sensor(context)
        assert isinstance(found, dg.SkipReason)
        assert capfd.readouterr() == ("", "")
        context.log.info("this would be a line and a file")
        assert "this would be a line" in "".join(capfd.readouterr())


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_idle_kbo_start_writes_nothing(tmp_path: Path) -> None:
    """All its sensors look meanwhile, most of them several times."""
    pipeline = Pipeline(tmp_path / "data")
    with running_server(pipeline) as server:
        quick = ("inbox_sensor", "apply_when_staged", "publish_when_applied")
        server.wait_for_ticks(1, *quick, "alert_sensor")
        before = written(pipeline.directory)
        assert {"code.log", "daemon.log", "webserver.log"} <= {file.name for file in before}
        server.wait_for_ticks(5, *quick)
        assert written(pipeline.directory) == before


def written(directory: Path) -> dict[Path, int]:
    """The size of each log, and of each file with what a run or a sensor has printed."""
    outputs = (directory / "dagster_home" / "storage").rglob("*")
    files = [*directory.rglob("*.log"), directory / "postgres" / "log", *outputs]
    return {file: file.stat().st_size for file in files if file.is_file()}
