"""Settings come from one place, and a wrong one is refused by name."""

import os
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

import pytest

from kbo_pipeline.core.database import connect
from kbo_pipeline.core.environment import S3
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.settings import Settings, load_settings

SECRET = "s3cret-Pässword"


def refusal(environment: dict[str, str], root: Path) -> str:
    """The one line with which an environment is refused."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environment, root)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_an_empty_environment_gives_the_defaults_of_the_readme(tmp_path: Path) -> None:
    settings = load_settings({}, tmp_path)
    data = tmp_path / "data"
    assert (settings.data_dir, settings.database_file) == (data, data / "kbo.duckdb")
    assert settings.dagster_home == data / "dagster_home"
    assert settings.portal_url == "https://kbopub.economie.fgov.be/kbo-open-data"
    assert (settings.username, settings.password, settings.postgres_url) == (None, None, None)
    assert (settings.batch_rows, settings.max_batches) == (1000, 64)
    assert (settings.poll_seconds, settings.ui_port) == (3600, 3000)
    assert settings.max_loss_percent == 2.0
    assert settings.max_loss_percent_full == 5.0
    assert (settings.ui_host, settings.ui_names) == ("127.0.0.1", ())
    assert (settings.code_host, settings.code_port) == (None, 3030)


def test_everything_that_is_written_lies_under_the_data_directory(tmp_path: Path) -> None:
    settings = load_settings({"KBO_DATA_DIR": "elsewhere"}, tmp_path)
    for path in (
        settings.database_file,
        settings.dagster_home,
        settings.downloads_dir,
        settings.staging_dir,
        settings.work_dir,
        settings.register_file,
        settings.temporary_dir,
        settings.postgres_dir,
    ):
        assert path.is_relative_to(tmp_path / "elsewhere")


def test_every_value_is_taken_over(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "KBO_DATA_DIR": "/srv/kbo",
            "KBO_DATABASE": "/srv/published.duckdb",
            "KBO_PORTAL_URL": "http://127.0.0.1:8080/kbo/",
            "KBO_USERNAME": "jan",
            "KBO_PASSWORD": SECRET,
            "DAGSTER_POSTGRES_URL": "postgresql://u:p@host:5432/dagster",
            "DAGSTER_HOME": "/srv/dagster",
            "KBO_BATCH_ROWS": "1",
            "KBO_MAX_BATCHES": "9999",
            "KBO_POLL_SECONDS": "86400",
            "KBO_UI_PORT": "65535",
            "KBO_MAX_LOSS_PERCENT": "0.125",
            "KBO_MAX_LOSS_PERCENT_FULL": "7.5",
        },
        tmp_path,
    )
    assert settings.data_dir == Path("/srv/kbo")
    assert settings.database_file == Path("/srv/published.duckdb")
    assert settings.portal_url == "http://127.0.0.1:8080/kbo"
    assert (settings.username, settings.password) == ("jan", SECRET)
    assert settings.postgres_url == "postgresql://u:p@host:5432/dagster"
    assert settings.dagster_home == Path("/srv/dagster")
    assert (settings.batch_rows, settings.max_batches) == (1, 9999)
    assert (settings.poll_seconds, settings.ui_port) == (86_400, 65_535)
    assert settings.max_loss_percent == 0.125
    assert settings.max_loss_percent_full == 7.5


def test_another_process_gets_the_same_settings_wherever_it_runs(tmp_path: Path) -> None:
    some = load_settings({"KBO_USERNAME": "me"}, tmp_path)
    given = {
        **{field.name: f"{place}" for place, field in enumerate(fields(Settings), start=1024)},
        "database": "ducklake:postgres:dbname=kbo",
        "portal_url": "http://localhost:8080/kbo",
        "postgres_url": "postgresql://me@localhost/dagster",
        "alert_webhook": "https://example.org/hook",
        "max_loss_percent": "33.125",
        "max_loss_percent_full": "0",
        "privacy": "legal-persons",
        "keep_published": "7",
        "prove_days": "3",
        "ui_host": "0.0.0.0",
        "ui_names": "kbo.example,kbo.example:3000",
        "code_host": "code.example",
        "api_keys": f"{'a' * 64},{'0' * 64}",
        "api_origins": "https://crm.example,http://crm.example:8080",
    }
    every = {
        {"postgres_url": "DAGSTER_POSTGRES_URL", "dagster_home": "DAGSTER_HOME"}.get(
            name, f"KBO_{name.upper()}"
        ): value
        for name, value in given.items()
        if name != "s3"
    }
    for settings in (some, load_settings(every, tmp_path)):
        assert load_settings(settings.environment, tmp_path / "elsewhere") == settings
    assert load_settings(every, tmp_path).memory_mb != some.memory_mb


def test_everybody_is_shown_unless_the_setting_says_otherwise(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path).privacy == "full"
    assert load_settings({"KBO_PRIVACY": "legal-persons"}, tmp_path).privacy == "legal-persons"
    for text in ("persons", "Full", " ", "legal_persons"):
        message = refusal({"KBO_PRIVACY": text}, tmp_path)
        assert message == f"KBO_PRIVACY: expected full or legal-persons, found {text!r}"


def test_hosts_are_names_or_addresses_and_nothing_else(tmp_path: Path) -> None:
    settings = load_settings({"KBO_UI_NAMES": " KBO.example, ,b:80,"}, tmp_path)
    assert settings.ui_names == ("kbo.example", "b:80")
    for text in ("http://code", "code:3030", "::1", "a b", "-code", "code/"):
        assert refusal({"KBO_CODE_HOST": text}, tmp_path) == (
            f"KBO_CODE_HOST: expected a host name or an IPv4 address, found {text!r}"
        )
    for text in ("https://kbo.example", "*", "kbo.example/ui", "a:b"):
        assert refusal({"KBO_UI_NAMES": text}, tmp_path).startswith("KBO_UI_NAMES: expected names")


def test_keys_are_given_as_hashes_and_never_repeated(tmp_path: Path) -> None:
    hashes = sha256(b"key").hexdigest()
    settings = load_settings({"KBO_API_KEYS": f" {hashes.upper()}, "}, tmp_path)
    assert settings.api_keys == (hashes,)
    assert load_settings({}, tmp_path).api_keys == ()
    for text in (SECRET, hashes[1:], f"{hashes},{SECRET}", f"{hashes} {hashes}"):
        message = refusal({"KBO_API_KEYS": text}, tmp_path)
        assert message.startswith("KBO_API_KEYS: expected SHA-256 hashes of keys")
        assert SECRET not in message and hashes[1:] not in message


def test_origins_have_a_scheme_and_no_path(tmp_path: Path) -> None:
    settings = load_settings({"KBO_API_ORIGINS": "https://CRM.example, http://b:80"}, tmp_path)
    assert settings.api_origins == ("https://crm.example", "http://b:80")
    for text in ("*", "crm.example", "https://crm.example/", "null", "https://a@b"):
        message = refusal({"KBO_API_ORIGINS": text}, tmp_path)
        assert message.startswith("KBO_API_ORIGINS: expected origins such as")


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KBO_USERNAME=from_file\nKBO_UI_PORT=4000\n")
    settings = load_settings({"KBO_UI_PORT": "5000"}, tmp_path)
    assert (settings.username, settings.ui_port) == ("from_file", 5000)


def test_without_arguments_the_process_and_its_directory_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("KBO_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KBO_UI_PORT", "4001")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("KBO_DATA_DIR=here\n")
    settings = load_settings()
    assert (settings.data_dir, settings.ui_port) == (tmp_path / "here", 4001)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d", "{root}/d"),
        ("./d/../e", "{root}/e"),
        ("../d", "{parent}/d"),
        ("/d/", "/d"),
        ("~/d", "{home}/d"),
        ("with blank 'and quote", "{root}/with blank 'and quote"),
    ],
)
@pytest.mark.parametrize(
    ("variable", "attribute"),
    [
        ("KBO_DATA_DIR", "data_dir"),
        ("KBO_DATABASE", "database_file"),
        ("DAGSTER_HOME", "dagster_home"),
    ],
)
def test_relative_paths_count_from_the_root(
    variable: str, attribute: str, text: str, expected: str, tmp_path: Path
) -> None:
    found = getattr(load_settings({variable: text}, tmp_path), attribute)
    assert found == Path(expected.format(root=tmp_path, parent=tmp_path.parent, home=Path.home()))


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0.0), ("2", 2.0), ("100", 100.0), ("0.5", 0.5)]
)
def test_a_percentage_may_have_decimals(text: str, expected: float, tmp_path: Path) -> None:
    settings = load_settings({"KBO_MAX_LOSS_PERCENT": text}, tmp_path)
    assert settings.max_loss_percent == expected
    passed_on = {"KBO_MAX_LOSS_PERCENT": str(settings.max_loss_percent)}  # to children
    assert load_settings(passed_on, tmp_path).max_loss_percent == expected


@pytest.mark.parametrize(
    "text", [" ", "-1", "+1", "101", "100.001", "1e1", "nan", "inf", "2%", "2,5", ".5", "2.", "²"]
)
def test_what_is_no_percentage_is_refused(text: str, tmp_path: Path) -> None:
    said = refusal({"KBO_MAX_LOSS_PERCENT": text}, tmp_path)
    assert said == f"KBO_MAX_LOSS_PERCENT: expected a number from 0 to 100, found {text!r}"


@pytest.mark.parametrize("text", ["", " ", "0", "-1", "+1", "1.5", "1_0", "1e3", "²", "١", "ten"])
@pytest.mark.parametrize(
    "variable", ["KBO_BATCH_ROWS", "KBO_MAX_BATCHES", "KBO_POLL_SECONDS", "KBO_UI_PORT"]
)
def test_what_is_no_whole_number_is_refused(variable: str, text: str, tmp_path: Path) -> None:
    if text == "":
        load_settings({variable: text}, tmp_path)  # empty is unset, as in a shell
    else:
        message = refusal({variable: text}, tmp_path)
        assert message.startswith(f"{variable}: expected a whole number from 1 to ")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("KBO_BATCH_ROWS", "1000000001"),
        ("KBO_MAX_BATCHES", "10000"),
        ("KBO_POLL_SECONDS", "86401"),
        ("KBO_UI_PORT", "65536"),
        ("KBO_UI_PORT", "9" * 5000),
        ("KBO_UI_PORT", "80\n80"),
        ("KBO_PORTAL_URL", "kbopub.economie.fgov.be"),
        ("KBO_PORTAL_URL", "ftp://kbopub.economie.fgov.be"),
        ("KBO_PORTAL_URL", "https://two words"),
        ("KBO_PORTAL_URL", "https://two\nlines"),
        ("KBO_DATA_DIR", "a\nb"),
        ("KBO_DATA_DIR", "a\0b"),
        ("KBO_DATA_DIR", "~no_such_user_here/b"),
        ("KBO_DATABASE", "md:two words"),
        ("KBO_DATABASE", "md:kbo?motherduck_token=x"),
        ("KBO_DATABASE", "ducklake:kbo"),
        ("KBO_DATABASE", "ducklake:postgres:host=localhost"),
        ("KBO_DATABASE", "ducklake:sqlite:kbo.sqlite"),
        ("DAGSTER_HOME", "a\nb"),
        ("DAGSTER_POSTGRES_URL", "mysql://u:p@host/dagster"),
        ("DAGSTER_POSTGRES_URL", "host:5432"),
    ],
)
def test_a_malformed_value_is_refused_by_the_name_of_its_variable(
    variable: str, text: str, tmp_path: Path
) -> None:
    assert refusal({variable: text}, tmp_path).startswith(f"{variable}: ")


@pytest.mark.parametrize("variable", ["KBO_DATA_DIR", "KBO_DATABASE"])
def test_a_path_with_a_question_mark_is_refused(variable: str, tmp_path: Path) -> None:
    """DuckDB takes what follows for options, and would put its log beside another file."""
    message = refusal({variable: "what?/kbo"}, tmp_path)
    assert message.startswith(f"{variable}: ")
    assert "'?'" in message


def test_a_working_directory_with_a_question_mark_is_refused_too(tmp_path: Path) -> None:
    assert refusal({}, tmp_path / "what?").startswith("KBO_DATA_DIR: ")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("KBO_BATCHROWS", "did you mean KBO_BATCH_ROWS?"),
        ("KBO_DATADIR", "did you mean KBO_DATA_DIR?"),
        ("KBO_USER", "did you mean KBO_USERNAME?"),
        ("KBO_PORTAL_URI", "did you mean KBO_PORTAL_URL?"),
        ("KBO_XYZZY_QUUX_42", "docs/operating.md, 'Settings', lists all"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_an_unknown_name_is_refused_with_a_hint(
    name: str, hint: str, in_file: bool, tmp_path: Path
) -> None:
    if in_file:
        (tmp_path / ".env").write_text(f"{name}=1\n")
    assert refusal({} if in_file else {name: "1"}, tmp_path) == f"{name}: unknown setting; {hint}"


def test_names_of_other_programs_are_none_of_our_business(tmp_path: Path) -> None:
    others = {"PATH": "?", "KBOX": "1", "DAGSTER_CLOUD": "1", "kbo_data": "1"}
    assert load_settings(others, tmp_path) == load_settings({}, tmp_path)


def test_a_password_never_stands_in_a_representation(tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@host/dagster"
    settings = load_settings({"KBO_PASSWORD": SECRET, "DAGSTER_POSTGRES_URL": url}, tmp_path)
    for text in (repr(settings), str(settings), f"{settings}", repr([settings])):
        assert SECRET not in text
    assert settings.password == SECRET


def test_the_address_of_a_lake_is_taken_apart_and_its_password_never_shown(tmp_path: Path) -> None:
    address = f"ducklake:postgresql://u:{SECRET}@host:5433/kbo?sslmode=require"
    given = {"KBO_DATABASE": address, "KBO_DATABASE_FILES": "lake"}
    settings = load_settings(given, tmp_path)
    assert isinstance(settings.database, Lake)
    assert str(settings.database) == (
        "ducklake:postgres:dbname=kbo host=host port=5433 sslmode=require user=u"
    )
    assert settings.database.password == SECRET
    assert settings.database.files == f"{tmp_path}/lake/"
    assert settings.register == settings.database
    for text in (repr(settings), repr(settings.database), f"{settings.database}"):
        assert SECRET not in text
    assert load_settings(settings.environment, tmp_path / "elsewhere") == settings


def test_the_account_of_an_s3_server_goes_with_the_lake_and_is_never_shown(tmp_path: Path) -> None:
    given = {
        "KBO_DATABASE": "ducklake:postgres:dbname=kbo",
        "KBO_DATABASE_FILES": "s3://bucket/lake",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
    }
    settings = load_settings(given, tmp_path)
    assert isinstance(settings.database, Lake)
    assert settings.database.s3 == S3("key", SECRET, None, "us-east-1", "http://127.0.0.1:9000")
    assert (settings.database.files, settings.database.directory) == ("s3://bucket/lake/", None)
    assert SECRET not in f"{settings!r}{settings.database!r}{settings.database}"
    assert load_settings(settings.environment, tmp_path / "elsewhere") == settings
    for wrong in ("127.0.0.1:9000", "minio:9000", "http://", f"http://key:{SECRET}@host"):
        said = refusal({**given, "AWS_ENDPOINT_URL": wrong}, tmp_path)
        assert said.startswith("AWS_ENDPOINT_URL: expected https://HOST:PORT")
        assert SECRET not in said
    del given["AWS_SECRET_ACCESS_KEY"]
    assert refusal(given, tmp_path).startswith("KBO_DATABASE_FILES: s3:// needs ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"KBO_DATABASE": "ducklake:postgres:dbname=kbo"}, "KBO_DATABASE_FILES: a DuckLake needs "),
        ({"KBO_DATABASE": f"ducklake:postgres:dbname=kbo {SECRET}"}, "KBO_DATABASE: expected "),
        (
            {"KBO_DATABASE": "ducklake:postgres:dbname=k", "KBO_DATABASE_FILES": "s3://k:s@b/p"},
            "KBO_DATABASE_FILES: expected ",
        ),
    ],
)
def test_what_does_not_make_a_lake_is_refused(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    message = refusal(given, tmp_path)
    assert message.startswith(expected)
    assert SECRET not in message


@pytest.mark.parametrize(
    "url", ["postgres:/u:{}@host/dagster", "u:{}@host", "{}", "postgresql://u:{} @host/dagster"]
)
def test_a_password_never_stands_in_the_refusal_of_an_address(url: str, tmp_path: Path) -> None:
    message = refusal({"DAGSTER_POSTGRES_URL": url.format(SECRET)}, tmp_path)
    assert message.startswith("DAGSTER_POSTGRES_URL: ")
    assert SECRET not in message


def test_an_env_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"KBO_USERNAME=Andr\xe9\n")
    assert ".env: " in refusal({}, tmp_path)


def test_a_value_in_the_env_file_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KBO_PASSWORD=a${b}c\n")
    assert load_settings({}, tmp_path).password == "a${b}c"


def test_the_register_at_work_cannot_be_the_published_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"KBO_DATABASE: .* is the register at work"):
        load_settings({"KBO_DATABASE": "data/work/register.duckdb"}, tmp_path)


def test_a_setting_that_is_gone_says_so(tmp_path: Path) -> None:
    for text in ("1", "4"):
        assert refusal({"KBO_APPLY_WORKERS": text}, tmp_path) == (
            "KBO_APPLY_WORKERS: no setting any more: one process writes a register; remove it"
        )


@pytest.mark.parametrize(
    ("megabytes", "limit", "most_threads"), [(1024, "564.0 MiB", 1), (4096, "3.0 GiB", 6)]
)
def test_duckdb_gets_a_part_of_the_memory_and_no_more_threads_than_it_is_enough_for(
    tmp_path: Path, megabytes: int, limit: str, most_threads: int
) -> None:
    settings = load_settings({"KBO_MEMORY_MB": str(megabytes)}, tmp_path)
    with connect(settings) as connection:
        found = connection.execute(
            "SELECT current_setting('memory_limit'), current_setting('threads')"
        ).fetchone()
    assert found == (limit, min(os.cpu_count() or 1, most_threads))
