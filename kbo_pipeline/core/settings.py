"""The environment, read once, and which hosts are asked without its proxy."""

import difflib
import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args, overload
from urllib.parse import urlsplit

from kbo_pipeline.core.env_file import read_env_file
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.places import S3, Lake, Place, is_shared_address, lake_files, shared_place

Privacy = Literal["full", "legal-persons"]
"""Who is in views and exports: all, or known legal persons and what belongs to them alone."""

_OTHER_VARIABLES = {"postgres_url": "DAGSTER_POSTGRES_URL", "dagster_home": "DAGSTER_HOME"}
"""The variables that do not begin with `KBO_`, by what they set."""

ACCOUNT = ("KBO_USERNAME", "KBO_PASSWORD")
"""The variables of the portal account, which may change in `.env` while `kbo start` runs."""

_OURS = ("KBO_", "DAGSTER_")
_PORTAL_URL = "https://kbopub.economie.fgov.be/kbo-open-data"
_MOST_WORKERS = 16
_LEAST_WORKER_MB = 512
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"
_POSTGRES_URL = re.compile(r"postgres(ql)?(\+\w+)?://\S+")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user has set, with defaults for the rest. Paths are absolute.

    Attributes:
        data_dir: root of everything that is written (`KBO_DATA_DIR`).
        database: the published register (`KBO_DATABASE`): a DuckDB file, or a place where writers
            and readers share one.
        database_files: where the files of a DuckLake are (`KBO_DATABASE_FILES`); None when unset.
        s3: how those files are reached where they are `s3://` (`AWS_...`); None without an account.
        portal_url: base address of the KBO portal, without a slash at the end (`KBO_PORTAL_URL`).
        username, password: the portal account (`KBO_USERNAME`, `KBO_PASSWORD`); None when unset.
        postgres_url: Dagster's storage (`DAGSTER_POSTGRES_URL`); None for the embedded server.
        dagster_home: Dagster's own directory (`DAGSTER_HOME`).
        batch_rows: rows a batch holds at least, when there are that many (`KBO_BATCH_ROWS`).
        max_batches: batches that an extract is cut into at most (`KBO_MAX_BATCHES`).
        poll_seconds: how often the portal is asked (`KBO_POLL_SECONDS`).
        ui_host: address on which the web UI listens (`KBO_UI_HOST`).
        ui_port: port of the web UI (`KBO_UI_PORT`).
        ui_names: other names by which browsers may call the web UI, as they send them in `Host`
            (`KBO_UI_NAMES`).
        code_host: where the code location is, for processes on several hosts (`KBO_CODE_HOST`);
            None while all are on this machine, and talk over a Unix socket.
        code_port: its port there (`KBO_CODE_PORT`).
        keep_published: published files that are kept, the newest included (`KBO_KEEP_PUBLISHED`).
        keep_extracts: extracts of which Dagster keeps partitions, runs and events
            (`KBO_KEEP_EXTRACTS`).
        keep_zips_days: how long ZIPs stay that are not needed any more (`KBO_KEEP_ZIPS_DAYS`).
        keep_logs_days: how long logs stay that were put aside, and what runs and sensors have
            printed (`KBO_KEEP_LOGS_DAYS`).
        max_loss_percent: rows of a table that an Update may take away and be published unasked, in
            percent (`KBO_MAX_LOSS_PERCENT`).
        max_loss_percent_full: the same for a Full that follows what is published
            (`KBO_MAX_LOSS_PERCENT_FULL`).
        max_faulty_rows: records of an extract that may be set aside unasked
            (`KBO_MAX_FAULTY_ROWS`).
        stale_hours: a register without a new extract for so long is stale (`KBO_STALE_HOURS`).
        alert_webhook: where alerts are posted, as JSON (`KBO_ALERT_WEBHOOK`); None for nowhere.
        memory_mb: megabytes that a process may take which imports (`KBO_MEMORY_MB`).
        apply_workers: processes that apply batches at the same time, to a DuckLake only
            (`KBO_APPLY_WORKERS`); they share `memory_mb`.
        privacy: who is in views and exports (`KBO_PRIVACY`). The tables below the views, and so the
            published file, hold everything all the same.
    """

    data_dir: Path
    database: Place
    database_files: str | None
    s3: S3 | None
    portal_url: str
    username: str | None
    password: str | None
    postgres_url: str | None
    dagster_home: Path
    batch_rows: int
    max_batches: int
    poll_seconds: int
    ui_host: str
    ui_port: int
    ui_names: tuple[str, ...]
    code_host: str | None
    code_port: int
    keep_published: int
    keep_extracts: int
    keep_zips_days: int
    keep_logs_days: int
    max_loss_percent: float
    max_loss_percent_full: float
    max_faulty_rows: int
    stale_hours: int
    alert_webhook: str | None
    memory_mb: int
    apply_workers: int
    privacy: Privacy

    def __repr__(self) -> str:
        return f"Settings(data_dir={str(self.data_dir)!r}, database={str(self.database)!r})"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give another process these settings, wherever it runs."""
        values = {
            _OTHER_VARIABLES.get(field.name, f"KBO_{field.name.upper()}"): getattr(self, field.name)
            for field in fields(self)
        }
        if not isinstance(self.database, Path):
            values["KBO_DATABASE"] = self.database.address
        del values["KBO_S3"]
        values.update(self.s3.environment if self.s3 is not None else {})
        return {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }

    def place(self, text: str) -> Place:
        """The register of a command's argument; `KBO_DATABASE` there is that of the setting.

        Raises:
            SettingsError: the address is malformed, or holds a password, which others could read.
        """
        if text == "KBO_DATABASE":
            return self.database
        if not is_shared_address(text):
            return Path(text).absolute()
        place = shared_place("the address", text, self.database_files, self.s3)
        if isinstance(place, Lake) and place.password is not None:
            raise SettingsError(f"{place}: no password on a command line; set PGPASSWORD")
        return place

    @property
    def has_account(self) -> bool:
        """Whether there is an account to ask the portal with."""
        return self.username is not None and self.password is not None

    @property
    def account_not_set(self) -> str:
        """The variables that are missing for an account."""
        account = {"KBO_USERNAME": self.username, "KBO_PASSWORD": self.password}
        return ", ".join(name for name, value in account.items() if value is None)

    @property
    def export_dir(self) -> Path:
        """Where the asset `parquet_export` puts the current tables."""
        return self.data_dir / "exports" / "current"

    @property
    def rejected_dir(self) -> Path:
        """Where it is told why extracts were refused, a directory each."""
        return self.data_dir / "rejected"

    @property
    def inbox_dir(self) -> Path:
        """Where people put ZIPs to be imported."""
        return self.data_dir / "inbox"

    @property
    def downloads_dir(self) -> Path:
        """Where fetched ZIPs are kept under their KBO names."""
        return self.data_dir / "downloads"

    @property
    def staging_dir(self) -> Path:
        """Where each unpublished extract has its DuckDB file."""
        return self.data_dir / "staging"

    @property
    def reports_dir(self) -> Path:
        """Where it is told what each extract changed, a directory each."""
        return self.data_dir / "reports"

    @property
    def work_dir(self) -> Path:
        """The pipeline's private directory: the register at work, locks."""
        return self.data_dir / "work"

    @property
    def register(self) -> Place:
        """The register at work: a file, of which `database` is a copy, or `database` itself."""
        return self.register_file if isinstance(self.database, Path) else self.database

    @property
    def database_file(self) -> Path:
        """The published register where it is a file.

        Raises:
            SettingsError: it is none.
        """
        if not isinstance(self.database, Path):
            raise SettingsError(f"KBO_DATABASE: {self.database} is no file; name one for this")
        return self.database

    @property
    def database_dir(self) -> Path | None:
        """The directory where publishing writes; None where that is no directory of ours."""
        if isinstance(self.database, Path):
            return self.database.parent
        if isinstance(self.database, Lake) and self.database.directory is not None:
            return self.database.directory
        return None

    @property
    def register_file(self) -> Path:
        """The register at work where it is a file."""
        return self.work_dir / "register.duckdb"

    @property
    def temporary_dir(self) -> Path:
        """Where DuckDB spills; holds nothing between runs."""
        return self.work_dir / "tmp"

    @property
    def postgres_dir(self) -> Path:
        """Where the embedded PostgreSQL server lives."""
        return self.data_dir / "postgres"


