"""Whether the installed Dagster is the one whose insides we know. No Dagster.

Dagster may change any of them with any version. With another version than the tested one, each part
with a fallback is off, and Dagster does as it does by itself: slower, and right. Parts are imported
where they are called, so that a version without one still runs.
`kbo_pipeline_tests/support/insides.py` lists them.
"""

import functools
import os
from importlib.metadata import version

MADE_FOR = {
    "dagster": "1.13.27",
    "dagster-postgres": "0.29.27",
    "dagster-webserver": "1.13.27",
}
"""The versions with which all of this was tested."""

STOCK = "STOCK_DAGSTER"
"""A variable of tests: set to 1, the installed version counts as another."""


@functools.cache
def are_tested() -> bool:
    """Whether the installed Dagster is the one for which the parts were made."""
    is_installed = all(version(name) == tested for name, tested in MADE_FOR.items())
    return is_installed and os.environ.get(STOCK) != "1"
