"""The environment: the `.env` file, hosts that are asked without a proxy, the account of S3.

The `.env` file is read strictly: what would be dropped or cut in silence is refused by its line. No
value is ever in a message: it may be a password.
"""

import io
import ipaddress
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from kbo_pipeline.core.errors import SettingsError

OURS = ("KBO_", "DAGSTER_")
"""How the names of our variables begin."""

_READ = (*OURS, "AWS_")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTE_IT = "put the value between single quotes, or its comment on a line of its own"


def read_env_file(file: Path) -> dict[str, str]:
    """The variables of a `.env` file; none where there is no file, or a directory of that name.

    What other programs read from it may look as they like, as long as each line can be read.

    Raises:
        SettingsError: it cannot be read; or a line cannot, or a value of ours would be cut, or
            a name differs from one of ours in its letters' case. Names the file and the line.
    """
    text = _text(file)
    if text is None:
        return {}
    from dotenv.parser import parse_stream  # only where there is a file: it costs start-up time

    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        original = binding.original.string
        blank = len(original) - len(original.lstrip())
        line = binding.original.line + len(re.findall(r"\r\n|\n|\r", original[:blank]))
        where = f"{file}: line {line}"
        if binding.error or (binding.key is not None and binding.value is None):
            raise SettingsError(
                f"{where} cannot be read: expected NAME=value, with a value that has quotes or"
                " line breaks in it between single quotes, or # before a comment"
            )
        if binding.key is None or binding.value is None:
            continue  # a comment, or the end
        _check(where, binding.key, binding.value, original.strip())
        values[binding.key] = binding.value
    return values


def _check(where: str, name: str, value: str, written: str) -> None:
    """Refuses what is meant for us and would be taken for something else."""
    upper = name.upper()
    if "KBO" in upper and not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: its name may hold only letters, digits and _")
    if name != upper and upper.startswith(OURS):
        raise SettingsError(f"{where}: {name}: names are in capitals: {upper}")
    if not name.startswith(_READ):
        return
    text = written.partition("=")[2]
    if text.lstrip()[:1] not in ("'", '"') and re.search(r"\s#", text):
        raise SettingsError(f"{where}: the value of {name} would end before the #; {_QUOTE_IT}")
    if re.search(r"[\r\n]", value):
        raise SettingsError(f"{where}: the value of {name} goes on in the next line; end its quote")


def _text(file: Path) -> str | None:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):  # some call a directory of Python packages so
            return None
        if stat.S_ISFIFO(mode):  # to open it would wait for who writes there
            raise SettingsError(f"{file}: a pipe; a file is expected")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not file.is_symlink():
            return None
        raise SettingsError(f"{file}: leads to a file that is not there") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None


_SECRETS = ("KBO_PASSWORD", "DAGSTER_POSTGRES_URL", "KBO_ALERT_WEBHOOK")
_READ_OR_WRITE = 0o066  # by the group, and by others


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


def is_this_machine(host: str | None) -> bool:
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

    return is_this_machine(host) or bool(should_bypass_proxies(f"http://{host}", no_proxy=None))


@dataclass(frozen=True, slots=True)
class S3:
    """How an S3 server is reached.

    Attributes:
        key, secret: of the account (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).
        token: of a session (`AWS_SESSION_TOKEN`); None for an account that lasts.
        region: where the bucket is (`AWS_REGION`).
        endpoint: the address of a server that is not Amazon's (`AWS_ENDPOINT_URL`); None for that.
    """

    key: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)
    region: str
    endpoint: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that pass this on to another process."""
        values = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_SESSION_TOKEN": self.token,
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
        }
        return {name: value for name, value in values.items() if value is not None}
