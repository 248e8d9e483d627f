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
_GREY, _ORANGE = "#9db4c8", "#d4572a"
_LOOKUPS = ("lookup median", "lookup 95%", "lookup most")


def write(file: Path, results: Mapping[str, Sequence[Any]]) -> None:
    """Replaces the section between the marks of a page, and draws the plot beside it.

    Raises:
        ValueError: the page has no such section.
    """
    text = file.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    rounds, growth = results["workers"], results["growth"][-1]
    (file.parent / _PLOT).parent.mkdir(exist_ok=True)
    _draw(file.parent / _PLOT, rounds, growth)
    parts = [
        _intro(file, results),
        f"![Seconds by workers, and by extract]({_PLOT})\n",
        _workers(rounds),
        f"An Update a day on a lake of {growth['enterprises']:,} enterprises, by one worker:\n",
        _growth(growth),
    ]
    file.write_text("\n".join((f"{head}{BEGIN}\n", *parts, f"{END}{tail}")))


def _intro(file: Path, results: Mapping[str, Sequence[Any]]) -> str:
    dates = sorted(where["date"][:10] for where in results["where"])
    commits = ", ".join(sorted({where["commit"] for where in results["where"]}))
    some = results["workers"][-1][0]
    return (
        f"Written by `make bench-lake`, {dates[-1]}, commit {commits}, on {machine(file.parent)},"
        f" duckdb {version('duckdb')}, PostgreSQL on the same machine: an Update of"
        f" {some['rows']:,} rows in {some['batches']} batches on {some['enterprises']:,}"
        f" enterprises, while a reader looks one enterprise after the other up;"
        f" {len(results['workers'])} rounds, medians with the lowest and the highest in brackets.\n"
    )


def _spread(rounds: Sequence[Any], place: int, name: str, scale: float = 1.0) -> Spread:
    return Spread(tuple(scale * found[place][name] for found in rounds))


def _workers(rounds: Sequence[Any]) -> str:
    lines = table(
        *("workers", "apply, seconds", "publish, seconds", "times one worker"),
        *("lookup, ms: median", "95%", "most"),
    )
    first = _spread(rounds, 0, "apply").middle
    for place, found in enumerate(rounds[0]):
        apply = _spread(rounds, place, "apply")
        lookups = (_spread(rounds, place, name, 1000) for name in _LOOKUPS)
        ratio = f"{first / apply.middle:.2f}"
        publish = _spread(rounds, place, "publish")
        lines.append(row(found["workers"], apply, publish, ratio, *lookups))
    return "\n".join(lines) + "\n"


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


def _draw(file: Path, rounds: Sequence[Any], growth: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(rounds[0]))
    apply, publish = (
        [_spread(rounds, place, name).middle for place in places] for name in ("apply", "publish")
    )
    left.bar(places, apply, color=_ORANGE, label="apply")
    left.bar(places, publish, bottom=apply, color=_GREY, label="publish")
    left.set_xticks(places, [str(found["workers"]) for found in rounds[0]])
    left.set_xlabel("workers")
    rows = growth["rows"][1:]
    right.plot([row["extracts"] for row in rows], [row["seconds"] for row in rows], color=_ORANGE)
    right.set_xlabel("extracts")
    for axes in (left, right):
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
    left.set_ylim(top=left.get_ylim()[1] * 1.15)  # room for the legend
    left.legend(frameon=False, loc="upper center", ncols=2)
    save(figure, file)
