"""`kbo pause` and `kbo resume`: a file says that nothing new is to begin, whatever is restarted."""

from pathlib import Path

from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings

PAUSED = "paused; kbo resume goes on"
"""What everything that waits says of itself."""


def is_paused(settings: Settings) -> bool:
    """Tells whether `kbo pause` holds."""
    return _file(settings).exists()


def pause(settings: Settings) -> bool:
    """Lets nothing new begin from now on; False when that holds already."""
    file = _file(settings)
    make_private(file.parent)
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def resume(settings: Settings) -> bool:
    """Lets everything go on; False when nothing is paused."""
    try:
        _file(settings).unlink()
    except FileNotFoundError:
        return False
    return True


def _file(settings: Settings) -> Path:
    return settings.work_dir / "paused"
