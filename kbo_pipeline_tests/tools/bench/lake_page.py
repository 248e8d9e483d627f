"""The measured section of docs/scale.md and its plot, from the results of `make bench-lake`."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kbo_pipeline_tests.tools.bench.measuring import Spread
from kbo_pipeline_tests.tools.bench.page import row, save, table
from kbo_pipeline_tests.tools.chaos.report import machine

BEGIN = "<!-- make bench-lake writes from here -->"
END = "<!-- to here -->"

_PLOT = "pictures/scale.png"
_ORANGE = "#d4572a"
_LOOKUPS = ("lookup median", "lookup 95%", "lookup most")


def write(file: Path, results: Mapping[str, Sequence[Any]]) -> None:
    """Replaces the section between the marks of a page, and draws the plot beside it.

    Raises:
        ValueError: the page has no such section.
    """
    text = file.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    rounds, growth = results["update"], results["growth"][-1]
    (file.parent / _PLOT).parent.mkdir(exist_ok=True)
    _draw(file.parent / _PLOT, growth)
    parts = [
        _intro(file, results),
        f"![Seconds by extract]({_PLOT})\n",
        _update(rounds),
        f"An Update a day on a lake of {growth['enterprises']:,} enterprises:\n",
        _growth(growth),
    ]
    file.write_text("\n".join((f"{head}{BEGIN}\n", *parts, f"{END}{tail}")))


def _intro(file: Path, results: Mapping[str, Sequence[Any]]) -> str:
    dates = sorted(where["date"][:10] for where in results["where"])
    commits = ", ".join(sorted({where["commit"] for where in results["where"]}))
    some = results["update"][-1]
    return (
        f"Written by `make bench-lake`, {dates[-1]}, commit {commits}, on {machine(file.parent)},"
        f" duckdb {version('duckdb')}, PostgreSQL on the same machine: an Update of"
        f" {some['rows']:,} rows in {some['batches']} batches on {some['enterprises']:,}"
        f" enterprises, while a reader looks one enterprise after the other up;"
        f" {len(results['update'])} rounds, medians with the lowest and the highest in brackets.\n"
    )


def _update(rounds: Sequence[Any]) -> str:
    lines = table("apply, seconds", "publish, seconds", "lookup, ms: median", "95%", "most")
    scales = {"apply": 1, "publish": 1, **dict.fromkeys(_LOOKUPS, 1000)}
    spreads = (
        Spread(tuple(scale * found[name] for found in rounds)) for name, scale in scales.items()
    )
    return "\n".join((*lines, row(*spreads))) + "\n"


def _growth(growth: Mapping[str, Any]) -> str:
    lines = table("after", "seconds of it", "catalog", "files", "their size")
    rows = growth["rows"]
    shown = {
        f"extract {found['extracts']}": found for found in (rows[1], rows[len(rows) // 2], rows[-1])
    }
    for name, found in {**shown, "compacting": growth["compacted"]}.items():
        sizes = (f"{found[of] / 1e6:,.1f} MB" for of in ("catalog", "bytes"))
        catalog, size = sizes
        lines.append(row(name, f"{found['seconds']:.1f}", catalog, f"{found['files']:,}", size))
    return "\n".join(lines) + "\n"


def _draw(file: Path, growth: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    rows = growth["rows"][1:]
    axes.plot([row["extracts"] for row in rows], [row["seconds"] for row in rows], color=_ORANGE)
    axes.set_xlabel("extracts")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    save(figure, file)
