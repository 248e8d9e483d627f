"""docs/performance.md and its plot, from the results of `make bench`."""

import datetime
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kbo_pipeline_tests.bench.measuring import Spread
from kbo_pipeline_tests.bench.sample import Extracts, facts
from kbo_pipeline_tests.chaos.report import machine
from kbo_pipeline_tests.pipeline import REPOSITORY

Results = Mapping[str, Sequence[Any]]

_NAMES = {
    "bare": "bare load: unzip, then DuckDB's `read_csv`, all text",
    "full": "**first Full**, from ZIP to published",
    "later full": "**Full on a filled register**, a day's difference",
    "day": "**a day's Update**, from the inbox to published, `kbo start` running",
    "nothing": "**an Update without changes**, likewise",
    "big": "**a big Update**, 7 million changed rows",
    "pandas": "pandas into DuckDB, a bare load too",
    "cbe": "PyPI's `cbe` into SQLite, a bare load too, without an index",
    "full, less memory": "first Full with `KBO_MEMORY_MB=1024`",
    "day, less memory": "a day's Update with `KBO_MEMORY_MB=1024`, by `kbo import`",
}
_BARS = {
    "full": 1.5,
    "later full": 1.5,
    "big": 1.5,
}
"""Times the bare load, at most."""

_PACKAGES = ("duckdb", "dagster", "pandas", "cbe")
_PLOT = "pictures/performance.png"


def where() -> dict[str, str]:
    """What goes with each result: when, of which commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(), "commit": commit}


def read(results: Path) -> dict[str, list[Any]]:
    """The results of a file, by their kind, in the order in which they were measured."""
    found: dict[str, list[Any]] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        result = json.loads(line)
        found.setdefault(result["kind"], []).append(result["rows"])
        found.setdefault("where", []).append({k: result[k] for k in ("date", "commit")})
    return found


def write(file: Path, results: Results, made: Extracts) -> None:
    """Writes the page, and its plot beside it."""
    rounds = results["round"]
    bare = _spread(rounds, "bare", "seconds").middle
    (file.parent / _PLOT).parent.mkdir(exist_ok=True)
    _draw(file.parent / _PLOT, rounds)
    parts = [
        _head(file, results, made),
        f"![Seconds of each, beside the bare load]({_PLOT})\n",
        "## From ZIP to readers\n",
        _imports(rounds, bare),
        "## Where the time goes\n",
        _phases(rounds, bare),
        "## Reading\n",
        _reading(rounds),
        "## Growth\n",
        "The same day's Update, on registers of three sizes, by `kbo import`:\n",
        _growth(results["size"][-1], "enterprises"),
        "A hundredth of the register, and an Update of the same size each day:\n",
        _growth(results["extracts"][-1], "extracts"),
    ]
    file.write_text("\n".join(parts))


def _head(file: Path, results: Results, made: Extracts) -> str:
    dates = sorted(w["date"][:10] for w in results["where"])
    commits = ", ".join(sorted({w["commit"] for w in results["where"]}))
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    rows = " ".join(
        f"{name} {count:,} rows in {size / 1e6:.1f} MB;" for name, count, size in facts(made)
    )
    return (
        f"# Performance\n\nWritten by `make bench`, {when}, commit {commits}, on"
        f" {machine(file.parent)}, {versions}. {len(results['round'])} rounds; in each, everything"
        " once, one after the other. Figures are medians, with the lowest and the highest in"
        f" brackets. The extracts are made up, with the size and shape of the real ones: {rows}"
        " an Update's rows are what it deletes and inserts.\n"
    )


def _imports(rounds: Sequence[Any], bare: float) -> str:
    lines = _table(
        "what", "seconds", "times the bare load", "bar", "largest process", "file", "written"
    )
    for name, told in _NAMES.items():
        if name not in rounds[0]:
            continue
        seconds = _spread(rounds, name, "seconds")
        figures = rounds[-1][name]
        lines.append(
            _row(
                told,
                seconds,
                f"{seconds.middle / bare:.2f}",
                f"{_BARS[name]}"
                if name in _BARS
                else {"day": "45 s", "nothing": "20 s"}.get(name, ""),
                f"{max(r[name]['peak'] for r in rounds) / 1e9:.2f} GB",
                f"{figures['file'] / 1e6:,.0f} MB" if "file" in figures else "",
                f"{figures['written'] / 1e6:,.0f} MB" if figures.get("written") else "",
            )
        )
    return "\n".join(lines) + "\n"


def _phases(rounds: Sequence[Any], bare: float) -> str:
    lines = _table("seconds of", "stage", "apply", "publish", "together", "times the bare load")
    for name, told in _NAMES.items():
        if "phases" not in rounds[0].get(name, {}):
            continue
        spreads = [
            _spread(rounds, name, "phases", phase) for phase in ("stage", "apply", "publish")
        ]
        together = _spread(rounds, name, "phases")
        lines.append(_row(told, *spreads, together, f"{together.middle / bare:.2f}"))
    return "\n".join(lines) + "\n"


def _reading(rounds: Sequence[Any]) -> str:
    lines = _table("milliseconds of", "cold", "warm")
    for name in rounds[0]["reading"]:
        figures = [
            _spread(rounds, "reading", name, kind, scale=1000)
            if kind in rounds[0]["reading"][name]
            else ""
            for kind in ("cold", "warm")
        ]
        lines.append(_row(name, *figures))
    return "\n".join(lines) + "\n"


def _growth(rows: Iterable[Mapping[str, float]], subject: str) -> str:
    lines = _table(
        *(subject, "stage", "apply", "publish", "register work", "whole"),
        *("largest process", "file", "Dagster's tables"),
    )
    for row in rows:
        seconds = (f"{row[k]:.2f}" for k in ("stage", "apply", "publish", "register work", "whole"))
        lines.append(
            _row(
                f"{row[subject]:,}",
                *seconds,
                f"{row['peak'] / 1e9:.2f} GB",
                f"{row['file'] / 1e6:,.0f} MB",
                f"{row['dagster'] / 1e6:,.0f} MB",
            )
        )
    return "\n".join(lines) + "\n"


def _spread(rounds: Sequence[Any], *path: str, scale: float = 1.0) -> Spread:
    """What is at the end of a path in each round; the sum, where that has parts."""
    values = []
    for found in rounds:
        for name in path:
            found = found[name]
        values.append(scale * (sum(found.values()) if isinstance(found, dict) else found))
    return Spread(tuple(values))


def _table(*headings: str) -> list[str]:
    return [_row(*headings), "|" + "---|" * len(headings)]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _draw(file: Path, rounds: Sequence[Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in _NAMES if name in rounds[0]]
    seconds = [_spread(rounds, name, "seconds").middle for name in names]
    figure = Figure(figsize=(9, 0.42 * len(names) + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    colours = ["#9db4c8" if name in ("bare", "cbe", "pandas") else "#d4572a" for name in names]
    bars = axes.barh(range(len(names)), seconds, color=colours)
    axes.bar_label(bars, fmt="%.0f s", padding=3)
    axes.axvline(seconds[names.index("bare")], color="#333333", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(file)
