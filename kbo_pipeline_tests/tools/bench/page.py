"""docs/performance.md and its plot, from the results of `make bench`."""

import datetime
import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.tools.bench.measuring import Spread
from kbo_pipeline_tests.tools.bench.sample import Extracts, facts
from kbo_pipeline_tests.tools.chaos.report import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Sequence[Any]]

_NAMES = {
    "bare": "bare load: unzip, then DuckDB's `read_csv`, all text",
    "full": "**first Full**, from ZIP to published",
    "later full": "**Full on a filled register**, a day's difference",
    "day": "**a day's Update**, from the inbox to published, `kbo start` running",
    "nothing": "**an Update without changes**, likewise",
    "day beside": "a day's Update, likewise, while `kbo verify` compares the register with a Full",
    "big": "**a big Update**, 7 million changed rows",
    "verify": "**a comparison** of the register with a Full, `kbo verify`",
    "index": "the search index of all, after readers have the extract: `kbo index`",
    "full, less memory": "first Full with `KBO_MEMORY_MB=1024`, once",
    "day, less memory": "a day's Update with `KBO_MEMORY_MB=1024`, by `kbo import`, once",
}
_OTHERS = {
    "pandas": "pandas, piece by piece, into DuckDB",
    "cbe": "PyPI's `cbe`: pandas into SQLite, without keys and indexes",
}
_OTHERS_BAR = "3"
"""Times our first Full, at least."""

_BARS = {"full": "1.5", "later full": "1.5", "big": "1.5", "day": "45 s", "nothing": "20 s"}
_BARS |= {"verify": "1.0", "day beside": "5 s more than alone"}
"""Times the bare load, or seconds, at most."""

_WORK_BARS = {"day": "0.25"}
"""Times the bare load, at most, of the work on the register."""

_MS_BARS = {"an enterprise with all its parts": "50", "kbo show, the whole command": "1,500"}
_MS_BARS["kbo --help, the whole command"] = "500"
"""Milliseconds, warm, at most."""

_HTTP_BARS = {
    "start, until the first answer, s": "1",
    "an enterprise, new, p95, ms": "50",
    "an enterprise, asked again, p95, ms": "10",
    "a search for a misspelt name, p95, ms": "60",
    "look-ups a second, others each time": "300 at least",
}

_PHASES = ("stage", "apply", "publish")
_GREY, _ORANGE = "#9db4c8", "#d4572a"
_PACKAGES = ("duckdb", "dagster", "pandas", "cbe")
_PLOT = "pictures/performance.png"
_GROWTH_PLOT = "pictures/growth.png"


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
    """Writes the page, and its plots beside it."""
    rounds = [*results["round"][:-1], {**results["less"][-1], **results["round"][-1]}]
    (file.parent / _PLOT).parent.mkdir(exist_ok=True)
    _draw(file.parent / _PLOT, rounds)
    _draw_growth(file.parent / _GROWTH_PLOT, results)
    bare = _spread(rounds, "bare", "seconds").middle
    parts = [
        _head(file, results, made),
        f"![Seconds of each import, compared with the bare load]({_PLOT})\n",
        "## From ZIP to readers\n",
        "Seconds until readers have the extract. After that, `kbo import` makes the change report"
        " and then exits: *to the end*.\n",
        _imports(rounds, bare),
        "## Compared with other tools\n",
        "The same Full, in the same rounds; none of these tools keeps history, a ledger,"
        " or checks:\n",
        _others(rounds),
        "## Where the time goes\n",
        _phases(rounds, bare),
        "## Reading\n",
        "Cold: the first query, with nothing of the file in the system's cache. Warm: the same"
        " process queries again.\n",
        _reading(rounds),
        "## Over HTTP\n",
        "`kbo serve` and its clients on the same machine; 95 % of the answers are quicker. In the"
        " last column a day's Update is imported meanwhile.\n",
        _http(rounds),
        "## Growth\n",
        f"![A day's Update as the register grows, and as extracts are published]({_GROWTH_PLOT})\n",
        "The same number of changes, on registers of three sizes, by `kbo import`,"
        f" {_rounds(results['size'])}:\n",
        _growth(results["size"], "enterprises"),
        "A hundredth of the register, with an Update of the same size each day,"
        f" {_rounds(results['extracts'])}:\n",
        _growth(results["extracts"], "extracts"),
    ]
    file.write_text("\n".join(parts))


def _rounds(rounds: Sequence[Any]) -> str:
    return "once" if len(rounds) == 1 else f"medians of {len(rounds)} rounds"


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
        f" {machine(file.parent)}, {versions}. {len(results['round'])} rounds; each round runs"
        " everything once, one after the other. Figures are medians, with the lowest and the"
        " highest in brackets. The extracts are made up, with the size and shape of the real ones:"
        f" {rows}"
        " the rows of an Update are those that it deletes and inserts.\n"
    )


def _imports(rounds: Sequence[Any], bare: float) -> str:
    lines = table(
        *("what", "seconds", "times the bare load", "bar", "to the end"),
        *("largest process", "file", "written"),
    )
    for name, told in _NAMES.items():
        found = [figures[name] for figures in rounds if name in figures]
        if not found:
            continue
        seconds = _spread(rounds, name, "seconds")
        written = found[-1].get("written")
        whole = _spread(rounds, name, "whole")
        lines.append(
            row(
                told,
                seconds,
                f"{seconds.middle / bare:.2f}",
                _BARS.get(name, ""),
                whole if whole.middle > seconds.middle else "",
                f"{max(figures['peak'] for figures in found) / 1e9:.2f} GB",
                f"{found[-1]['file'] / 1e6:,.0f} MB" if "file" in found[-1] else "",
                f"{written / 1e6:,.0f} MB" if written else "",
            )
        )
    return "\n".join(lines) + "\n"


