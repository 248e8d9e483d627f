"""The code server: Dagster's own, but for how run workers begin.

Dagster starts each as a new interpreter, which imports everything: seconds of processor time before
anything is done. Here they are forked from a process that has imported it, and done nothing else.
"""

import multiprocessing
import runpy
import sys
import tempfile
from multiprocessing import forkserver
from typing import Any

from kbo_pipeline.core.settings import ACCOUNT
from kbo_pipeline.operate import insides

IMPORTED = ["kbo_pipeline.definitions", "dagster._cli.api", "dagster._grpc.server"]
"""What the process imports from which run workers are forked: all that they would import.

Not this module: they execute it as their main one, and Python warns of one that is there already.
"""


def env_file_without_account(base_dir: str) -> dict[str, str]:
    """What Dagster puts into the environment at the start, once, from the `.env` in a directory.

    Without the account: we read it from the file each time, so that a change counts at once.
    """
    from dagster._core.secrets.env_file import get_env_var_dict

    found = get_env_var_dict(base_dir)
    return {name: text for name, text in found.items() if name not in ACCOUNT}


def main() -> None:
    """Does what `dagster api grpc` does, with its options."""
    if insides.are_tested():
        _fork_workers()
    sys.argv[1:1] = ["api", "grpc"]
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)


def _fork_workers() -> None:
    # Its socket without a directory of its own: the path of one has 104 bytes at most on macOS.
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = tempfile.gettempdir()
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()
    from dagster._cli import utils
    from dagster._grpc import server

    class CodeServer(server.DagsterApiServer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._mp_ctx: Any = multiprocessing.get_context("forkserver")

    utils.get_env_var_dict = env_file_without_account  # type: ignore[attr-defined]
    server.DagsterApiServer = CodeServer  # type: ignore[misc]  # of which its command makes one


if __name__ == "__main__":
    main()
