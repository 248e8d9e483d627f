"""The settings: read once from the environment, with defaults for the rest."""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_args
from urllib.parse import urlsplit

from kbo_pipeline.core.environment import OURS, S3, read_env_file
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.places import (
    DuckDBFile,
    Place,
    is_shared_address,
    lake_files,
    shared_place,
)
from kbo_pipeline.core.tables import Privacy

P = ParamSpec("P")
T = TypeVar("T")

_OTHER_VARIABLES = {"postgres_url": "DAGSTER_POSTGRES_URL", "dagster_home": "DAGSTER_HOME"}
"""The variables that do not begin with `KBO_`, by what they set."""

ACCOUNT = ("KBO_USERNAME", "KBO_PASSWORD")
"""The variables of the portal account, which may change in `.env` while `kbo start` runs."""

_GONE = {"KBO_APPLY_WORKERS": "no setting any more: one process writes a register; remove it"}
"""Settings of earlier versions, and why they are refused now."""

_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"
_POSTGRES_URL = re.compile(r"postgres(ql)?(\+\w+)?://\S+")


class _Reader:
    """Reads values from the environment, and remembers which names are known."""

    def __init__(self, values: Mapping[str, str], root: Path) -> None:
        self._values = values
        self._root = root
        self._known: set[str] = set()
        self.read: dict[str, Any] = {}
        """The settings that are read so far."""

    def text(self, name: str) -> str | None:
        self._known.add(name)
        return self._values.get(name) or None

    def path(self, name: str, default: str) -> Path:
        """A path from the root; the default counts from the data directory, once that is read."""
        text = self.text(name)
        try:
            path = (
                self.read.get("data_dir", self._root) / default
                if text is None
                else self._root / Path(text).expanduser()
            )
        except RuntimeError:
            raise SettingsError(f"{name}: no home directory for {text!r}; write it out") from None
        path = os.path.normpath(path)
        if "\0" in path or "\n" in path:
            raise SettingsError(f"{name}: a path cannot hold a NUL or a line break")
        if "?" in path:  # DuckDB 1.5.5 reads options after it and puts its log beside another name
            raise SettingsError(f"{name}: DuckDB takes no path with a '?', found {path!r}")
        return Path(path)

    def path_or_none(self, name: str) -> Path | None:
        return None if self.text(name) is None else self.path(name, "")

    def address(self, name: str, default: str) -> str:
        return self.address_or_none(name) or default

    def address_or_none(self, name: str) -> str | None:
        """A web address; what travels to another machine must be encrypted."""
        text = self.text(name)
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

    def words(self, name: str) -> tuple[str, ...]:
        """What stands between commas, without blanks and in small letters."""
        words = (word.strip().lower() for word in (self.text(name) or "").split(","))
        return tuple(word for word in words if word)

    def hashes(self, name: str) -> tuple[str, ...]:
        words = self.words(name)
        if not all(re.fullmatch(r"[0-9a-f]{64}", word) for word in words):
            raise SettingsError(  # it may be a key instead of its hash: it is not repeated
                f"{name}: expected SHA-256 hashes of keys, 64 hexadecimal digits each, with commas"
                " between them; docs/http.md shows how to make one"
            )
        return words

    def origins(self, name: str) -> tuple[str, ...]:
        words = self.words(name)
        for word in words:
            if not re.fullmatch(rf"https?://{_HOST}(:[0-9]{{1,5}})?", word):
                raise SettingsError(
                    f"{name}: expected origins such as https://crm.example, with commas between"
                    f" them, found {word!r}"
                )
        return words

    def host(self, name: str) -> str | None:
        """A name or an IPv4 address: Dagster's addresses are `host:port`."""
        text = self.text(name)
        if text is not None and not re.fullmatch(_HOST, text):
            raise SettingsError(f"{name}: expected a host name or an IPv4 address, found {text!r}")
        return text

    def host_to_listen_on(self, name: str, default: str) -> str:
        return self.host(name) or default

    def host_names(self, name: str) -> tuple[str, ...]:
        """Names with or without a port, with commas between them."""
        hosts = self.words(name)
        for word in hosts:
            if not re.fullmatch(rf"{_HOST}(:[0-9]{{1,5}})?", word):
                raise SettingsError(
                    f"{name}: expected names such as kbo.example or kbo.example:3000, with commas"
                    f" between them, found {word!r}"
                )
        return hosts

    def number(self, name: str, default: int, least: int, most: int) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise SettingsError(
                f"{name}: expected a whole number from {least} to {most}, found {text!r}"
            )
        return int(text)

    def privacy(self, name: str) -> Privacy:
        choices = get_args(Privacy)
        text = self.text(name) or choices[0]
        if text not in choices:
            raise SettingsError(f"{name}: expected {' or '.join(choices)}, found {text!r}")
        return cast(Privacy, text)

    def percent(self, name: str, default: float) -> float:
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", text) or float(text) > 100:
            raise SettingsError(f"{name}: expected a number from 0 to 100, found {text!r}")
        return float(text)

    def postgres_url(self, name: str) -> str | None:
        text = self.text(name)
        if text is not None and not _POSTGRES_URL.fullmatch(text):
            raise SettingsError(  # the value may hold a password: it is not repeated
                f"{name}: expected postgresql://user:password@host:port/database"
            )
        return text

    def lake_files(self, name: str) -> str | None:
        text = self.text(name)
        return None if text is None else lake_files(text, self._root)

    def s3(self, _: str) -> S3 | None:
        key, secret = self.text("AWS_ACCESS_KEY_ID"), self.text("AWS_SECRET_ACCESS_KEY")
        token, region = self.text("AWS_SESSION_TOKEN"), self.text("AWS_REGION")
        endpoint = self.text("AWS_ENDPOINT_URL")
        if key is None or secret is None:
            return None
        return S3(key, secret, token, region or "us-east-1", endpoint)

    def database(self, name: str) -> Place:
        text = self.text(name)
        if text is not None and is_shared_address(text):
            return shared_place(name, text, self.read["database_files"], self.read["s3"])
        return DuckDBFile(self.path(name, "kbo.duckdb"))

    def refuse_unknown(self) -> None:
        names = self._known | {*_OTHER_VARIABLES.values()}
        listed = "docs/operating.md, 'Settings', lists all"
        for name in sorted(self._values):
            if name != name.upper() and name.upper() in names and name.upper().startswith(OURS):
                raise SettingsError(f"{name}: names of settings are in capitals: {name.upper()}")
            if name in _GONE:
                raise SettingsError(f"{name}: {_GONE[name]}")
            if name.startswith("KBO_") and name not in names:
                import difflib  # a mistake may take longer than kbo --help

                close = difflib.get_close_matches(name.removeprefix("KBO_"), _endings(names), n=1)
                hint = f"did you mean KBO_{close[0]}?" if close else listed
                raise SettingsError(f"{name}: unknown setting; {hint}")


