"""A process that applies batches of an extract to a shared register, as it is told. No Dagster.

`python -m kbo_pipeline.apply.worker EXTRACT POSITION`, which `apply_pool` starts: each line on its
standard input is a `Task`, answered by one line on standard output. It ends when that input does,
so whoever started it may be killed; and after a task that failed, because what it is connected to
may not answer any more. The next attempt is another process's.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any, NoReturn

import duckdb

from kbo_pipeline.apply.ledger import BatchChange, TableChange
from kbo_pipeline.apply.register import Register, open_register
from kbo_pipeline.core import signals
from kbo_pipeline.core.database import is_damage, is_transient, worker_limits
from kbo_pipeline.core.errors import DamagedError, KboError, RegisterError
from kbo_pipeline.core.extracts import Batch, ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.stage.staged import Staged


@dataclass(frozen=True, slots=True)
class Task:
    """A batch to be applied.

    Attributes:
        batch: its number.
        attempt: which attempt this is.
        first, last: numbers of the batches around it whose changes are to be found with its own.
    """

    batch: int
    attempt: int
    first: int
    last: int


class TransientError(KboError):
    """An attempt failed, and another one may succeed."""

    transient = True


def read_answer(line: bytes) -> BatchChange | KboError:
    """What became of a task: what its batch did, or why it failed."""
    said: Mapping[str, Any] = json.loads(line)
    if "error" in said:
        kinds = {"damage": DamagedError, "passing": TransientError, "lasting": RegisterError}
        return kinds[said["kind"]](said["error"])
    tables = {name: TableChange(**values) for name, values in said["tables"].items()}
    return BatchChange(tables, already_applied=said["already_applied"])


_ANSWERED = (KboError, duckdb.Error, OSError)
"""What is told to whoever asked, as where one works alone; a defect of ours ends with its trace."""


def main() -> None:
    """Answers tasks until there are no more."""
    # They reach all processes of a terminal: the one that started this one decides.
    signals.ignore_further()
    # DuckDB imports it for the first bound value, and needs it for nothing here.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    key, position = ExtractKey.parse(sys.argv[1]), int(sys.argv[2])
    tasks: SimpleQueue[Task] = SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    try:
        _work(key, position, tasks)
    except _ANSWERED as error:
        _end_with(error)


def _listen(tasks: "SimpleQueue[Task]") -> None:
    for line in sys.stdin:
        tasks.put(Task(**json.loads(line)))
    os._exit(0)  # also in the middle of a batch: its transaction is not committed then


def _work(key: ExtractKey, position: int, tasks: "SimpleQueue[Task]") -> None:
    settings = load_settings()
    with (
        duckdb.connect(":memory:", config=dict(worker_limits(settings, position))) as connection,
        open_register(connection, settings.register) as register,
        register.taking_part(settings.staging_dir, key) as staged,
    ):
        batches = {batch.number: batch for batch in staged.batches}
        found = range(0)
        while True:
            task = tasks.get()
            try:
                found = _find(register, staged, batches, task, found)
                change = register.apply(staged, batches[task.batch], attempt=task.attempt)
            except _ANSWERED as error:
                _end_with(error)
            _answer(asdict(change))


def _find(
    register: Register, staged: Staged, batches: Mapping[int, Batch], task: Task, found: range
) -> range:
    """Finds what the batches around a task change, unless that is done or it is applied already.

    Returns:
        The numbers of the batches whose changes are found.
    """
    is_applied = register.ledger.applied_change(staged.extract.key, task.batch) is not None
    if task.batch in found or is_applied:
        return found
    found = range(task.first, task.last + 1)
    register.find(staged, [batches[number] for number in found])
    return found


def _answer(said: Mapping[str, Any]) -> None:
    print(json.dumps(said), flush=True)


def _end_with(error: Exception) -> NoReturn:
    """Answers with an error and ends, without a word to what may not answer any more."""
    kind = "damage" if is_damage(error) else "passing" if is_transient(error) else "lasting"
    _answer({"error": str(error).split("\n", 1)[0], "kind": kind})
    os._exit(1)


if __name__ == "__main__":
    main()
