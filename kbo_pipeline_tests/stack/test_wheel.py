"""The wheel: what travels in it, and that it does everything far from the repository."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import requests

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch
from kbo_pipeline_tests.support.processes import Started, free_port, processes_of, wait_until

NOT_SOURCES = (
    *(".git", ".venv", "data", "build", "dist", "*.egg-info", "__pycache__"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tmp_dagster_home_*"),
)


def run(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment or None,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    # -P: a folder `build` in the working directory would be taken for the module.
    run("-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", copy.parent, copy, cwd=copy)
    (found,) = copy.parent.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_with_its_files_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in ("dagster.yaml", "workspace.yaml"):
            assert archive.read(f"kbo_pipeline/{name}") == (REPOSITORY / name).read_bytes()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "\nName: kbo_pipeline\n" in archive.read(metadata).decode()
    assert "kbo_pipeline/py.typed" in names
    sources = {
        str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "kbo_pipeline").rglob("*.py")
    }
    assert sources <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kbo_pipeline"}
    assert not [name for name in names if "kbo_pipeline_tests" in name]


@pytest.mark.rare
def test_the_installed_wheel_samples_imports_and_serves_anywhere(
    wheel: Path, tmp_path: Path
) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        *("-P", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", "--root-user-action=ignore"),
        *("--target", installed, wheel),
        cwd=elsewhere,
    )
    pipeline = Pipeline(elsewhere / "data", {"KBO_UI_PORT": str(free_port())})
    environment = pipeline.environment | {
        "PYTHONPATH": str(installed),  # stands before an editable installation of the repository
        "PYTHONSAFEPATH": "1",
    }
    where = run(
        "-c", "import kbo_pipeline; print(kbo_pipeline.__file__)", cwd=elsewhere, **environment
    )
    assert where.strip() == str(installed / "kbo_pipeline" / "__init__.py")
    kbo = partial(run, installed / "bin" / "kbo", cwd=elsewhere, **environment)

    assert kbo("--version").strip().endswith("0.1.0")
    kbo("sample", "zips", "--enterprises", "60", "--updates", "1")
    zips = sorted((elsewhere / "zips").glob("*.zip"))[:2]
    assert [line.split(":")[0] for line in kbo("import", *zips).splitlines()] == [
        "0140-full",
        "0141-update",
    ]
    home = elsewhere / "data" / "dagster_home"
    assert (home / "dagster.yaml").read_bytes() == (REPOSITORY / "dagster.yaml").read_bytes()
    with pipeline.read() as connection:
        assert fetch(connection, "SELECT max(extract_number) FROM import_jobs") == 141

    process = Started(
        *(sys.executable, installed / "bin" / "kbo", "start"),
        environment=environment,
        log=tmp_path / "start",
        cwd=elsewhere,
    )
    try:
        wait_until(partial(process.says, "web UI:"), "kbo start", process)
        address = f"http://127.0.0.1:{pipeline.settings['KBO_UI_PORT']}"
        query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
        answer = requests.post(f"{address}/graphql", json={"query": query}, timeout=30).json()
        assert len(answer["data"]["repositoriesOrError"]["nodes"]) == 1
        status = json.loads(kbo("status", "--json"))
        assert (status["job_id"], status["status"]) == ("0141-update", "completed")
    finally:
        code = process.end(signal.SIGTERM)
    assert code == 0
    assert processes_of(elsewhere / "data") == []
    assert {file.name for file in elsewhere.iterdir()} == {"data", "zips"}
