"""Settings in Dagster's processes: loaded once; what is wrong with them is one line there too."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info

from kbo_pipeline.defs.sensors.due import kbo_extract_sensor
from kbo_pipeline.defs.sensors.inbox import inbox_sensor
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline

MISSPELT = "KBO_DATA_DIRR: unknown setting; did you mean KBO_DATA_DIR?"
COUNTED = """
import atexit, sys
loads = 0
def look(event, arguments):
    global loads
    if event == "open" and str(arguments[0]).endswith("/.env"):
        loads += 1
sys.addaudithook(look)
atexit.register(lambda: print("loads:", loads))
"""


def test_a_code_location_with_a_wrong_setting_says_so_in_one_line(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data", {"KBO_DATA_DIRR": "x", "PYTHONPATH": str(REPOSITORY)})
    command = ("-m", "dagster", "definitions", "validate", "-m", "kbo_pipeline.definitions")
    done = pipeline.run(*command, check=False, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count(MISSPELT) == 1
    assert "Traceback" not in said
    assert 'File "' not in said.split("Validation failed", 1)[1]


@pytest.mark.parametrize("sensor", [kbo_extract_sensor, inbox_sensor])
def test_a_tick_with_a_wrong_setting_says_so_in_one_line(
    sensor: dg.SensorDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBO_DATA_DIRR", "x")
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(dg.DagsterError) as caught:
        sensor.evaluate_tick(dg.build_sensor_context(instance))
    shown = serializable_error_info_from_exc_info((caught.type, caught.value, caught.tb))
    assert (shown.message, shown.stack, shown.cause) == (f"{MISSPELT}\n", [], None)


def counted(directory: Path, code: str, *arguments: Path) -> int:
    """How often a process reads the `.env` file."""
    env_file = directory / ".env"
    env_file.write_text("KBO_POLL_SECONDS=60\n")
    env_file.chmod(0o600)
    pipeline = Pipeline(directory / "data", {"PYTHONPATH": str(REPOSITORY)})
    pipeline.prepare()
    done = pipeline.run("-c", f"{COUNTED}{code}", *arguments, cwd=directory)
    return int(done.stdout.splitlines()[-1].removeprefix("loads: "))


def test_settings_are_loaded_once_by_a_code_location_and_once_by_each_step(tmp_path: Path) -> None:
    assert counted(tmp_path, "import kbo_pipeline.definitions") == 1
    zip_file = Sample(enterprises=60).write_full(tmp_path, 140)
    code = "import kbo_pipeline.cli, sys\nkbo_pipeline.cli.main(['import', sys.argv[1]])"
    steps = 5  # the ZIP, staging, applying, publishing, the report
    others = 3  # the command, Dagster's storage, the definitions
    assert counted(tmp_path, code, zip_file) == steps + others
