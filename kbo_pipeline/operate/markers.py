"""Files that tell every process something: paused, a suspect register, lost extracts."""

from collections.abc import Iterable
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey, key_or_none
from kbo_pipeline.core.files import make_private, replace_atomically
from kbo_pipeline.core.settings import Settings

PAUSED = "paused; kbo resume continues"
"""What everything that waits says of itself."""


def is_paused(settings: Settings) -> bool:
    """Tells whether `kbo pause` holds."""
    return _pause_file(settings).exists()


def pause(settings: Settings) -> bool:
    """Lets nothing new begin from now on; False when that holds already."""
    file = _pause_file(settings)
    make_private(file.parent)
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def resume(settings: Settings) -> bool:
    """Lets everything go on; False when nothing is paused."""
    try:
        _pause_file(settings).unlink()
    except FileNotFoundError:
        return False
    return True


def _pause_file(settings: Settings) -> Path:
    return settings.work_dir / "paused"


def suspect_file(settings: Settings) -> Path:
    """There while somebody has come upon damage that nobody has looked into since."""
    return settings.work_dir / "suspect"


def mark_suspect(settings: Settings) -> None:
    """Notes that something is damaged: `kbo start` looks into it within a minute."""
    suspect_file(settings).touch()


def read_lost(settings: Settings) -> list[ExtractKey]:
    """The extracts that are to be imported again, or to an end, after something was repaired."""
    file = settings.work_dir / "lost"
    if not file.exists():
        return []
    keys = (key_or_none(line) for line in file.read_text().splitlines())
    return sorted({key for key in keys if key is not None})


def add_lost(settings: Settings, keys: Iterable[ExtractKey]) -> None:
    """Notes extracts that are to be imported again, or to an end."""
    _write_lost(settings, {*read_lost(settings), *keys})


def drop_lost(settings: Settings, key: ExtractKey) -> None:
    """Notes that an extract has had its turn."""
    _write_lost(settings, set(read_lost(settings)) - {key})


def _write_lost(settings: Settings, keys: set[ExtractKey]) -> None:
    file = settings.work_dir / "lost"
    if not keys:
        file.unlink(missing_ok=True)
        return
    with replace_atomically(file) as unfinished:
        unfinished.write_text("".join(f"{key}\n" for key in keys))