def _others(rounds: Sequence[Any]) -> str:
    bare, ours = (_spread(rounds, name, "seconds").middle for name in ("bare", "full"))
    lines = table(
        *("what", "seconds", "times the bare load", "times our first Full", "wanted"),
        *("largest process", "file"),
    )
    for name, told in _OTHERS.items():
        seconds = _spread(rounds, name, "seconds")
        lines.append(
            row(
                told,
                seconds,
                f"{seconds.middle / bare:.2f}",
                f"{seconds.middle / ours:.2f}",
                _OTHERS_BAR,
                f"{_spread(rounds, name, 'peak').middle / 1e9:.2f} GB",
                f"{rounds[-1][name]['file'] / 1e6:,.0f} MB",
            )
        )
    return "\n".join(lines) + "\n"


def _phases(rounds: Sequence[Any], bare: float) -> str:
    lines = table(
        "seconds of", "stage", "apply", "publish", "together", "times the bare load", "bar"
    )
    for name, told in _NAMES.items():
        if not any("phases" in figures.get(name, {}) for figures in rounds):
            continue
        spreads = [_spread(rounds, name, "phases", phase) for phase in _PHASES]
        together = _spread(rounds, name, "phases")
        ratio = f"{together.middle / bare:.2f}"
        lines.append(row(told, *spreads, together, ratio, _WORK_BARS.get(name, "")))
    return "\n".join(lines) + "\n"


def _reading(rounds: Sequence[Any]) -> str:
    lines = table("milliseconds of", "cold", "warm", "bar, warm")
    for name in rounds[0]["reading"]:
        figures = [
            _spread(rounds, "reading", name, kind, scale=1000)
            if kind in rounds[0]["reading"][name]
            else ""
            for kind in ("cold", "warm")
        ]
        lines.append(row(name, *figures, _MS_BARS.get(name, "")))
    return "\n".join(lines) + "\n"


def _http(rounds: Sequence[Any]) -> str:
    asked = [figures for figures in rounds if "http" in figures]
    lines = table("what", "alone", "while an Update is imported", "bar")
    for name in asked[0]["http"] if asked else ():
        found = (_spread(asked, kind, name) for kind in ("http", "http beside"))
        lines.append(row(name, *found, _HTTP_BARS.get(name, "")))
    return "\n".join(lines) + "\n"


def _growth(rounds: Sequence[Any], subject: str) -> str:
    """A table with a line for each register; medians of the rounds."""
    lines = table(
        *(subject, *_PHASES, "register work", "whole", "times the first"),
        *("largest process", "written", "file", "Dagster's tables"),
    )
    for place, register in enumerate(rounds[0]):
        seconds = [_spread(rounds, place, k) for k in (*_PHASES, "register work", "whole")]
        ratio = seconds[-1].middle / _spread(rounds, 0, "whole").middle
        lines.append(
            row(
                f"{register[subject]:,}",
                *(f"{spread.middle:.2f}" for spread in seconds[:-1]),
                seconds[-1],
                f"{ratio:.2f}",
                f"{_spread(rounds, place, 'peak').middle / 1e9:.2f} GB",
                *(
                    f"{_spread(rounds, place, name).middle / 1e6:,.0f} MB"
                    for name in ("written", "file", "dagster")
                ),
            )
        )
    return "\n".join(lines) + "\n"


def _spread(rounds: Sequence[Any], *path: str | int, scale: float = 1.0) -> Spread:
    """What is at the end of a path in each round that has it; the sum, where that has parts."""
    values = []
    for found in rounds:
        if isinstance(found, dict) and path[0] not in found:
            continue
        for name in path:
            found = found[name]
        values.append(scale * (sum(found.values()) if isinstance(found, dict) else found))
    return Spread(tuple(values))


def table(*headings: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*headings), "|" + "---|" * len(headings)]


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def _draw(file: Path, rounds: Sequence[Any]) -> None:
    from matplotlib.figure import Figure

    names = [name for name in _NAMES if any(name in figures for figures in rounds)]
    seconds = [_spread(rounds, name, "seconds").middle for name in names]
    figure = Figure(figsize=(9, 0.42 * len(names) + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    colours = [_GREY if name == "bare" else _ORANGE for name in names]
    bars = axes.barh(range(len(names)), seconds, color=colours)
    axes.bar_label(bars, fmt="%.0f s", padding=3)
    axes.axvline(seconds[names.index("bare")], color="#333333", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    save(figure, file)


def _draw_growth(file: Path, results: Results) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained")
    for axes, subject, kind in zip(
        figure.subplots(1, 2), ("enterprises", "extracts"), ("size", "extracts"), strict=True
    ):
        rounds = results[kind]
        places = range(len(rounds[0]))
        bottom = [0.0 for _ in places]
        for phase, colour in zip(_PHASES, (_GREY, "#5d7a94", _ORANGE), strict=True):
            heights = [_spread(rounds, place, phase).middle for place in places]
            axes.bar(places, heights, bottom=bottom, color=colour, label=phase)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        whole = [_spread(rounds, place, "whole").middle for place in places]
        axes.plot(places, whole, "o", color="#333333", label="whole")
        axes.set_xticks(places, [f"{row[subject]:,}" for row in rounds[0]])
        axes.set_xlabel(subject)
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    save(figure, file)


def save(figure: "Figure", file: Path) -> None:
    """Writes a plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(file)
