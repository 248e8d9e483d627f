"""What a process at work says of how far it is: to a file, from many threads, never back."""

import json
import threading
import time
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.progress import part_of, steps_of
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.defs.assets.register import place_of
from kbo_pipeline.operate.runs.live import DEFAULT_SECONDS, forget_live, read_live, reporting

KEY = ExtractKey(140, "full")


def run_of(run_id: str) -> dg.DagsterRun:
    return dg.DagsterRun("stage_extract", run_id=run_id)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"KBO_DATA_DIR": str(tmp_path)})


def test_what_was_said_last_is_there_when_a_stage_ends(settings: Settings) -> None:
    with reporting(settings, KEY, run_of("run"), "staging") as report:
        report(0.25, "loading\nrows")
        report.failed("0140-full-0004", "no\x1b[31m row")
    live = read_live(settings, KEY)
    assert live is not None
    assert (live.run_id, live.stage, live.words) == ("run", "staging", "loading rows")
    assert live.share == pytest.approx(0.25, abs=0.03)
    assert dict(live.failed) == {"0140-full-0004": "no\\x1b[31m row"}
    assert live.usual == DEFAULT_SECONDS["full"]
    forget_live(settings, KEY)
    assert read_live(settings, KEY) is None


def test_a_share_never_goes_back_within_a_run_nor_where_batches_stay(settings: Settings) -> None:
    with reporting(settings, KEY, run_of("one"), "applying") as report:
        report(0.5, "a batch")
        report(0.2, "another one")
    for run_id in ("one", "two"):
        with reporting(settings, KEY, run_of(run_id), "applying") as report:
            report(0.1, "begins")
        live = read_live(settings, KEY)
        assert live is not None and live.share >= 0.5
    with reporting(
        settings, KEY, run_of("three"), "downloading", {**DEFAULT_SECONDS["full"]}
    ) as report:
        report(0.1, "again")
    live = read_live(settings, KEY)
    assert live is not None and live.share < 0.2 and live.spent.keys() == {"downloading"}


def test_an_import_that_begins_again_fills_the_rest_of_the_bar(settings: Settings) -> None:
    usual = DEFAULT_SECONDS["full"]

    def overall() -> float:
        live = read_live(settings, KEY)
        assert live is not None
        return live.overall(live.stage, live.share)

    reached = 0.0
    for run_id in ("one", "two", "three"):
        with reporting(settings, KEY, run_of(run_id), "downloading", usual):
            pass
        assert reached <= overall() < reached + 0.02
        with reporting(settings, KEY, run_of(run_id), "staging") as report:
            report(0.9, "sorting")
        assert reached + 0.5 * (1 - reached) < overall() < 1
        reached = overall()
    forget_live(settings, KEY)  # it is rolled back
    with reporting(settings, KEY, run_of("four"), "downloading", usual):
        pass
    assert overall() < 0.02


def test_how_long_stages_usually_take_stays_for_the_whole_import(settings: Settings) -> None:
    usual = {stage: 2 * seconds for stage, seconds in DEFAULT_SECONDS["full"].items()}
    with reporting(settings, KEY, run_of("one"), "downloading", usual):
        pass
    for stage in ("staging", "applying", "publishing"):
        with reporting(settings, KEY, run_of(stage), stage) as report:
            report(1.0, "")
            spent = report.spent
    live = read_live(settings, KEY)
    assert live is not None and live.usual == usual
    assert list(spent) == ["downloading", "staging", "applying", "publishing"]


def test_a_thousand_reports_are_few_writes_and_cost_little(settings: Settings) -> None:
    file = settings.work_dir / "progress" / f"{KEY}.json"
    with reporting(settings, KEY, run_of("run"), "staging") as report:
        report(0.0, "begins")
        written = file.stat().st_ino
        started = time.perf_counter()

        def work() -> None:
            for number in range(5000):
                report(number / 5000, "unpacking")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (time.perf_counter() - started) / 20_000 < 100e-6
        inodes = {written, file.stat().st_ino}
    assert len(inodes) <= 2
    assert json.loads(file.read_text())["share"] == pytest.approx(0.9998, abs=1e-3)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"stage": "staging"}', b"\xff", b'{"share": 1'[:8], b"null"]
)
def test_a_file_that_says_nothing_is_none(settings: Settings, content: bytes) -> None:
    with reporting(settings, KEY, run_of("run"), "staging"):
        pass
    (settings.work_dir / "progress" / f"{KEY}.json").write_bytes(content)
    assert read_live(settings, KEY) is None


def test_parts_and_steps_of_a_work_come_to_the_whole() -> None:
    said: list[float] = []
    report = part_of(lambda share, words: said.append(share), 0.5, 1.0)
    for step in steps_of(report, [1.0, 3.0]):
        step(0.0, "begins")
        step(1.0, "ends")
    assert said == [0.5, 0.625, 0.625, 1.0]


def test_the_batch_at_work_is_named_by_where_its_run_is() -> None:
    assert place_of(13, 15, 13, 15) == "batch 13 of 15"
    assert place_of(47, 48, 1, 2) == "batch 47, 1 of 2 in this run"
