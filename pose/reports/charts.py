"""Charts as SVG inside a page: no text from data, colours that follow the page's."""

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pose.history import Row
from pose.reports.plots import BEST_COLOR, TRAIN_COLOR, VAL_COLOR, later_half

# Text stays text, so that the page's fonts and colours apply; equal charts are equal bytes.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pose",
    "text.parse_math": False,
    "font.size": 10,
}


def svg(draw: Callable[[Axes], None]) -> str:
    """One chart as an `<svg>` element, black replaced by the page's colour of text."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    picture = text.getvalue()
    return picture[picture.index("<svg") :].replace("#000000", "currentColor")


def curves(histories: Mapping[Any, Sequence[Row]], metric: str) -> str:
    """A column of the members' histories over epochs, with their band and mean."""

    def draw(axes: Axes) -> None:
        lines = [[row[metric] for row in history] for history in histories.values()]
        shared = min(map(len, lines))
        for line in lines:
            marker = "o" if len(line) == 1 else None
            axes.plot(
                range(1, len(line) + 1),
                line,
                color=TRAIN_COLOR,
                linewidth=0.9,
                alpha=0.8,
                marker=marker,
            )
        if len(lines) > 1 and shared > 1:
            band = np.array([line[:shared] for line in lines])
            epochs = np.arange(1, shared + 1)
            low, high = band.min(axis=0), band.max(axis=0)
            axes.fill_between(epochs, low, high, color=VAL_COLOR, alpha=0.2)
            axes.plot(epochs, band.mean(axis=0), color=VAL_COLOR, linewidth=1.8)
        axes.set_ylim(*later_half(lines))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label(axes, "epoch", "")

    return svg(draw)


def by_size(scores: Sequence[Sequence[float]]) -> str:
    """Macro F1 over the number of members: each subset as a point, and their mean."""

    def draw(axes: Axes) -> None:
        for size, own in enumerate(scores, start=1):
            axes.plot([size] * len(own), own, ".", color=TRAIN_COLOR, alpha=0.6)
        sizes = range(1, len(scores) + 1)
        axes.plot(sizes, [statistics.mean(own) for own in scores], "o-", color=VAL_COLOR)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label(axes, "members", "macro F1")

    return svg(draw)


def reliability(confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray) -> str:
    """Accuracy over confidence; the area of a point is its number of rows."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=TRAIN_COLOR, linestyle=":")
        axes.plot(confidence, accuracy, color=VAL_COLOR, linewidth=1)
        axes.scatter(confidence, accuracy, s=12 + 160 * counts / counts.max(), color=VAL_COLOR)
        _label(axes, "confidence", "accuracy")

    return svg(draw)


def risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> str:
    """Part of wrong answers over the part of rows that are answered, the surest first."""

    def draw(axes: Axes) -> None:
        # A page needs no more points than it has pixels.
        step = max(1, len(risk) // 300)
        axes.plot(coverage[::-1][::step], risk[::-1][::step], color=BEST_COLOR)
        axes.set_ylim(bottom=0)
        _label(axes, "coverage", "risk (part of answers that are wrong)")

    return svg(draw)


def _label(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
