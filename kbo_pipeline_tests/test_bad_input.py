"""All faulty input of docs/bad-input.md: refused as written there, and nothing has changed."""

from collections.abc import Iterator

import pytest

from kbo_pipeline_tests.bad_input.cases import Case
from kbo_pipeline_tests.bad_input.feeding import GROUPS, Bench, page
from kbo_pipeline_tests.pipeline import REPOSITORY

PAGE = (REPOSITORY / "docs" / "bad-input.md").read_text()
CASES = [(group, case) for group, cases in GROUPS.items() for case in cases()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bad")) as bench:
        yield bench


@pytest.mark.long
@pytest.mark.parametrize(("group", "case"), CASES, ids=[case.name for _, case in CASES])
def test_it_is_refused_as_written_and_changes_nothing(group: str, case: Case, bench: Bench) -> None:
    result = bench.feed(case)
    assert result.problems == ()
    assert page([(group, case, result.error)]).splitlines()[-1] in PAGE.splitlines()


def test_the_page_names_every_case_and_no_other() -> None:
    names = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| ")]
    lines = page([(group, case, "") for group, case in CASES]).splitlines()
    assert names == [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert len(CASES) >= 120