def _setting(
    read: Callable[Concatenate[_Reader, str, P], T], *args: P.args, **named: P.kwargs
) -> T:
    """Declares a setting: how it is read from its variable, with its default and limits."""
    declared = field(metadata={"read": lambda reader, name: read(reader, name, *args, **named)})
    return cast(T, declared)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user has set, with defaults for the rest. Paths are absolute.

    Each is read from the variable of its name: `data_dir` from `KBO_DATA_DIR`. The exceptions are
    in `_OTHER_VARIABLES`, and `s3`, which is several.
    """

    data_dir: Path = _setting(_Reader.path, "data")
    """Root of everything that is written."""
    database_files: str | None = _setting(_Reader.lake_files)
    """Where the files of a DuckLake are."""
    s3: S3 | None = _setting(_Reader.s3)
    """How those files are reached where they are `s3://` (`AWS_...`); None without an account."""
    database: Place = _setting(_Reader.database)
    """The published register: a DuckDB file, or a place where writers and readers share one."""
    portal_url: str = _setting(_Reader.address, "https://kbopub.economie.fgov.be/kbo-open-data")
    """Base address of the KBO portal, without a slash at the end."""
    username: str | None = _setting(_Reader.text)
    password: str | None = _setting(_Reader.text)
    postgres_url: str | None = _setting(_Reader.postgres_url)
    """Dagster's storage; None for the embedded server."""
    dagster_home: Path = _setting(_Reader.path, "dagster_home")
    batch_rows: int = _setting(_Reader.number, 1000, 1, 1_000_000_000)
    """Rows a batch holds at least, when there are that many."""
    max_batches: int = _setting(_Reader.number, 64, 1, 9999)
    """Batches that an extract is cut into at most."""
    poll_seconds: int = _setting(_Reader.number, 3600, 1, 86_400)
    """How often the portal is asked."""
    ui_host: str = _setting(_Reader.host_to_listen_on, "127.0.0.1")
    ui_port: int = _setting(_Reader.number, 3000, 1, 65_535)
    ui_names: tuple[str, ...] = _setting(_Reader.host_names)
    """Other names by which browsers may call the web UI, as they send them in `Host`."""
    api_keys: tuple[str, ...] = _setting(_Reader.hashes)
    """SHA-256 of the keys with which programs may read over HTTP; anybody may where there is none.
    """
    api_origins: tuple[str, ...] = _setting(_Reader.origins)
    """Pages of other servers that may read from `kbo serve`."""
    code_host: str | None = _setting(_Reader.host)
    """Where the code location is, for processes on several hosts; None while all are on this
    machine, and talk over a Unix socket."""
    code_port: int = _setting(_Reader.number, 3030, 1, 65_535)
    keep_published: int = _setting(_Reader.number, 2, 1, 30)
    """Published files that are kept, the newest included."""
    keep_extracts: int = _setting(_Reader.number, 60, 2, 10_000)
    """Extracts of which Dagster keeps partitions, runs and events."""
    keep_zips_days: int = _setting(_Reader.number, 40, 1, 36_500)
    """Days for which ZIPs that are no longer needed are kept."""
    keep_logs_days: int = _setting(_Reader.number, 14, 1, 36_500)
    """Days for which rotated logs and the output of runs and sensors are kept."""
    max_loss_percent: float = _setting(_Reader.percent, 2.0)
    """Share of a table's rows that an Update may remove without being accepted by hand."""
    max_loss_percent_full: float = _setting(_Reader.percent, 5.0)
    """The same for a Full that follows what is published."""
    max_faulty_rows: int = _setting(_Reader.number, 100, 0, 1_000_000)
    """Records of an extract that may be set aside without being accepted by hand."""
    stale_hours: int = _setting(_Reader.number, 48, 1, 8760)
    """Hours after which a register without a new extract is stale."""
    prove_days: int = _setting(_Reader.number, 7, 0, 365)
    """Days after which the register is compared with a Full again; 0 for never by itself."""
    signing_key: Path | None = _setting(_Reader.path_or_none)
    """The SSH key with which proofs are signed; None to leave them unsigned."""
    alert_webhook: str | None = _setting(_Reader.address_or_none)
    """Where alerts are posted, as JSON."""
    memory_mb: int = _setting(_Reader.number, 4096, 1024, 10_000_000)
    """Megabytes of memory for each process that imports."""
    privacy: Privacy = _setting(_Reader.privacy)
    """Who is in views and exports. The tables below the views, and so the published file, always
    hold everything."""

    def __repr__(self) -> str:
        return f"Settings(data_dir={str(self.data_dir)!r}, database={str(self.database)!r})"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give another process these settings, wherever it runs."""
        values = {
            variable_of(setting.name): getattr(self, setting.name) for setting in fields(self)
        }
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
            return DuckDBFile(Path(text).absolute())
        place = shared_place("the address", text, self.database_files, self.s3)
        if place.password is not None:
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
    def deltas_dir(self) -> Path:
        """Where it puts the deltas that lead there, a directory each."""
        return self.data_dir / "exports" / "deltas"

    @property
    def search_dir(self) -> Path:
        """The search index: beside the published file, or in the data directory."""
        return self.database.search_dir or self.data_dir / "kbo.search"

    @property
    def rejected_dir(self) -> Path:
        """Reports of why extracts were refused, a directory each."""
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
        """Reports of what each extract changed, a directory each."""
        return self.data_dir / "reports"

    @property
    def proofs_dir(self) -> Path:
        """What comparing with Fulls has found, a file for each number."""
        return self.data_dir / "proofs"

    @property
    def work_dir(self) -> Path:
        """The pipeline's private directory: the register at work, locks."""
        return self.data_dir / "work"

    @property
    def register(self) -> Place:
        """The register at work: a file, of which `database` is a copy, or `database` itself."""
        return self.database.register(self.register_file)

    @property
    def database_file(self) -> Path:
        """The published register where it is a file.

        Raises:
            SettingsError: it is none.
        """
        if self.database.file is None:
            raise SettingsError(f"KBO_DATABASE: {self.database} is not a file; this needs one")
        return self.database.file

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
    for setting in fields(Settings):
        reader.read[setting.name] = setting.metadata["read"](reader, variable_of(setting.name))
    settings = Settings(**reader.read)
    if settings.database.file == settings.register_file:
        raise SettingsError(
            f"KBO_DATABASE: {settings.database} is the register at work; name another file"
        )
    reader.refuse_unknown()
    return settings


def variable_of(name: str) -> str:
    """The variable of a setting, by the name of its field."""
    return _OTHER_VARIABLES.get(name, f"KBO_{name.upper()}")


def _endings(names: Collection[str]) -> list[str]:
    """The parts of our names in which they differ: all begin alike."""
    return [name.removeprefix("KBO_") for name in names if name.startswith("KBO_")]
