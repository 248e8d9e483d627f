"""The plot of the change report: an extract against those before it. No Dagster, no SQL.

matplotlib is imported in the function that draws: 1 s of processor time.
"""

import io
import logging
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbo_pipeline.read.anomalies import LEAST_PAST

_THIS, _PAST, _USUAL = "#d4572a", "#9db4c8", "#333333"
_INCHES, _DOTS = (9.0, 3.6), 100
_COLOURS = 48  # a palette makes the file a third as large


@dataclass(frozen=True, slots=True)
class Bars:
    """What is drawn.

    Attributes:
        title: of the plot.
        labels: of the extracts, the oldest first; the last one is the one that it is about.
        totals: rows that each of them closed or opened.
        tables: the same of each table, by its name.
    """

    title: str
    labels: Sequence[str]
    totals: Sequence[int]
    tables: dict[str, Sequence[int]]

    @property
    def usual(self) -> float | None:
        """The median of the extracts before; None while too few are known to call it usual."""
        past = self.totals[:-1]
        return statistics.median(past) if len(past) >= LEAST_PAST else None


def draw(bars: Bars, cache: Path) -> bytes:
    """The plot as a PNG of some 20 kB.

    Args:
        bars: what is drawn.
        cache: directory where matplotlib notes which fonts there are.
    """
    os.environ.setdefault("MPLCONFIGDIR", str(cache))  # it would write into the user's home
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its patience
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    figure.suptitle(bars.title, fontsize=11)
    _draw_totals(left, bars)
    _draw_tables(right, bars)
    canvas.draw()
    return _compressed(canvas.get_width_height(), canvas.buffer_rgba())


def _draw_totals(axes: Any, bars: Bars) -> None:
    last = len(bars.totals) - 1
    colours = [_PAST] * last + [_THIS]
    axes.bar(range(last + 1), bars.totals, color=colours)
    title = "rows closed or opened"
    if bars.usual is not None:
        title += "; dashed: usual"
        axes.axhline(bars.usual, color=_USUAL, linewidth=0.8, linestyle="--")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    shown = sorted({0, last // 2, last})
    axes.set_xticks(shown, [bars.labels[i] for i in shown], fontsize=8)
    axes.set_title(title, fontsize=9)
    _clean(axes)


def _draw_tables(axes: Any, bars: Bars) -> None:
    names = list(bars.tables)
    for place, name in enumerate(names):
        *past, now = bars.tables[name]
        axes.scatter(past, [place] * len(past), color=_PAST, s=14)
        axes.scatter([now], [place], color=_THIS, s=36, zorder=3)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=-1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title("by table, each dot an extract", fontsize=9)
    _clean(axes)


def _clean(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _compressed(size: tuple[int, int], pixels: Any) -> bytes:
    from PIL import Image

    image = Image.frombuffer("RGBA", size, pixels).convert("RGB").quantize(_COLOURS)
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return written.getvalue()
