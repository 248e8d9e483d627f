"""Files of Python in the working directory are nobody's business: none is executed."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pytest

from kbo_pipeline.operate.processes.programs import die_with_parent_command
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import Started, free_port, wait_until

KBO = Path(sys.executable).with_name("kbo")
SAMPLE = Sample(enterprises=60, seed=3)
NEVER_LOOKED_FOR = {"sitecustomize", "usercustomize", "antigravity", "this"}


class Planted:
    """A directory with a file for each module that a process of ours might import."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._executed = directory / "here", directory / "executed"
        for made in (self.directory, self._executed):
            made.mkdir()
        names = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
        for name in names - NEVER_LOOKED_FOR:
            file = self.directory / f"{name}.py"
            if "/" not in name and name.isidentifier():
                file.write_text(f"open({str(self._executed)!r} + '/' + __name__, 'w').close()\n")

    @property
    def executed(self) -> set[str]:
        """The modules of which the planted file was executed."""
        return {file.name for file in self._executed.iterdir()}


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_the_trap_shows_what_is_executed(planted: Planted) -> None:
    assert {"rich", "queue", "click", "kbo_pipeline"} <= {
        file.stem for file in planted.directory.glob("*.py")
    }
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}  # of make
    for arguments in (("-m", "queue"), ("-c", "import click")):
        command = [sys.executable, *arguments]
        subprocess.run(command, cwd=planted.directory, env=environment, check=False)
    assert {"__main__", "click"} <= planted.executed


def test_a_child_executes_none(planted: Planted) -> None:
    done = subprocess.run(
        die_with_parent_command("kbo_pipeline.cli", "--help"),
        cwd=planted.directory,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, planted.executed) == (0, set()), done.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_kbo_start_executes_none_while_it_imports(planted: Planted, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data", {"KBO_UI_PORT": str(free_port())})
    pipeline.directory.mkdir()
    SAMPLE.write_full(pipeline.directory / "inbox", 140)
    start = Started(
        *(KBO, "start"),
        environment=pipeline.environment,
        log=tmp_path / "output",
        cwd=planted.directory,
    )
    try:
        wait_until(partial(start.says, "web UI:"), "kbo start", start)
        wait_until(lambda: pipeline.is_published, "a publication", start)
    finally:
        assert start.end(signal.SIGTERM) == 0, start.output()
    assert planted.executed == set()


def test_targets_of_the_makefile_execute_none(planted: Planted, tmp_path: Path) -> None:
    """All of them run Python as this one does, from a file of their own beside the planted ones."""
    probe = planted.directory / "probe.mk"
    probe.write_text(
        f"include {REPOSITORY / 'Makefile'}\n"
        ".PHONY: probe\nprobe:\n\t@$(PROBED) -m queue\n\t@$(PROBED) -c 'import rich, click, json'\n"
    )
    command = ["make", "--silent", "-f", probe.name, "probe", f"PROBED={sys.executable}"]
    subprocess.run(command, cwd=planted.directory, check=True, env=Pipeline(tmp_path).environment)
    assert planted.executed == set()


def test_tests_and_tools_are_found_at_the_end_of_the_path(tmp_path: Path) -> None:
    """What `make setup` writes, so that the Makefile's targets need no working directory."""
    site = tmp_path / "site"
    site.mkdir()
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "kbo_pipeline_tests.pth" in makefile
    (site / "kbo_pipeline_tests.pth").write_text(f"{REPOSITORY}\n")
    code = f"import site, sys; site.addsitedir({str(site)!r}); print(*sys.path, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; import kbo_pipeline_tests.support.core"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    path = done.stdout.splitlines()
    assert path.index(str(REPOSITORY)) > path.index(sysconfig.get_path("purelib"))
