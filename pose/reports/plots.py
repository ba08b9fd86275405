"""Pictures of results as matplotlib figures, drawn without a display.

Names come from data: no text is taken for mathematics.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pose.ensembling.abstention import Abstention
from pose.files import atomic_path
from pose.history import Row
from pose.member_key import MemberKey
from pose.reports.fonts import drawable

TRAIN_COLOR = "#7f8c9b"
VAL_COLOR = "#1f6fb4"
BEST_COLOR = "#d9622b"
# Characters of a class name beside a picture.
MAX_NAME = 20


def write_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Make a figure and write it as a PNG file."""
    # Around both: some texts are made when the figure is saved.
    with matplotlib.rc_context({"text.parse_math": False}), atomic_path(path) as partial:
        draw().savefig(partial, format="png", dpi=110)


def plot_history(history: list[Row], best_epoch: int, title: str) -> Figure:
    """Loss, accuracy and F1 of training and validation over epochs, the best epoch marked."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title)
    epochs = [row["epoch"] for row in history]
    for axes, metric, name in zip(
        figure.subplots(1, 3), ("loss", "acc", "f1"), ("loss", "accuracy", "macro F1"), strict=True
    ):
        marker = "o" if len(history) == 1 else None
        for split, label, color in (
            ("train", "train (augmented)", TRAIN_COLOR),
            ("val", "validation", VAL_COLOR),
        ):
            values = [row[f"{split}_{metric}"] for row in history]
            axes.plot(epochs, values, color=color, label=label, marker=marker)
        best = history[best_epoch - 1]
        axes.axvline(best_epoch, color=BEST_COLOR, linestyle=":", linewidth=1)
        axes.plot(best_epoch, best[f"val_{metric}"], "o", color=BEST_COLOR)
        value = best[f"val_{metric}"]
        axes.set_title(f"{name}: {value:.4f} at the best epoch, {best_epoch}", fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        if metric != "loss":
            axes.set_ylim(top=1.0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    return figure


def plot_confusion(confusion: np.ndarray, names: tuple[str, ...], title: str) -> Figure:
    """A confusion matrix: counts as numbers, shares of each true class as colours."""
    num_classes = len(names)
    side = min(24.0, max(4.5, 2.5 + 0.45 * num_classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    has_text = num_classes <= 40
    if has_text:
        texts, families = drawable(names)
        # A longer one would leave no room for the matrix.
        shown = [t if len(t) <= MAX_NAME else f"{t[: MAX_NAME - 1]}…" for t in texts]
        rotation = 90 if num_classes > 3 else 0
        axes.set_xticks(range(num_classes), shown, rotation=rotation, fontfamily=families)
        axes.set_yticks(range(num_classes), shown, fontfamily=families)
        for row, column in np.ndindex(confusion.shape):
            if confusion[row, column]:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(confusion[row, column]), ha="center", va="center",
                    color=color, fontsize=8,
                )  # fmt: skip
    return figure


def plot_seeds(histories: dict[MemberKey, list[Row]], title: str) -> Figure:
    """Validation F1 and loss of all members with their mean and band, and the best F1 of each.

    The axes cover the later half of the epochs: what tells them apart is not the first ones.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(title)
    f1_axes, loss_axes, best_axes = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    for axes, metric, name in ((f1_axes, "val_f1", "macro F1"), (loss_axes, "val_loss", "loss")):
        curves = [[row[metric] for row in history] for history in histories.values()]
        for key, curve in zip(histories, curves, strict=True):
            axes.plot(range(1, len(curve) + 1), curve, linewidth=1, alpha=0.8, label=str(key))
        # Seeds that stopped early leave the band: it covers the epochs that all have.
        shared = min(map(len, curves))
        if len(curves) > 1 and shared > 1:
            band = np.array([curve[:shared] for curve in curves])
            epochs = np.arange(1, shared + 1)
            axes.fill_between(
                epochs, band.min(axis=0), band.max(axis=0), color=VAL_COLOR, alpha=0.15
            )
            axes.plot(epochs, band.mean(axis=0), color="black", linewidth=1.5, label="mean")
        axes.set_ylim(*later_half(curves))
        axes.set_title(f"validation {name}", fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss_axes.legend(loc="upper right", fontsize=8)
    _plot_best(best_axes, [max(row["val_f1"] for row in own) for own in histories.values()])
    best_axes.set_xticks(range(len(histories)), map(str, histories), rotation=90)
    return figure


def later_half(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits of an axis that shows the later half of curves, and whatever is higher or lower.

    Only what the first half alone reaches is cut: at the bottom if the curves rise, else at the
    top.
    """
    late = [value for curve in curves for value in curve[len(curve) // 2 :]]
    first = statistics.mean(curve[0] for curve in curves)
    rises = statistics.mean(late) >= first
    everything = [value for curve in curves for value in curve]
    low = min(late if rises else everything)
    high = max(everything if rises else late)
    margin = max(0.08 * (high - low), 1e-3)
    return low - margin, high + margin


def _plot_best(axes: Axes, best: Sequence[float]) -> None:
    """The best F1 of each seed as a point, with the mean of all."""
    axes.plot(range(len(best)), best, "o", color=BEST_COLOR)
    axes.axhline(statistics.mean(best), color="black", linewidth=1)
    axes.set_title("best macro F1 by seed, mean", fontsize=10)
    axes.set_xlabel("seed")
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.25)


def plot_reliability(stages: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Accuracy over mean confidence, bin by bin; on the diagonal both are equal.

    Args:
        stages: confidences and accuracies of bins, by what they are of.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
    for color, (name, (confidence, accuracy)) in zip(
        (TRAIN_COLOR, VAL_COLOR), stages.items(), strict=False
    ):
        axes.plot(confidence, accuracy, "o-", color=color, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("mean confidence")
    axes.set_ylabel("part that is right")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left")
    return figure


def plot_risk_coverage(abstention: Abstention, title: str) -> Figure:
    """The part of kept predictions that is right over the part that is kept, the choice marked."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(abstention.curve_coverage, abstention.curve_accuracy, color=VAL_COLOR)
    axes.axhline(abstention.target, color=BEST_COLOR, linestyle=":", linewidth=1)
    axes.plot(abstention.coverage, abstention.accuracy, "o", color=BEST_COLOR)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("part of the predictions that is kept, the surest first")
    axes.set_ylabel("part of these that is right")
    axes.grid(alpha=0.25)
    return figure
