"""All rows of the plan."""

from dataclasses import replace

from kbo_pipeline_tests.tools.chaos.absences import absence_rows
from kbo_pipeline_tests.tools.chaos.commands import command_rows
from kbo_pipeline_tests.tools.chaos.damage import damage_rows
from kbo_pipeline_tests.tools.chaos.deaths import death_rows
from kbo_pipeline_tests.tools.chaos.followers import follower_rows
from kbo_pipeline_tests.tools.chaos.kills import engine_rows
from kbo_pipeline_tests.tools.chaos.outcomes import Row
from kbo_pipeline_tests.tools.chaos.races import race_rows


def rows(*, short: bool = False, times: int | None = None) -> list[Row]:
    """The rows, in the order of the table.

    Args:
        short: few repetitions, and of those with a whole stack one of the first row only.
        times: repetitions of each row, if it has more than that.
    """
    found = [*engine_rows(short=short), *follower_rows(short=short), *damage_rows(short=short)]
    stack = [*death_rows(), *absence_rows(), *command_rows(), *race_rows()]
    if short:
        stack = [replace(row, times=1) for row in stack[:1]]
    found += [replace(row, has_stack=True) for row in stack]
    if times is not None:
        found = [replace(row, times=min(times, row.times)) for row in found]
    return found
