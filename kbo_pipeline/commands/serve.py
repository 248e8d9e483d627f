"""`kbo serve`: the published register over HTTP."""

import os
import socket
from contextlib import suppress

import click

from kbo_pipeline.commands.console import leave_out_pandas
from kbo_pipeline.core.errors import KboError, StorageError
from kbo_pipeline.core.settings import load_settings

_LONGEST_HEAD = 32_768  # bytes of the first line and the headers of a request
_MAX_CONNECTIONS = 500
_END_SECONDS = 15


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=3001, show_default=True, help="0 for any."
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes."
)
@click.option("--root-path", default="", help="What a proxy takes off the front of addresses.")
def serve(host: str, port: int, workers: int, root_path: str) -> None:
    """Answer programs and people over HTTP from the published register, until Ctrl-C.

    Nothing is imported or changed. A new publication is taken over by itself. Only this machine is
    answered, unless --host names another address: docs/http.md says what to do then.
    """
    leave_out_pandas()
    import uvicorn

    from kbo_pipeline.read.register import open_as_set

    settings = load_settings()
    try:
        with open_as_set(settings) as register:
            click.echo(f"{register.extracts[0].key}: {register.source}")
    except KboError as error:
        click.echo(f"nothing to show yet: {error}")
    config = uvicorn.Config(
        "kbo_pipeline.read.web:app",
        workers=workers,
        http="h11",  # the other one reads an address of any length
        h11_max_incomplete_event_size=_LONGEST_HEAD,
        ws="none",
        lifespan="off",
        root_path=root_path,
        proxy_headers=False,  # nothing depends on them, so nobody can forge them
        server_header=False,
        access_log=False,  # it would hold whom people look for
        log_level="error",  # else a line for each scan of a port
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    with _listening(host, port) as listening:
        address, port = listening.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        click.echo(f"http://{name}:{port}{root_path}/kbo (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):  # uvicorn has ended in good order, and says so like this
            if workers == 1:
                uvicorn.Server(config).run(sockets=[listening])
            else:
                from uvicorn.supervisors import Multiprocess

                Multiprocess(config, sockets=[listening]).run()


def _listening(host: str, port: int) -> socket.socket:
    """A socket on an address.

    Raises:
        StorageError: there is no such address here, or somebody else listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        raise StorageError(f"{host}:{port}: {reason}; name another by --host and --port") from None
