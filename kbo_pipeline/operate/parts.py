"""The parts of `kbo start`, which can run on several hosts, and the addresses between them."""

import errno
import socket
from typing import Literal

from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.settings import Settings

Part = Literal["code", "daemon", "web"]
"""What of `kbo start` can run alone."""

CHILDREN: dict[Part | None, tuple[str, ...]] = {
    None: ("code", "daemon", "webserver"),
    "code": ("code",),
    "daemon": ("daemon",),
    "web": ("webserver",),
}
"""The processes that are started for a part, or for all of it, in this order."""

_ANY_ADDRESS = "0.0.0.0"


def suffix(part: Part | None) -> str:
    """Of the names of what each part has of its own; parts may share a data directory."""
    return "" if part in (None, "code") else f"-{part}"


def check_part(settings: Settings, part: Part | None) -> None:
    """Checks that a part can run with these settings, or all of it.

    Raises:
        SettingsError: it cannot; names the setting.
    """
    if part is None and settings.code_host is not None:
        raise SettingsError(
            "KBO_CODE_HOST: is for processes on several hosts; unset it, or say which part is to"
            " run here: kbo start --only code, daemon or web"
        )
    if part is not None and settings.code_host is None:
        raise SettingsError(
            f"KBO_CODE_HOST: not set; kbo start --only {part} needs the address of the code"
            " location's host"
        )
    if part is not None and settings.postgres_url is None:
        raise SettingsError(
            f"DAGSTER_POSTGRES_URL: not set; kbo start --only {part} needs a PostgreSQL that all"
            " hosts reach, the embedded one is for one machine"
        )


def reached(host: str) -> str:
    """The address by which this machine reaches what listens on an address of its own."""
    return "127.0.0.1" if host == _ANY_ADDRESS else host


def ui_address(settings: Settings) -> str:
    """Where this machine reaches its web UI."""
    return f"http://{reached(settings.ui_host)}:{settings.ui_port}"


def is_open(host: str, port: int) -> bool:
    """Tells whether somebody listens at a TCP port."""
    try:
        with socket.create_connection((reached(host), port), timeout=2):
            return True
    except OSError:
        return False


def check_port(setting: str, host: str, port: int) -> None:
    """Checks that a port of this machine is free.

    Raises:
        SettingsError: it is not, or is none of ours; names the setting.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror:
            reason = f"there is no host {host}; name an address of this machine"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} is taken; stop what uses it or set another"
            else:
                reason = f"cannot listen on {host}:{port}: {error.strerror}"
        else:
            return
    raise SettingsError(f"{setting}: {reason}")