def load_settings(
    environment: Mapping[str, str] | None = None, root: Path | None = None
) -> Settings:
    """Reads all settings from the environment and the `.env` file; the environment wins.

    Args:
        environment: the variables; `os.environ` when None.
        root: the directory with the `.env` file, from which relative paths count; the working
            directory when None.

    Raises:
        SettingsError: a `KBO_` variable is unknown, or a value is malformed; names the variable.
    """
    root = Path.cwd() if root is None else root.absolute()
    values = read_env_file(root / ".env")
    values.update(os.environ if environment is None else environment)
    reader = _Reader(values, root)
    data_dir = reader.path("KBO_DATA_DIR", root / "data")
    files = reader.text("KBO_DATABASE_FILES")
    files = None if files is None else lake_files(files, root)
    s3 = _s3(reader)
    database = _database(reader, data_dir, files, s3)
    settings = Settings(
        data_dir=data_dir,
        database=database,
        database_files=files,
        s3=s3,
        portal_url=reader.address("KBO_PORTAL_URL", _PORTAL_URL),
        username=reader.text("KBO_USERNAME"),
        password=reader.text("KBO_PASSWORD"),
        postgres_url=_postgres_url(reader),
        dagster_home=reader.path("DAGSTER_HOME", data_dir / "dagster_home"),
        batch_rows=reader.number("KBO_BATCH_ROWS", 1000, 1, 1_000_000_000),
        max_batches=reader.number("KBO_MAX_BATCHES", 64, 1, 9999),
        poll_seconds=reader.number("KBO_POLL_SECONDS", 3600, 1, 86_400),
        ui_host=reader.host("KBO_UI_HOST") or "127.0.0.1",
        ui_port=reader.number("KBO_UI_PORT", 3000, 1, 65_535),
        ui_names=reader.host_names("KBO_UI_NAMES"),
        code_host=reader.host("KBO_CODE_HOST"),
        code_port=reader.number("KBO_CODE_PORT", 3030, 1, 65_535),
        keep_published=reader.number("KBO_KEEP_PUBLISHED", 2, 1, 30),
        keep_extracts=reader.number("KBO_KEEP_EXTRACTS", 60, 2, 10_000),
        keep_zips_days=reader.number("KBO_KEEP_ZIPS_DAYS", 40, 1, 36_500),
        keep_logs_days=reader.number("KBO_KEEP_LOGS_DAYS", 14, 1, 36_500),
        max_loss_percent=reader.percent("KBO_MAX_LOSS_PERCENT", 2.0),
        max_loss_percent_full=reader.percent("KBO_MAX_LOSS_PERCENT_FULL", 5.0),
        max_faulty_rows=reader.number("KBO_MAX_FAULTY_ROWS", 100, 0, 1_000_000),
        stale_hours=reader.number("KBO_STALE_HOURS", 48, 1, 8760),
        alert_webhook=reader.address("KBO_ALERT_WEBHOOK"),
        memory_mb=reader.number("KBO_MEMORY_MB", 4096, 1024, 10_000_000),
        apply_workers=reader.number("KBO_APPLY_WORKERS", 1, 1, _MOST_WORKERS),
        privacy=cast(Privacy, reader.choice("KBO_PRIVACY", get_args(Privacy))),
    )
    if settings.database == settings.register_file:
        raise SettingsError(
            f"KBO_DATABASE: {settings.database} is the register at work; name another file"
        )
    if settings.apply_workers > 1:
        _check_workers(settings)
    reader.refuse_unknown()
    return settings


