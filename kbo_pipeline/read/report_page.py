"""The page of the change report, as Markdown. No Dagster, no I/O."""

import re
from collections.abc import Iterator

from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import counted, cut, one_line
from kbo_pipeline.read.anomalies import median_of
from kbo_pipeline.read.report import EXAMPLES, ChangeReport

_LONGEST = 60
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!])")


def page(report: ChangeReport, plot: str) -> str:
    """The page.

    Args:
        report: what it tells.
        plot: address of the plot, from where the page is.
    """
    day = report.day
    parts = [
        f"# {day.key}: what changed",
        f"Source: KBO Open Data, FPS Economy; data of {day.snapshot_date}.",
    ]
    if report.is_first:
        parts += [
            "This is the first extract of the register: all of it is new, so nothing is listed.",
            "\n".join(_rows_table(report)),
            *_rejected(report),
        ]
        return "\n\n".join(parts) + "\n"
    parts += [
        f"{report.entities:,} entities changed, in {report.changes:,} ways; {day.total:,} rows were"
        " closed or opened.",
        f"![The extract against those before it]({plot})",
        "## By kind",
        "\n".join(_kinds_table(report)) if report.changes else "Nothing changed.",
        "## By table",
        "\n".join(_rows_table(report)),
        *_rejected(report),
        "## Unusual",
        "\n".join(_unusual(report)),
    ]
    if report.examples:
        parts += [f"## Examples, at most {EXAMPLES} of each kind", "\n".join(_examples(report))]
        parts += ["All of them are in `changes.parquet`, beside `report.md`."]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """A text as it stands in a line or cell of Markdown, shortened."""
    return _SPECIAL.sub(r"\\\1", cut(one_line(text), _LONGEST))


def _kinds_table(report: ChangeReport) -> Iterator[str]:
    yield "| table | kind | entities | usual |"
    yield "|---|---|---:|---:|"
    for name, count in report.kinds.items():
        if count:
            table, kind = name
            usual = median_of(report.past_kinds, name)
            yield f"| {table} | {kind} | {count:,} | {'' if usual is None else f'{usual:,}'} |"


def _rows_table(report: ChangeReport) -> Iterator[str]:
    yield "| table | rows closed | usual | rows opened | usual |"
    yield "|---|---:|---:|---:|---:|"
    past = [day.rows for day in report.before]
    for table in TABLES:
        cells = [table.name]
        for what in ("closed", "opened"):
            usual = median_of(past, (table.name, what))
            cells += [f"{report.day.rows[table.name, what]:,}"]
            cells += ["" if usual is None else f"{usual:,}"]
        yield f"| {' | '.join(cells)} |"


def _rejected(report: ChangeReport) -> Iterator[str]:
    rejected = report.rejected
    if not rejected.count:
        return
    yield "## Set aside"
    yield (
        f"{counted(rejected.count, 'row')} of the ZIP could not be read. What stood there is not in"
        " the tables of the register, but in its table `rejected_row`. The first:"
    )
    lines = ["| file | line | column | reason |", "|---|---:|---|---|"]
    for file, line, column, reason in rejected.first:
        shown = escaped(file), f"{line:,}", column or "", escaped(reason)
        lines.append(f"| {' | '.join(shown)} |")
    yield "\n".join(lines)


def _unusual(report: ChangeReport) -> Iterator[str]:
    if not report.unusual:
        yield "Nothing stands out."
    for place, found in enumerate(report.unusual, start=1):
        yield f"{place}. **{escaped(found.subject)}**: {found.text}."


def _examples(report: ChangeReport) -> Iterator[str]:
    yield "| table | kind | number | name | before | after |"
    yield "|---|---|---|---|---|---|"
    for change in report.examples:
        texts = (change.entity_number, change.name, change.before or "", change.after or "")
        yield f"| {change.table} | {change.kind} | {' | '.join(map(escaped, texts))} |"
