"""Belgium's company register (KBO Open Data), complete, current and queryable on one machine.

`read_register` opens the published register; the other names are the types of what it gives. They
are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kbo_pipeline.core.errors import ExtractError, KboError, NotFoundError, RegisterError
    from kbo_pipeline.read.register import PublishedRegister, read_register
    from kbo_pipeline.read.types import (
        Activity,
        Address,
        Branch,
        Change,
        Contact,
        Enterprise,
        Entry,
        Establishment,
        HistoryEvent,
        Match,
        Matched,
        Name,
        PublishedExtract,
        Term,
    )

__all__ = [
    "Activity",
    "Address",
    "Branch",
    "Change",
    "Contact",
    "Enterprise",
    "Entry",
    "Establishment",
    "ExtractError",
    "HistoryEvent",
    "KboError",
    "Match",
    "Matched",
    "Name",
    "NotFoundError",
    "PublishedExtract",
    "PublishedRegister",
    "RegisterError",
    "Term",
    "read_register",
]

_OF_REGISTER = ("PublishedRegister", "read_register")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    of_values = "core.errors" if name.endswith("Error") else "read.types"
    module = "read.register" if name in _OF_REGISTER else of_values
    globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
