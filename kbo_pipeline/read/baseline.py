"""What number of rows is usual, by those of the days before. No Dagster, no SQL."""

import math
import statistics
from collections.abc import Sequence

LEAST_PAST = 8
"""So many numbers must be known before another can be unusual."""

FACTOR = 3.0
"""An unusual number is so many times the median, or the median so many times the number."""

LEAST_ROWS = 50
"""It is so far from the median."""

SPREADS = 4.0
"""It is so many times the usual spread away from the median."""


def is_anomalous(count: int, past: Sequence[int]) -> bool:
    """Tells whether a number is far from what it was, by median and spread of the logarithms.

    One of 30 days may bring a thousand times as much, and must not make the next one usual. So
    the spread is the median distance from the median, which few days cannot move; logarithms,
    because the numbers grow by factors.
    """
    if len(past) < LEAST_PAST:
        return False
    logarithms = [math.log1p(number) for number in past]
    median = statistics.median(logarithms)
    spread = 1.4826 * statistics.median(abs(number - median) for number in logarithms)
    distance = abs(math.log1p(count) - median)
    return (
        distance > max(SPREADS * spread, math.log(FACTOR))
        and abs(count - math.expm1(median)) >= LEAST_ROWS
    )
