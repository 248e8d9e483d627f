"""The code server: Dagster's own, but for how run workers begin.

Dagster starts each as a new interpreter, which imports everything: seconds of processor time before
anything is done. Here they are forked from a process that has imported it, and done nothing else.
"""

import multiprocessing
import tempfile
from multiprocessing import forkserver
from typing import Any

from dagster._cli import utils
from dagster._cli.api import grpc_command
from dagster._core.secrets.env_file import get_env_var_dict
from dagster._grpc import server

from kbo_pipeline.core.settings import ACCOUNT

IMPORTED = ["kbo_pipeline.definitions", "dagster._cli.api", "dagster._grpc.server"]
"""What the process imports from which run workers are forked: all that they would import.

Not this module: they execute it as their main one, and Python warns of one that is there already.
"""


class CodeServer(server.DagsterApiServer):
    """Dagster's code server, whose run workers are forked."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Takes what Dagster gives it."""
        super().__init__(*arguments, **named)
        self._mp_ctx: Any = multiprocessing.get_context("forkserver")


def env_file_without_account(base_dir: str) -> dict[str, str]:
    """What Dagster puts into the environment at the start, once, from the `.env` in a directory.

    Without the account: we read it from the file each time, so that a change counts at once.
    """
    found = get_env_var_dict(base_dir)
    return {name: text for name, text in found.items() if name not in ACCOUNT}


def main() -> None:
    """Does what `dagster api grpc` does, with its options."""
    # Its socket without a directory of its own: the path of one has 104 bytes at most on macOS.
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = tempfile.gettempdir()
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()
    utils.get_env_var_dict = env_file_without_account  # type: ignore[attr-defined]
    server.DagsterApiServer = CodeServer  # type: ignore[misc]  # of which its command makes one
    grpc_command()


if __name__ == "__main__":
    main()
