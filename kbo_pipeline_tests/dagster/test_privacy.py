"""What other users of the machine and networks could read, and who is warned of it."""

import dataclasses
import os
import stat
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.environment import open_secrets
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import make_private, replace_atomically
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.operate.repair import doctor
from kbo_pipeline.operate.repair.findings import Finding
from kbo_pipeline.operate.repair.repair import repair_installation
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.zips import Row, write_extract

SECRET = "canary"
PACKAGE = REPOSITORY / "kbo_pipeline"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"KBO_DATA_DIR": str(tmp_path / "data")}, tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_private_and_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    before = os.umask(0)
    try:
        make_private(shared / "a" / "b")
        make_private(shared / "a" / "b")
        with replace_atomically(shared / "c" / "file") as unfinished:
            unfinished.write_text("x")
    finally:
        os.umask(before)
    assert [mode(shared / name) for name in ("", "a", "a/b", "c")] == [0o755, 0o700, 0o700, 0o700]


@pytest.mark.parametrize("there", ["file", "dangling"])
def test_what_is_no_directory_is_an_error(tmp_path: Path, there: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for path in (tmp_path / there, tmp_path / there / "below"):
        with pytest.raises(OSError, match=r"[Nn]ot a directory|No such file"):
            make_private(path)


def test_only_one_function_of_the_package_makes_directories() -> None:
    # The server's may be another user's; staging's lie in the one with its lock.
    files = {"files.py", "postgres.py"}
    makes = {
        file.name
        for file in PACKAGE.rglob("*.py")
        for line in file.read_text().splitlines()
        if ".mkdir(" in line or "makedirs(" in line
    }
    assert makes == files


def test_a_command_makes_private_directories(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data")
    pipeline.kbo("pause")
    assert [mode(tmp_path / "data" / name) for name in ("", "work")] == [0o700, 0o700]


def findings(settings: Settings) -> list[Finding]:
    found = list(doctor.check_privacy(settings))
    assert {finding.severity for finding in found} <= {"warning"}
    return found


def test_directories_that_others_can_look_into_are_warnings(settings: Settings) -> None:
    assert findings(settings) == []
    make_private(settings.work_dir)
    assert findings(settings) == []
    settings.work_dir.chmod(0o755)
    assert findings(settings) == []  # nobody comes so far
    settings.data_dir.chmod(0o755)
    (found,) = findings(settings)
    assert found.text.startswith(f"{settings.data_dir}: ")  # the others follow, if need be
    settings.data_dir.chmod(0o711)
    (found,) = findings(settings)
    assert found.text == f"{settings.work_dir}: other users can look into it (mode 755)"
    assert found.remedy == f"chmod 700 {settings.work_dir}"
    settings.work_dir.chmod(0o700)
    assert findings(settings) == []
    settings.data_dir.chmod(0o750)
    (found,) = findings(settings)
    assert str(settings.data_dir) in found.text
    settings.data_dir.chmod(0o700)
    elsewhere = dataclasses.replace(settings, dagster_home=settings.data_dir.parent / "home")
    elsewhere.dagster_home.mkdir()
    elsewhere.dagster_home.chmod(0o777)
    assert len(findings(elsewhere)) == 1


@pytest.mark.parametrize("permissions", [0o600, 0o400, 0o640, 0o604, 0o644, 0o622])
def test_an_env_file_with_passwords_that_others_can_read_is_told(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, permissions: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_secrets() is None
    file = tmp_path / ".env"
    file.write_text("KBO_UI_PORT=3001\n")
    file.chmod(0o644)
    assert open_secrets() is None
    file.write_text(f"KBO_USERNAME=me\nKBO_PASSWORD={SECRET}\nKBO_ALERT_WEBHOOK=\n")
    file.chmod(permissions)
    said, found = open_secrets(), list(doctor.check_secrets(settings))
    if permissions in (0o600, 0o400):
        assert (said, found) == (None, [])
        return
    assert said == f"{file}: other users can read KBO_PASSWORD in it; chmod 600 {file}"
    ((severity, text, remedy),) = [(one.severity, one.text, one.remedy) for one in found]
    assert severity == "warning"
    assert f"{text}; {remedy}" == said


def test_each_command_says_so_in_one_line_and_goes_on(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data")
    file = tmp_path / ".env"
    file.write_text(f"KBO_PASSWORD={SECRET}\n")
    file.chmod(0o644)
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = pipeline.run("-m", "kbo_pipeline.cli", "pause", cwd=tmp_path, settings=environment)
    assert done.stdout == "paused; kbo resume continues\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kbo: warning: {file}: ")
    assert SECRET not in line
    file.chmod(0o600)
    done = pipeline.run("-m", "kbo_pipeline.cli", "resume", cwd=tmp_path, settings=environment)
    assert (done.stdout, done.stderr) == ("resumed\n", "")


PASSWORD, SSLMODE = "has no password", "has no sslmode"
NEAR = (
    f"me:{SECRET}@localhost/db",
    "me@localhost:5433/db",
    "me@127.0.0.1/db",
    "me@127.8.8.8/db",
    "me@[::1]:5432/db",
    "me@/db?host=/var/run/postgresql",
    "/db",
)
FAR = {
    "me@db.example/db": (PASSWORD, SSLMODE),
    f"me:{SECRET}@db.example/db": (SSLMODE,),
    f"me@db.example/db?password={SECRET}&sslmode=require": (),
    f"me:{SECRET}@db.example/db?sslmode=verify-full": (),
    f"me:{SECRET}@db.example/db?sslmode=disable": (),  # somebody has decided so
    "me@db.example/db?sslmode=require": (PASSWORD,),
    "me@db.example/db?sslmode=verify-full&sslcert=/etc/kbo.crt": (),
    "me@localhost,db.example/db?sslmode=require": (PASSWORD,),
    "me@/db?host=db.example&sslmode=require": (PASSWORD,),
    "me@/db?host=localhost&host=db.example&sslmode=require": (PASSWORD,),
    "me@127.0.0.1.evil.example/db?sslmode=require": (PASSWORD,),
    f"me:{SECRET}@192.0.2.1/db": (SSLMODE,),
}


@pytest.mark.parametrize(
    ("address", "expected"), [*((address, ()) for address in NEAR), *FAR.items()]
)
def test_a_postgresql_far_away_needs_a_password_and_encryption(
    settings: Settings, address: str, expected: tuple[str, ...]
) -> None:
    url = f"postgresql://{address}"
    found = list(doctor.check_postgres_url(dataclasses.replace(settings, postgres_url=url)))
    assert [finding.severity for finding in found] == ["warning"] * len(expected)
    for finding, said in zip(found, expected, strict=True):
        assert said in finding.text
        assert finding.remedy
    assert SECRET not in str(found)
    assert list(doctor.check_postgres_url(settings)) == []


def test_views_of_another_privacy_are_made_anew_once(tmp_path: Path) -> None:
    core = Core(tmp_path)
    rows: list[Row] = [
        (number, "AC", "000", kind, None, None, None)
        for number, kind in (("0403.170.701", "2"), ("0500.000.097", "1"))
    ]
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), {"enterprise": rows}))
    settings = core.settings | {"KBO_PRIVACY": "legal-persons"}
    said: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):
            repair_installation(instance, load_settings(settings, tmp_path), said.append)
    told, renewed = said  # what is published is told to Dagster; the second time nothing is left
    assert "0140-full: published, but unknown to Dagster" in told
    assert renewed == f"{core.readers}: its views were recreated"
    with core.read() as reader:
        shown = reader.execute("SELECT enterprise_number FROM current.enterprise").fetchall()
    assert shown == [("0403.170.701",)]