def _check_workers(settings: Settings) -> None:
    if not isinstance(settings.database, Lake):
        raise SettingsError(
            "KBO_APPLY_WORKERS: only a DuckLake takes several writers at a time; leave it at 1, or"
            f" move KBO_DATABASE, {settings.database}, to one"
        )
    least = settings.apply_workers * _LEAST_WORKER_MB
    if settings.memory_mb < least:
        raise SettingsError(
            f"KBO_APPLY_WORKERS: {settings.apply_workers} workers share KBO_MEMORY_MB and need"
            f" {least}, it is {settings.memory_mb}; less of these, or more of that"
        )


def _s3(reader: "_Reader") -> S3 | None:
    key, secret = reader.text("AWS_ACCESS_KEY_ID"), reader.text("AWS_SECRET_ACCESS_KEY")
    token, region = reader.text("AWS_SESSION_TOKEN"), reader.text("AWS_REGION")
    endpoint = reader.text("AWS_ENDPOINT_URL")
    if key is None or secret is None:
        return None
    return S3(key, secret, token, region or "us-east-1", endpoint)


def _database(reader: "_Reader", data_dir: Path, files: str | None, s3: S3 | None) -> Place:
    text = reader.text("KBO_DATABASE")
    if text is not None and is_shared_address(text):
        return shared_place("KBO_DATABASE", text, files, s3)
    return reader.path("KBO_DATABASE", data_dir / "kbo.duckdb")


def _postgres_url(reader: "_Reader") -> str | None:
    text = reader.text("DAGSTER_POSTGRES_URL")
    if text is not None and not _POSTGRES_URL.fullmatch(text):
        raise SettingsError(  # the value may hold a password: it is not repeated
            "DAGSTER_POSTGRES_URL: expected postgresql://user:password@host:port/database"
        )
    return text


