"""Profiles that a register keeps, compared with what all its rows say."""

from collections.abc import Iterator

import pytest

from kbo_pipeline.core.tables import ENTERPRISE
from kbo_pipeline.publish import copy
from kbo_pipeline.publish.copy import has_profiles
from kbo_pipeline.read.views import PROFILE, view_queries
from kbo_pipeline_tests.support.core import Core, sorted_rows


@pytest.fixture(scope="module", autouse=True)
def small_registers_keep_them() -> Iterator[None]:
    """For a test module that imports it: made-up registers are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "MANY_ENTERPRISES", 0)
        yield


def check_profiles(core: Core, *, kept: bool = True) -> None:
    """Makes sure that readers have profiles in a table, if kept, and that they are right."""
    if core.shared is None and core.is_published:
        assert has_profiles(core.database, core.privacy) is kept
    with core.read() as reader:
        for name in (ENTERPRISE.name, PROFILE):
            shown = reader.execute(f'FROM "current".{name}').fetchall()
            right = reader.execute(view_queries(core.privacy)[name]).fetchall()
            assert sorted_rows(shown) == sorted_rows(right), name
