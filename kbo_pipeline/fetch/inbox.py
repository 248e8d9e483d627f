"""The inbox: what people drop there is checked, claimed, and ends in done/ or rejected/.

Nothing is remembered: the directories and the times of the files say what is due. A ZIP is claimed
by its rename into processing/, which one process alone can win.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kbo_pipeline.core.errors import ExtractError, StorageError
from kbo_pipeline.core.extracts import Extract, ExtractKey, key_in_file_name
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.text import printable
from kbo_pipeline.fetch.archive import damage, read_extract, read_key

SETTLED_SECONDS = 2.0
"""A file that did not change for so long is taken for whole."""

LONGEST_WAIT_SECONDS = 60.0
"""How long a settled file waits at most for others that are still coming."""

COPYING_SECONDS = 30.0
"""A file that is no sound ZIP may be one that is still being copied, for so long."""

_LEFTOVER_SECONDS = 60.0
_LONGEST_NAME = 200  # bytes; a file system takes 255, and " (2)" and ".txt" may come to it

_Identity = tuple[int, int, int, int]  # device, inode, size, mtime


@dataclass(frozen=True, slots=True)
class InboxFile:
    """A ZIP in the inbox or in processing/, as it was seen.

    Attributes:
        path: where it lies.
        changed_at_ns: when it was last written or renamed, in nanoseconds of the epoch. That is
            its ctime: copying programs set mtime back to that of the original.
        identity: stays the same when it is renamed, and does not when it is written.
    """

    path: Path
    changed_at_ns: int
    identity: _Identity

    @property
    def name(self) -> str:
        """Its name, as it can be shown."""
        return printable(self.path.name)

    @property
    def changed_at(self) -> float:
        """When it was last written or renamed, in seconds of the epoch."""
        return self.changed_at_ns / 1e9

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.identity[2]

    def is_unchanged(self) -> bool:
        """Tells whether it still lies there as it was seen."""
        try:
            return _identity(self.path.lstat()) == self.identity
        except OSError:
            return False


class Inbox:
    """A directory that ZIPs are dropped into, with processing/, done/ and rejected/ below it."""

    def __init__(self, directory: Path) -> None:
        """Makes nothing yet."""
        self.directory = directory
        self.processing_dir = directory / "processing"
        self.done_dir = directory / "done"
        self.rejected_dir = directory / "rejected"
        self._checked: dict[_Identity, Extract | str] = {}

    def prepare(self) -> None:
        """Makes the directories.

        Raises:
            StorageError: they cannot be made.
        """
        for directory in (self.processing_dir, self.done_dir, self.rejected_dir):
            try:
                make_private(directory)
            except OSError as error:
                raise StorageError(
                    f"{directory}: cannot be made ({error.strerror}); see what is there"
                ) from None

    def now(self) -> float:
        """The time by the clock that stamps the files: a network disk has its own."""
        clock = self.processing_dir / ".clock"
        clock.touch()
        return clock.stat().st_ctime

    def look(self, now: float) -> tuple[list[InboxFile], list[InboxFile]]:
        """What lies in the inbox, and what is claimed; both in the order of their last change."""
        arrived, claimed = _zips_in(self.directory), []
        for dropped in _zips_in(self.processing_dir):
            if dropped.size:
                claimed.append(dropped)
            elif now - dropped.changed_at > _LEFTOVER_SECONDS:
                dropped.path.unlink(missing_ok=True)  # a name that a process took, and died
        there = {dropped.identity for dropped in (*arrived, *claimed)}
        self._checked = {i: verdict for i, verdict in self._checked.items() if i in there}
        return arrived, claimed

    def check(self, dropped: InboxFile) -> Extract:
        """Reads the whole ZIP: what it is, and whether it is sound; once, however often called.

        Raises:
            ExtractError: it is no sound extract. A file that has changed meanwhile
                (`is_unchanged`) may yet become one.
        """
        return self._once(dropped, is_sound=False)

    def read(self, dropped: InboxFile) -> Extract:
        """What a claimed ZIP is; it was checked before.

        Raises:
            ExtractError: it is no extract.
        """
        return self._once(dropped, is_sound=True)

    def claim(self, dropped: InboxFile) -> InboxFile | None:
        """Takes a ZIP into processing/; None when another process has taken it, or it changed.

        Raises:
            OSError: it cannot be moved.
        """
        if not dropped.is_unchanged():
            return None
        target = _move(dropped.path, self.processing_dir)
        return None if target is None else _seen(target)

    def stamp(self, claimed: InboxFile) -> InboxFile:
        """Makes now the time of a claimed ZIP's last change; its content and mtime stay.

        Raises:
            OSError: it is gone.
        """
        stat = claimed.path.stat()
        try:
            os.utime(claimed.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            return _seen(claimed.path)
        except PermissionError:  # it belongs to another user: a new name has the same effect
            return _seen(_move(claimed.path, self.processing_dir) or claimed.path)

    def finish(self, dropped: InboxFile, note: str | None = None) -> bool:
        """Moves a ZIP to done/, with a note beside it; False when another process has moved it.

        Raises:
            OSError: it cannot be moved.
        """
        return _move(dropped.path, self.done_dir, note) is not None

    def reject(self, dropped: InboxFile, reason: str, advice: str) -> bool:
        """Moves a ZIP to rejected/, with a text beside it; False when another process has moved it.

        Raises:
            OSError: it cannot be moved.
        """
        text = f"{printable(reason)}\n{printable(advice)}"
        return _move(dropped.path, self.rejected_dir, text) is not None

    def _once(self, dropped: InboxFile, *, is_sound: bool) -> Extract:
        verdict = self._checked.get(dropped.identity)
        if verdict is None:
            verdict = _check(dropped.path, is_sound=is_sound)
            if dropped.is_unchanged():
                self._checked[dropped.identity] = verdict
            else:
                verdict = f"{dropped.name}: it has changed while it was read"
        if isinstance(verdict, str):
            raise ExtractError(verdict)
        return verdict


def settled(arrived: Sequence[InboxFile], now: float) -> list[InboxFile]:
    """The files that may be taken now: those that did not change for a while.

    While others still come, none may, or a Full of a high number would overtake what it makes
    superfluous; but none waits for ever.
    """
    ready = [d for d in arrived if now - d.changed_at >= SETTLED_SECONDS]
    waited = now - min((d.changed_at for d in ready), default=now)
    return ready if len(ready) == len(arrived) or waited >= LONGEST_WAIT_SECONDS else []


def in_number_order(dropped: Sequence[InboxFile]) -> list[InboxFile]:
    """Puts ZIPs in the order in which they are imported; those that are no extract come last."""
    keys = {one: _key_of(one.path) for one in dropped}
    named = sorted(dropped, key=lambda one: one.name)
    extracts = [(key, one) for one in named if (key := keys[one]) is not None]
    extracts.sort(key=lambda item: item[0])
    return [*(one for _, one in extracts), *(one for one in named if keys[one] is None)]


def _key_of(file: Path) -> ExtractKey | None:
    key = key_in_file_name(file.name)
    if key is not None:
        return key
    try:
        return read_key(file)
    except ExtractError:
        return None


def _check(file: Path, *, is_sound: bool) -> Extract | str:
    try:
        read_key(file)
        problem = None if is_sound else damage(file)
        if problem is None:
            return read_extract(file)
    except ExtractError as error:
        return printable(str(error))
    return printable(f"{file.name}: damaged ({problem}); fetch the ZIP again")


def _zips_in(directory: Path) -> list[InboxFile]:
    """The ZIPs, the first changed first; no directories, no links, nothing hidden."""
    zips = []
    with os.scandir(directory) as entries:
        for entry in entries:
            is_zip = entry.name.lower().endswith(".zip") and not entry.name.startswith(".")
            try:
                if is_zip and entry.is_file(follow_symlinks=False):
                    zips.append(_seen(directory / entry.name))
            except FileNotFoundError:
                continue  # moved away since the directory was read
    return sorted(zips, key=lambda dropped: (dropped.changed_at_ns, dropped.path.name))


def _seen(file: Path) -> InboxFile:
    stat = file.lstat()
    return InboxFile(file, stat.st_ctime_ns, _identity(stat))


def _identity(stat: os.stat_result) -> _Identity:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _move(source: Path, directory: Path, text: str | None = None) -> Path | None:
    """Moves a file to a name that is free there, with a text beside it if there is one.

    Returns where it lies now; None when it was gone.
    """
    for number in itertools.count(1):
        target = directory / _numbered(printable(source.name), number)
        beside = directory / f"{target.name}.txt"
        made: list[Path] = []
        try:
            target.touch(exist_ok=False)  # takes the name: a rename would replace another's file
            made.append(target)
            if text is not None:
                with beside.open("x", encoding="utf-8") as out:
                    made.append(beside)
                    out.write(f"{text}\n")
            os.rename(source, target)
        except OSError as error:
            for file in made:
                file.unlink(missing_ok=True)
            if made and isinstance(error, FileNotFoundError):
                return None
            if not isinstance(error, FileExistsError):
                raise
        else:
            return target
    raise AssertionError("unreachable: some name is free")


def _numbered(name: str, number: int) -> str:
    stem, suffix = os.path.splitext(name)
    stem = stem.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{stem} ({number}){suffix}" if number > 1 else f"{stem}{suffix}"
