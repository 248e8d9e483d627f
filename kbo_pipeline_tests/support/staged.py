"""CSV records, sound and spoilt, and what staging makes of them."""

import re
from collections.abc import Callable
from datetime import date

import duckdb

from kbo_pipeline.core.extracts import Operation
from kbo_pipeline.core.tables import ALL_TABLES, Column, Table
from kbo_pipeline_tests.support.zips import Row, Value, as_number, csv_text

TEXTS = [
    None,
    "0999",
    "0111001",
    "5701 SB",
    "1e5",
    "true",
    "NULL",
    "31-12-2020",
    '"',
    '""',
    'say "no", twice',
    ",",
    ";",
    "#",
    "\\",
    "ends in a backslash\\",
    '\\"',
    "line\nbreak",
    "line\r\nbreak",
    "carriage\rreturn",
    "\n\n",
    "\n",
    " leading",
    "trailing \t",
    " ",
    "\ufeff",
    "\u2028\x85\x0b\x0c\x1a",
    "e\u0301 \u00e9",
    "漢字 😀 \U0010ffff",
    "'; DROP TABLE enterprise; --",
    "=1+1",
    "tab\tinside",
    "\u202eright to left\u202c \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\u00e9" * 300,
    "x" * 5000,
]
DATES = [None, date(1, 1, 1), date(1804, 2, 29), date(2024, 2, 29), date(9999, 12, 31)]


def awkward_rows(table: Table) -> list[Row]:
    """Each text once in each column, but for those of numbers; the keys are not sorted."""
    rows: list[Row] = []
    for number in range(len(TEXTS)):
        values: list[Value] = []
        for place, column in enumerate(table.columns):
            choice = DATES if column.type == "DATE" else TEXTS
            value = choice[(number + place) % len(choice)]
            if column.number:
                value = number_of(column, number * 7919 % 1000)
            elif place == 0:
                value = f"{value or 'none'}.{number}"
            values.append(value)
        rows.append(tuple(values))
    return rows


def number_of(column: Column, number: int) -> str:
    """A number that the column may hold."""
    return as_number(column, f"0200.{number // 1000:03d}.{number % 1000:03d}")


AWKWARD = {table.name: awkward_rows(table) for table in ALL_TABLES}


def staged_rows(
    connection: duckdb.DuckDBPyConnection, table: Table, operation: Operation
) -> list[Row]:
    """The rows of a staging view in the order of the file."""
    columns = ", ".join(table.column_names)
    return connection.execute(
        f"SELECT {columns} FROM staging.import_staging_{table.name}"
        " WHERE operation = $1 ORDER BY row_sequence",
        [operation],
    ).fetchall()


def good_line(table: Table) -> str:
    """A sound record, the key and all texts quoted."""
    values = (
        "01-02-2020" if c.type == "DATE" else f'"{number_of(c, 1) if c.number else "a"}"'
        for c in table.columns
    )
    return ",".join(values)


def spoilt(table: Table, spoil: Callable[[str], str | bytes]) -> bytes:
    """A CSV with a sound record, a spoilt one and another sound one."""
    line = spoil(good_line(table))
    middle = line if isinstance(line, bytes) else line.encode()
    good = good_line(table).encode()
    return b"\n".join([csv_text(table.columns, []).encode() + good, middle, good, b""])


UNSOUND: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "too few": (lambda line: line.rsplit(",", 1)[0], "12 fields, not 13"),
    "too many": (lambda line: line + ',"more"', "14 fields, not 13"),
    "one empty field more": (lambda line: line + ",", "14 fields, not 13"),
    "far too many": (lambda line: line + ",more,", "15 fields, not 13"),
    "not UTF-8": (lambda line: line.encode().replace(b'"a"', b'"\xff"', 1), "no UTF-8"),
    "a NUL": (lambda line: line.replace('"a"', '"\0"', 1), "a NUL byte"),
    "open quote": (lambda line: line.replace('"a"', '"a', 1), "a quote inside a text"),
    "open to the end": (lambda line: line.rsplit(",", 1)[0] + ',"', "a text opens here"),
    "lone quote": (lambda line: line.replace('"a"', '"a"b"', 1), "a quote inside a text"),
    "late quote": (lambda line: line.replace('"a"', 'a"b', 1), "a quote inside a value"),
    "no key": (lambda line: re.sub('"[^"]*"', '""', line, count=1), "no number of that kind"),
    "no key, bare": (lambda line: line[line.index(",") :], "no number of that kind"),
    "another key": (lambda line: line.replace(".", "", 1), "no number of that kind"),
    "blank line": (lambda line: "", "a blank line"),
    "mixed line ends": (lambda line: line + "\r", "another line end"),
    "CR alone": (lambda line: line.replace('"a"', "a\ra", 1), "a line break outside of quotes"),
}
BAD_DATES = [
    *("31-02-2020", "29-02-2023", "2020-01-01", "01/02/2020", "01-13-2020", "0", "never"),
    *("1-1-2020", "01-01-20", " 01-01-2020", "01-01-2020 ", "01-01-0000", "01-01-20200"),
    *("01-01-2020 00:00:00", "٠١-01-2020", "infinity", "+1-01-2020"),
]
