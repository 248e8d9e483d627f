"""What an extract changes in the register: computed before anything is written.

Rows by which they differ are put aside in temporary tables, for all batches at once. No batch
changes anything outside its own range, so what was computed for one stays right whatever happens to
others.
"""

from dataclasses import dataclass

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import Extract
from kbo_pipeline.core.progress import ProgressReport, not_reported, steps_of
from kbo_pipeline.core.tables import TABLES, Table
from kbo_pipeline.stage.staged import Staged, has_all_rows


@dataclass(frozen=True, slots=True)
class Difference:
    """How the rows of a table differ in a range.

    Attributes:
        to_close: row versions to be closed.
        to_open: row versions to be opened.
        opened: rows that were opened before, for the same extract.
    """

    to_close: int = 0
    to_open: int = 0
    opened: int = 0


@dataclass(frozen=True, slots=True)
class Incomplete:
    """How many rows of a table were staged in a range, and how many are there."""

    table: Table
    expected: int
    there: int


class Differences:
    """Finds and counts what an extract changes in the register that is the default database."""

    def __init__(self, database: Database, *, is_shared: bool) -> None:
        """Takes a connection with the register, and whether that is a shared one."""
        self._database = database
        self._current_rows = register_sql.unnoted_rows if is_shared else register_sql.current_rows

    def find_incomplete(self, staged: Staged) -> dict[int, Incomplete]:
        """Batches of which the staging file does not hold what was staged, by number."""
        if has_all_rows(self._database.connection, staged):
            return {}
        rows = self._database.execute(register_sql.COUNT_STAGED_BY_BATCH).fetchall()
        counted = {(table, batch): count for table, batch, count in rows}
        key, found = staged.extract.key, {}
        for batch in staged.batches:
            for table in TABLES:
                place = (table.name, batch.number)
                expected = sum(staged.records.get((*place, o), 0) for o in key.operations)
                there = counted.get(place, 0)
                if there != expected:
                    found[batch.number] = Incomplete(table, expected, there)
        return found

    def find(
        self, staged: Staged, *, is_adopted: bool = False, report: ProgressReport = not_reported
    ) -> dict[tuple[str, int], Difference]:
        """Puts aside what an extract changes in the seven tables.

        Args:
            staged: the extract, attached as `staging`.
            is_adopted: the register was made from the extract just now.
            report: takes how much is done.

        Returns:
            How much it is, by table name and batch; without those in which it is nothing.
        """
        sizes = [staged.table_records(table) + 1.0 for table in TABLES]
        for table, report_table in zip(TABLES, steps_of(report, sizes), strict=True):
            report_table(0.0, f"comparing {table.name} with the register")
            self.find_in(
                table,
                staged.extract,
                is_whole=staged.extract.key.type == "full",
                is_adopted=is_adopted,
            )
        return self._count(staged, is_adopted=is_adopted)

    def find_in(
        self,
        table: Table,
        extract: Extract,
        *,
        is_whole: bool,
        is_adopted: bool = False,
    ) -> None:
        """Puts aside the rows of a table by which an extract and the register differ.

        Args:
            table: the table.
            extract: the extract, attached as `staging`.
            is_whole: it holds all rows of the table.
            is_adopted: the register was made from it just now.
        """
        kind, current = extract.key.type, self._current_rows(table)
        if is_adopted:
            self._database.execute(register_sql.no_keys(table))
        else:
            self._database.execute(register_sql.find_keys(table, kind, current, is_whole=is_whole))
        for statement in register_sql.find_changes(table, kind, current, is_whole=is_whole):
            self._database.execute(statement)

    def count_in(self, table: Table) -> Difference:
        """How much is put aside of a table."""
        row = self._database.execute(register_sql.count_changes(table)).fetchall()[0]
        return Difference(*row)

    def _count(self, staged: Staged, *, is_adopted: bool) -> dict[tuple[str, int], Difference]:
        database, key = self._database, staged.extract.key
        opened: dict[tuple[str, int], int] = {}
        if is_adopted:
            opened = {
                (table, batch): count - staged.superseded.get((table, batch), 0)
                for (table, batch, _), count in staged.records.items()
            }
        elif key.type == "full":  # it may have been adopted before a crash
            rows = database.execute(register_sql.COUNT_OPENED_BY_BATCH, number=key.number)
            opened = {(table, batch): count for table, batch, count in rows.fetchall()}
        differences = {place: Difference(opened=count) for place, count in opened.items()}
        counted = database.execute(register_sql.COUNT_CHANGES_BY_BATCH).fetchall()
        for table, batch, to_close, to_open in counted:
            differences[table, batch] = Difference(to_close, to_open, opened.get((table, batch), 0))
        return differences
