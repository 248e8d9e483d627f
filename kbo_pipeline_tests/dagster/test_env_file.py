"""The `.env` file: what would be dropped or cut in silence is refused by its line, never shown."""

import os
from pathlib import Path

import pytest

from kbo_pipeline.core.environment import open_secrets, read_env_file
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline

SECRET = "canary"


def refusal(text: str, directory: Path) -> str:
    """The one line with which a file is refused; it names the file, and not what stands there."""
    file = directory / ".env"
    file.write_bytes(text.encode())
    with pytest.raises(SettingsError) as caught:
        load_settings({}, directory)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert len(message.splitlines()) == 1
    assert SECRET not in message
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("KBO_PASSWORD: canary", 1),
        ("KBO_USERNAME=me\nKBO_PASSWORD canary", 2),
        ("KBO_USERNAME=me\nset KBO_PASSWORD=canary\n", 2),
        ("\n\n# account\n\nKBO_PASSWORD\n", 5),
        ("KBO_USERNAME=me\r\nKBO_PASSWORD='canary\r\n", 2),
        ('KBO_USERNAME=me\n\nKBO_PASSWORD="canary"more\n', 3),
        ("KBO_PASSWORD='can'ary'", 1),
        ('KBO_PASSWORD="canary\nKBO_USERNAME="me"\n', 1),
        ("FOO=1\ncanary\n", 2),
        ("=canary", 1),
        ("- KBO_PASSWORD=canary", 1),
    ],
)
def test_a_line_that_cannot_be_read_is_named(text: str, line: int, tmp_path: Path) -> None:
    assert refusal(text, tmp_path).startswith(f"line {line} cannot be read: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("KBO_USERNAME=me\nKBO_PASSWORD=sec #canary\n", 2),
        ("KBO_PASSWORD=sec\t#canary", 1),
        ("KBO_PASSWORD= #canary", 1),
        ("export KBO_PASSWORD = sec # canary", 1),
        ("\n\nDAGSTER_POSTGRES_URL=postgresql://u:p #canary@h/d", 3),
        ("AWS_SECRET_ACCESS_KEY=a #canary", 1),
    ],
)
def test_a_value_that_would_be_cut_is_named(text: str, line: int, tmp_path: Path) -> None:
    message = refusal(text, tmp_path)
    assert message.startswith(f"line {line}: the value of ")
    assert message.endswith(
        "put the value between single quotes, or its comment on a line of its own"
    )


@pytest.mark.parametrize("name", ["kbo_password", "Kbo_Password", "KBO_password", "dagster_home"])
def test_a_name_in_another_case_is_named(name: str, tmp_path: Path) -> None:
    message = refusal(f"# me\n{name}=canary\n", tmp_path)
    assert message == f"line 2: {name}: names are in capitals: {name.upper()}"


@pytest.mark.parametrize(
    "name", ["KBO-PASSWORD", '"KBO_PASSWORD"', "$env:KBO_PASSWORD", "KBO.USER"]
)
def test_a_name_with_other_characters_is_named(name: str, tmp_path: Path) -> None:
    assert refusal(f"{name}=canary\n", tmp_path).startswith("line 1: its name may hold only ")


@pytest.mark.parametrize("text", ["'sec\ncanary'", '"sec\ncanary"', '"sec\\ncanary"'])
def test_a_value_over_two_lines_is_named(text: str, tmp_path: Path) -> None:
    message = refusal(f"KBO_PASSWORD={text}\nKBO_USERNAME=me\n", tmp_path)
    assert message == "line 1: the value of KBO_PASSWORD goes on in the next line; end its quote"


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("sec#ret", "sec#ret"),
        ("#secret", "#secret"),
        ("'sec #ret'", "sec #ret"),
        ('"sec #ret" # with a comment', "sec #ret"),
        ("'s\"e\"c'", 's"e"c'),
        ("s=e=c", "s=e=c"),
        ("two words", "two words"),
        ("a${b}c", "a${b}c"),
        ("  sec  ", "sec"),
        ("sécrèt", "sécrèt"),
    ],
)
def test_what_can_be_read_is_taken_as_it_stands(
    written: str, password: str, tmp_path: Path
) -> None:
    text = (
        f"\ufeff# account\nexport KBO_USERNAME=me\r\n\n  KBO_PASSWORD={written}\nFOO=1 # theirs\n"
    )
    (tmp_path / ".env").write_text(text, encoding="utf-8", newline="")
    settings = load_settings({}, tmp_path)
    assert (settings.username, settings.password) == ("me", password)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    assert read_env_file(file) == {}
    file.mkdir()
    assert read_env_file(file) == {}  # an environment of Python, for instance
    file.rmdir()
    file.symlink_to(tmp_path / "gone")
    with pytest.raises(SettingsError, match=r"\.env: leads to a file that is not there"):
        read_env_file(file)
    file.unlink()
    file.symlink_to(".env")
    with pytest.raises(SettingsError, match=r"\.env: cannot be read: Too many levels"):
        read_env_file(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(SettingsError, match=r"\.env: a pipe"):
        read_env_file(file)
    file.unlink()
    file.symlink_to("/dev/null")
    assert read_env_file(file) == {}


def test_a_name_in_another_case_in_the_environment_is_refused_too(tmp_path: Path) -> None:
    for name in ("kbo_password", "Dagster_Home"):
        with pytest.raises(SettingsError) as caught:
            load_settings({name: SECRET}, tmp_path)
        assert str(caught.value) == f"{name}: names of settings are in capitals: {name.upper()}"


def test_a_command_says_it_in_one_line_and_one_without_settings_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"KBO_USERNAME=me\nKBO_PASSWORD=sec #{SECRET}\n")
    assert open_secrets(tmp_path) is None
    pipeline = Pipeline(tmp_path / "data", {"PYTHONPATH": str(REPOSITORY)})
    done = pipeline.kbo("status", check=False, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kbo: {tmp_path / '.env'}: line 2: the value of KBO_PASSWORD would end")
    assert SECRET not in done.stdout + done.stderr
    assert done.returncode == 1
    assert not (tmp_path / "data").exists()
    done = pipeline.kbo("sample", tmp_path / "zips", "--enterprises", "50", cwd=tmp_path)
    assert "Full" in done.stdout
