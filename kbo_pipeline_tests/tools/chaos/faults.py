"""What a process does to itself at a named point: it dies there, or is lied to."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POINTS = (
    "mid download",
    "before the rename",
    "after the rename",
    "mid staging",
    "inside a batch",
    "after a commit",
    "in the checkpoint",
    "in the copy",
    "before the folder fsync",
    "in clean-up",
)
"""Where a process kills itself, all by SIGKILL."""

NEAR_COMMIT = "near a commit"
"""A second process kills it, `delay` seconds after it has begun to commit."""

LIES = "told that it failed"
"""One of a hundred database calls raises after it has done what it was asked."""

MADE_UP = "made up: "
"""Stands in what a lie says, so that it is told from a failure."""

ROOM_TAKEN = "room is taken"
"""Somebody else fills the disk after it was found large enough."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: one of `POINTS`, `NEAR_COMMIT`, `LIES`, `ROOM_TAKEN` or `none`.
        at: the how manieth time that the point is passed.
        delay: seconds; see `NEAR_COMMIT`, and how long into a checkpoint.
    """

    name: str
    at: int = 1
    delay: float = 0.0


def install(fault: Fault, chance: random.Random) -> None:
    """Puts a fault in place, in this process."""
    if fault.name == "none":
        return
    if fault.name == LIES:
        _lie(chance)
        return
    if fault.name == ROOM_TAKEN:
        from kbo_pipeline.core import disk_space

        disk_space._check = lambda what, needs: None
        return
    kill = _remote_killer(fault.delay) if fault.name in (NEAR_COMMIT, "in the checkpoint") else _die
    count = 0

    def passed() -> None:
        nonlocal count
        count += 1
        if count == fault.at:
            kill()

    _INSTALLERS[fault.name](passed)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _remote_killer(delay: float) -> Callable[[], None]:
    """A process of its own that kills this one, so that it can be in the middle of something."""
    read_end, write_end = os.pipe()
    victim = os.getpid()
    if os.fork() == 0:
        os.close(write_end)
        if os.read(read_end, 1):
            time.sleep(delay)
            os.kill(victim, signal.SIGKILL)
        os._exit(0)
    os.close(read_end)

    def kill() -> None:
        os.write(write_end, b"x")

    return kill


def _around(
    owner: Any,
    name: str,
    *,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args)
        result = real(*args, **kwargs)
        if after is not None:
            after(*args)
        return result

    _replace(owner, name, wrapped)


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _mid_download(passed: Callable[[], None]) -> None:
    from kbo_pipeline.fetch import http

    http._CHUNK = 512  # the ZIPs are small
    real = http.Web.chunks

    def chunks(self: Any, response: Any) -> Any:
        for chunk in real(self, response):
            yield chunk
            if response.headers.get("Content-Type") == "application/zip":
                passed()

    _replace(http.Web, "chunks", chunks)


def _rename(when: str) -> Callable[[Callable[[], None]], None]:
    def install(passed: Callable[[], None]) -> None:
        _around(os, "replace", **{when: lambda *_: passed()})

    return install


def _mid_staging(passed: Callable[[], None]) -> None:
    from kbo_pipeline.stage import staging

    _around(staging, "_count", before=lambda *_: passed())


def _inside_batch(passed: Callable[[], None]) -> None:
    from kbo_pipeline.apply.register import Register

    _around(Register, "_change", after=lambda *_: passed())


def _statement(when: str, text: str) -> Callable[[Callable[[], None]], None]:
    def install(passed: Callable[[], None]) -> None:
        from kbo_pipeline.core.database import Database

        def look(_: Any, statement: str, *rest: Any) -> None:
            if statement.startswith(text):
                passed()

        _around(Database, "execute", **{when: look})

    return install


def _in_copy(passed: Callable[[], None]) -> None:
    real = shutil.copyfile

    def copy(source: Path, target: Path) -> Any:
        with Path(source).open("rb") as whole, Path(target).open("wb") as part:
            part.write(whole.read(Path(source).stat().st_size // 2))
        passed()
        return real(source, target)

    _replace(shutil, "copyfile", copy)


def _before_folder_fsync(passed: Callable[[], None]) -> None:
    from kbo_pipeline.core import files

    _around(files, "_sync", before=lambda path: passed() if path.is_dir() else None)


def _in_clean_up(passed: Callable[[], None]) -> None:
    _around(Path, "unlink", before=lambda *_: passed())


_INSTALLERS: dict[str, Callable[[Callable[[], None]], None]] = {
    "mid download": _mid_download,
    "before the rename": _rename("before"),
    "after the rename": _rename("after"),
    "mid staging": _mid_staging,
    "inside a batch": _inside_batch,
    "after a commit": _statement("after", "COMMIT"),
    "in the checkpoint": _statement("before", "FORCE CHECKPOINT"),
    "in the copy": _in_copy,
    "before the folder fsync": _before_folder_fsync,
    "in clean-up": _in_clean_up,
    NEAR_COMMIT: _statement("before", "COMMIT"),
}


def _lie(chance: random.Random) -> None:
    import duckdb

    from kbo_pipeline.core.database import Database

    def perhaps(_: Any, statement: str, *rest: Any) -> None:
        if chance.random() < 0.01:
            raise duckdb.IOException(f"{MADE_UP}{statement[:40]} has worked")

    _around(Database, "execute", after=perhaps)
