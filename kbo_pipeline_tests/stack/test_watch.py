"""`kbo status --watch`: bars that fill, lines that tell of each step, how it ends."""

import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import Terminal, started, wait_until

EXTRACT = "0140-full"
WATCH = ("kbo_pipeline.cli", "status", EXTRACT, "--watch")


def test_who_watches_an_import_sees_it_go_on_until_it_is_published(tmp_path: Path) -> None:
    zip_file = Sample(enterprises=1500, seed=5).write_full(tmp_path, 140)
    pipeline = Pipeline(tmp_path / "data", {"KBO_MAX_BATCHES": "40"})
    with pipeline.instance() as instance, Terminal() as terminal:
        instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
        with (
            started(pipeline, *WATCH) as lines,
            started(pipeline, *WATCH, "--json") as objects,
            subprocess.Popen(
                [sys.executable, "-m", *WATCH],
                env=pipeline.environment | {"TERM": "xterm"},
                cwd=REPOSITORY,
                stdout=terminal.theirs,
            ) as bars,
        ):
            for watching in (lines, objects):  # before anything begins, so that nothing is missed
                wait_until(partial(watching.says, "pending"), "the first line", watching)
            wait_until(lambda: "pending" in terminal.text, "the first bars")
            with started(pipeline, "kbo_pipeline.cli", "import", zip_file) as importing:
                every = (importing.popen, lines.popen, objects.popen, bars)
                ended = {process.wait(200) for process in every}
    assert ended == {0}
    assert "activity" in terminal.text and "━" in terminal.text
    for shown in (terminal.text, lines.output()):
        percentages = [float(found) for found in re.findall(r"([\d.]+)%", shown)]
        assert percentages == sorted(percentages)
        assert percentages[-1] == 100.0
        assert f"{EXTRACT}: processing (applying)" in shown
        assert f"{EXTRACT}: completed (published)" in shown
    told = lines.output().splitlines()
    assert len(told) == len(set(told))
    seen = [json.loads(line) for line in objects.output().splitlines()]
    assert [s["overall"]["completed"] for s in seen] == sorted(
        s["overall"]["completed"] for s in seen
    )
    assert seen[-1] == json.loads(pipeline.kbo("status", EXTRACT, "--json").stdout)


def test_who_leaves_by_ctrl_c_stops_nothing_and_a_failure_ends_it_with_1(
    pipeline: Pipeline,
) -> None:
    with pipeline.instance() as instance:
        instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
    with started(pipeline, *WATCH) as watching:
        wait_until(lambda: watching.says("pending"), "the first line", watching)
        assert watching.end(signal.SIGINT) == 130
        assert watching.output() == f"{EXTRACT}: pending (waiting), 0.0%\n"
    pipeline.kbo("retry", EXTRACT, check=False)  # there is no ZIP of it
    failed = pipeline.kbo("status", EXTRACT, "--watch", check=False)
    assert failed.returncode == 1
    assert re.fullmatch(rf"{EXTRACT}: failed \(downloading\), 0\.\d%\n", failed.stdout)
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"kbo: {EXTRACT}: failed: {EXTRACT}: no sound ZIP of it in ")
    assert line.endswith(f"; kbo retry {EXTRACT} continues it")
