"""PostgreSQL servers for tests: embedded ones, and one that asks for a password."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2

from kbo_pipeline.operate.processes import postgres

PASSWORD = "p@ss:w/ord%1"


@contextmanager
def embedded(directory: Path) -> Iterator[Path]:
    """Yields `directory` for an embedded server; whatever still runs in it at the end is killed."""
    directory = directory.resolve()
    try:
        yield directory
    finally:
        if (found := server(directory)) is not None:
            found.kill()


def server(directory: Path) -> psutil.Process | None:
    """Returns the server that runs in `directory`."""
    try:
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        found = psutil.Process(int(lines[0]))
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return None if found.status() == psutil.STATUS_ZOMBIE else found


def kill_and_wait(directory: Path) -> None:
    killed = server(directory)
    assert killed is not None
    killed.kill()
    while server(directory) is not None:
        time.sleep(0.01)


@contextmanager
def password_server(
    directory: Path, host: str = "127.0.0.1", namespace: str | None = None
) -> Iterator[str]:
    """Runs a PostgreSQL server that asks for a password; yields its URL.

    Args:
        directory: is made for it.
        host: the address on which it listens.
        namespace: of the network, which root can choose.
    """
    directory.mkdir()
    data, secret = directory / "data", directory / "password"
    secret.write_text(PASSWORD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        uid, gid = postgres._Server(directory)._owner()
        account = {"user": uid, "group": gid, "extra_groups": []}
        os.chown(directory, uid, gid)
        os.chown(secret, uid, gid)
        for path in (directory, postgres._programs() / "postgres"):
            postgres._let_through(path, uid)
    programs = postgres._programs()
    initdb: list[Any] = [programs / "initdb", "-D", data, "-U", "dagster", "--auth=scram-sha-256"]
    subprocess.run(
        [*initdb, f"--pwfile={secret}", "--encoding=UTF8", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        **account,
    )
    options = ("-c", f"port={port}", "-c", "unix_socket_directories=", "-c", "fsync=off")
    entering: list[Any] = []
    if namespace is not None:  # only root can enter it, who then becomes the server's user
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\n")
        entering = ["ip", "netns", "exec", namespace, "setpriv", "--clear-groups"]
        entering += [f"--reuid={account['user']}", f"--regid={account['group']}"]
    running = subprocess.Popen(
        [*entering, programs / "postgres", "-D", data, "-h", host, *options],
        stderr=subprocess.DEVNULL,
        **({} if entering else account),
    )
    try:
        url = f"postgresql://dagster:{quote(PASSWORD, safe='')}@{host}:{port}/postgres"
        for attempts_left in reversed(range(200)):
            try:
                connect(url).close()
                break
            except psycopg2.OperationalError:
                if not attempts_left:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(timeout=60)


def leave(directory: Path) -> None:
    """Does for one server what the end of this process does for all."""
    postgres._servers.pop(directory).leave()


def connect(url: str) -> psycopg2.extensions.connection:
    return psycopg2.connect(url.replace("+psycopg2", ""))
