"""What others could read: directories, the file with passwords, what goes to PostgreSQL."""

import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from kbo_pipeline.core.env_file import read_env_file
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.repair.findings import Finding

_SECRETS = ("KBO_PASSWORD", "DAGSTER_POSTGRES_URL", "KBO_ALERT_WEBHOOK")
_READ_OR_WRITE, _SEARCH = 0o066, 0o011  # by the group, and by others


def open_secrets(root: Path | None = None) -> str | None:
    """Says in a line that other users can read passwords in the `.env` file; None when not.

    Args:
        root: the directory with the file; the working directory when None.
    """
    file = (root or Path.cwd()) / ".env"
    if not file.is_file() or not stat.S_IMODE(file.stat().st_mode) & _READ_OR_WRITE:
        return None
    try:
        values = read_env_file(file)
    except SettingsError:
        return None  # the command says so itself, if it needs a setting
    names = ", ".join(name for name in _SECRETS if values.get(name))
    return f"{file}: other users can read {names} in it; chmod 600 {file}" if names else None


def check_secrets(settings: Settings) -> Iterator[Finding]:
    """Whether other users can read passwords in the `.env` file."""
    if (line := open_secrets()) is not None:
        text, _, remedy = line.partition("; ")
        yield Finding("warning", "secrets", text, remedy)


def check_privacy(settings: Settings) -> Iterator[Finding]:
    """Whether other users can look into our directories, or write there."""
    root = settings.data_dir
    inside = (
        settings.work_dir,
        settings.staging_dir,
        settings.downloads_dir,
        settings.inbox_dir,
        settings.rejected_dir,
        settings.dagster_home,
    )
    # Closed, it keeps others from all that is inside; open, it is the first to be closed.
    is_passed = root.is_dir() and _mode(root) & _SEARCH and not _mode(root) & _READ_OR_WRITE
    for directory in (root, *inside):
        if directory != root and directory.is_relative_to(root) and not is_passed:
            continue
        if directory.is_dir() and _mode(directory) & _READ_OR_WRITE:
            yield Finding(
                "warning",
                "privacy",
                f"{directory}: other users can look into it (mode {_mode(directory):03o})",
                f"chmod 700 {directory}",
            )


def check_postgres_url(settings: Settings) -> Iterator[Finding]:
    """Whether a PostgreSQL of one's own on another machine is reached without protection."""
    if settings.postgres_url is None:
        return
    from sqlalchemy import make_url  # here, because each command asks for open_secrets

    from kbo_pipeline.operate.processes.postgres import sqlalchemy_url

    url = make_url(sqlalchemy_url(settings.postgres_url))
    asked = url.host or url.query.get("host") or "/"
    hosts = asked.split(",") if isinstance(asked, str) else asked
    far = [host for host in hosts if not _is_here(host)]
    if not far:
        return
    where = ", ".join(far)
    if not (url.password or url.query.get("password") or url.query.get("sslcert")):
        yield Finding(
            "warning",
            "PostgreSQL",
            f"{where}: DAGSTER_POSTGRES_URL has no password, so that anybody who reaches that"
            " server may get in",
            "let the server ask for a password, and write it into DAGSTER_POSTGRES_URL",
        )
    if not url.query.get("sslmode"):
        yield Finding(
            "warning",
            "PostgreSQL",
            f"{where}: DAGSTER_POSTGRES_URL has no sslmode, so that passwords and data may travel"
            " in clear",
            "add ?sslmode=verify-full with sslrootcert=FILE, or whatever suits your network",
        )


def _is_here(host: str) -> bool:
    """Whether a host is a socket's directory, or this machine."""
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