class _Reader:
    """Takes values out of the environment, remembering which names are known."""

    def __init__(self, values: Mapping[str, str], root: Path) -> None:
        self._values = values
        self._root = root
        self._known: set[str] = set()

    def text(self, name: str) -> str | None:
        self._known.add(name)
        return self._values.get(name) or None

    def path(self, name: str, default: Path) -> Path:
        text = self.text(name)
        try:
            found = default if text is None else self._root / Path(text).expanduser()
        except RuntimeError:
            raise SettingsError(f"{name}: no home directory for {text!r}; write it out") from None
        path = os.path.normpath(found)
        if "\0" in path or "\n" in path:
            raise SettingsError(f"{name}: a path cannot hold a NUL or a line break")
        if "?" in path:  # DuckDB 1.5.5 reads options after it and puts its log beside another name
            raise SettingsError(f"{name}: DuckDB takes no path with a '?', found {path!r}")
        return Path(path)

    @overload
    def address(self, name: str, default: str) -> str: ...
    @overload
    def address(self, name: str) -> str | None: ...
    def address(self, name: str, default: str | None = None) -> str | None:
        """A web address; what travels to another machine must be encrypted."""
        text = self.text(name) or default
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            host, has_account, _ = parts.hostname, "@" in parts.netloc, parts.port
        except ValueError:
            host = None
        local = host in ("localhost", "127.0.0.1", "::1")
        schemes = ("http", "https") if local else ("https",)
        if host is None or has_account or parts.scheme not in schemes or re.search(r"\s", text):
            raise SettingsError(  # the value may hold a secret: it is not repeated
                f"{name}: expected an https address without a password in it (http only for"
                " 127.0.0.1 and localhost)"
            )
        return text.rstrip("/")

    def host(self, name: str) -> str | None:
        """A name or an IPv4 address: Dagster's addresses are `host:port`."""
        text = self.text(name)
        if text is not None and not re.fullmatch(_HOST, text):
            raise SettingsError(f"{name}: expected a host name or an IPv4 address, found {text!r}")
        return text

    def host_names(self, name: str) -> tuple[str, ...]:
        """Names with or without a port, with commas between them."""
        names = [word.strip().lower() for word in (self.text(name) or "").split(",")]
        found = tuple(word for word in names if word)
        for word in found:
            if not re.fullmatch(rf"{_HOST}(:[0-9]{{1,5}})?", word):
                raise SettingsError(
                    f"{name}: expected names such as kbo.example or kbo.example:3000, with commas"
                    f" between them, found {word!r}"
                )
        return found

    def number(self, name: str, default: int, least: int, most: int) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise SettingsError(
                f"{name}: expected a whole number from {least} to {most}, found {text!r}"
            )
        return int(text)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of some words; the first when nothing is set."""
        text = self.text(name) or choices[0]
        if text not in choices:
            raise SettingsError(f"{name}: expected {' or '.join(choices)}, found {text!r}")
        return text

    def percent(self, name: str, default: float) -> float:
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", text) or float(text) > 100:
            raise SettingsError(f"{name}: expected a number from 0 to 100, found {text!r}")
        return float(text)

    def refuse_unknown(self) -> None:
        known = self._known | {*_OTHER_VARIABLES.values()}
        listed = "docs/operating.md, 'Settings', lists all"
        for name in sorted(self._values):
            if name != name.upper() and name.upper() in known and name.upper().startswith(_OURS):
                raise SettingsError(f"{name}: names of settings are in capitals: {name.upper()}")
            if name.startswith("KBO_") and name not in known:
                close = difflib.get_close_matches(name.removeprefix("KBO_"), _endings(known), n=1)
                hint = f"did you mean KBO_{close[0]}?" if close else listed
                raise SettingsError(f"{name}: unknown setting; {hint}")


def _endings(names: Collection[str]) -> list[str]:
    """What tells one name of ours from another: all begin alike."""
    return [name.removeprefix("KBO_") for name in names if name.startswith("KBO_")]


def is_own(host: str | None) -> bool:
    """Tells whether a host, as an address names it, is this machine itself."""
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_direct(host: str | None) -> bool:
    """Tells whether a host is asked without the proxy: it is this machine, or in `no_proxy`."""
    from requests.utils import should_bypass_proxies  # which imports much

    return is_own(host) or bool(should_bypass_proxies(f"http://{host}", no_proxy=None))


def reach_code_location_directly() -> None:
    """Keeps gRPC, here and in all children, away from proxies: it is spoken among our parts only.

    Dagster's client takes `http_proxy` for any TCP address; an empty `grpc_proxy` goes before it.
    """
    os.environ["grpc_proxy"] = ""  # noqa: SIM112 - gRPC knows it in small letters only
