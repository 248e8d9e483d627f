"""Batches: contiguous ranges of entity numbers, and their keys. No SQL."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import ExtractKey

_KEY = re.compile(r"(.+)-(\d{4,9})")


@dataclass(frozen=True, slots=True, order=True)
class BatchKey:
    """Names one batch of an extract; as text `0141-update-0001`, the key of its partition.

    The order is that of their extracts, and of the batches in them.
    """

    extract: ExtractKey
    number: int

    @classmethod
    def parse(cls, text: str) -> "BatchKey":
        """Reads a key such as `0141-update-0001`.

        Raises:
            ExtractError: the text is no key, or not the one way to write it.
        """
        match = _KEY.fullmatch(text)
        if match:
            key = cls(ExtractKey.parse(match[1]), int(match[2]))
            if key.number > 0 and str(key) == text:
                return key
        raise ExtractError(f"{text[:80]!r} is no batch; expected a key such as 0141-update-0001")

    def __str__(self) -> str:
        return f"{self.extract}-{self.number:04d}"


@dataclass(frozen=True, slots=True)
class Batch:
    """A range of the axis of entity numbers. All ranges of an extract together cover the axis.

    Attributes:
        number: from 1.
        first_number: first entity number in it; None: from the beginning of the axis.
        next_number: first entity number after it; None: to the end of the axis.
    """

    number: int
    first_number: str | None
    next_number: str | None


def span_of(batches: Sequence[Batch]) -> Batch:
    """The range of batches that follow one another, as a batch with the number of the first."""
    return Batch(batches[0].number, batches[0].first_number, batches[-1].next_number)


def batch_target(records: int, batch_rows: int, max_batches: int) -> int:
    """Rows after which a batch is closed, so that there are `max_batches` at most.

    Args:
        records: rows of the extract in all seven tables, deletes and inserts.
        batch_rows: rows a batch holds at least (`KBO_BATCH_ROWS`).
        max_batches: batches at most (`KBO_MAX_BATCHES`).
    """
    return max(batch_rows, -(-records // max_batches))
