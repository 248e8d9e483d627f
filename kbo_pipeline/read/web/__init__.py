"""The published register over HTTP: an ASGI application for `kbo serve` and the web UI.

`kbo_pipeline.read.web:app` is the application with the settings of the environment, for any server
of ASGI. It writes nothing, and has no state but caches, so any number of processes may serve it.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Makes `app` when it is asked for: settings and FastAPI take their time."""
    if name != "app":
        raise AttributeError(name)
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.read.web.application import guarded

    return guarded(load_settings())
