"""Draw docs/demo.png, the picture at the top of the README, from what `make demo` left behind.

    python -m scripts.draw_readme_picture

reads outputs/demo/ and demo/: a strip of drawn poses, the band of the seeds over epochs, and every
vote of one, two, three members on the rows that all of them validate on.
"""

import csv
import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pose import metrics
from pose.predictions import Predictions, read_predictions
from pose.reports.plots import BEST_COLOR, VAL_COLOR, write_figure
from pose.seeds.folder import HISTORY, VAL_PREDICTIONS
from pose.vote import combine_probs
from pose_models import Combination

ROOT = Path(__file__).resolve().parents[1]
RUN, DATA, TARGET = ROOT / "outputs" / "demo", ROOT / "demo", ROOT / "docs" / "demo.png"
# Poses that differ at a glance, by class name.
POSES = (
    "Yoga_Warrior2_left",
    "T",
    "Squat",
    "Yoga_UpwardSalute",
    "Traffic_AllStop",
    "Seated",
    "Yoga_Tree_left",
    "Plank",
    "MilitarySalute",
    "PushUp_Low",
)


def draw_picture() -> Figure:
    """All of it, from the folders of the demo run."""
    folders = sorted(RUN.glob("seed_*"))
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.5))
    draw_poses(top.subplots(1, len(POSES)))
    left, right = bottom.subplots(1, 2, width_ratios=(1.7, 1))
    draw_band(left, {folder.name: read_val_f1(folder / HISTORY) for folder in folders})
    draw_votes(right, [read_predictions(folder / VAL_PREDICTIONS) for folder in folders])
    return figure


def draw_poses(axes: np.ndarray) -> None:
    """The first labelled image of each of `POSES`."""
    label_of = {name: label for label, name, _ in read_rows(DATA / "classes.csv")}
    first_ids = {label: i for i, label in reversed(read_rows(DATA / "train_solution.csv"))}
    for one, name in zip(axes, POSES, strict=True):
        one.imshow(Image.open(DATA / "train_images" / f"{first_ids[label_of[name]]}.jpg"))
        one.set_title(name.split("_", 1)[-1].replace("_", " "), fontsize=9)
        one.axis("off")


def draw_band(axes: Axes, val_f1: dict[str, np.ndarray]) -> None:
    """Validation macro F1 over epochs, a line per seed and the band that they span."""
    curves = np.stack(list(val_f1.values()))
    epochs = np.arange(1, curves.shape[1] + 1)
    axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=VAL_COLOR, alpha=0.18)
    for name, curve, style in zip(val_f1, curves, ("-", "--", ":"), strict=True):
        axes.plot(
            epochs, curve, style, color=VAL_COLOR, linewidth=1.4, label=name.replace("_", " ")
        )
    axes.set(title="Three seeds of one recipe", xlabel="epoch", ylabel="validation macro F1")
    axes.set_xticks(epochs)
    axes.legend(loc="lower right", frameon=False)
    tidy(axes)


def draw_votes(axes: Axes, members: list[Predictions]) -> None:
    """Validation macro F1 of every soft vote by the number of its members."""
    means = []
    for size in range(1, len(members) + 1):
        scores = [score_vote(some) for some in itertools.combinations(members, size)]
        means.append(float(np.mean(scores)))
        axes.plot([size] * len(scores), scores, "o", color=VAL_COLOR, alpha=0.7, markersize=8)
    sizes = range(1, len(members) + 1)
    axes.plot(sizes, means, color=BEST_COLOR, linewidth=1.4, zorder=0, label="mean")
    axes.plot(len(members), means[-1], "o", color=BEST_COLOR, markersize=10)
    for size, text in ((1, "alone"), (len(members), "together")):
        place = {"xytext": (12 if size == 1 else -12, -4), "ha": "left" if size == 1 else "right"}
        axes.annotate(
            f"{text}: {means[size - 1]:.3f}",
            (size, means[size - 1]),
            textcoords="offset points",
            color=BEST_COLOR,
            fontsize=11,
            **place,
        )
    axes.set(
        title=f"Their votes, on {len(members[0].ids)} validation images",
        xlabel="members that vote",
        ylabel="macro F1",
        xlim=(0.6, len(members) + 0.4),
    )
    axes.set_xticks(sizes)
    tidy(axes)


def score_vote(members: tuple[Predictions, ...]) -> float:
    """Macro F1 of a soft vote; all members predict the same rows in the same order."""
    first = members[0]
    if any(member.ids != first.ids for member in members):
        raise ValueError("the members must validate on the same rows")
    combined = combine_probs(np.stack([member.probs for member in members]), Combination())
    num_classes = combined.shape[1]
    confusion = metrics.confusion_matrix(first.labels, combined.argmax(axis=1), num_classes)
    return metrics.macro_f1(confusion)


def tidy(axes: Axes) -> None:
    """A light grid, and no box."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def read_val_f1(path: Path) -> np.ndarray:
    """`(num_epochs,)` of a training history."""
    with open(path, newline="", encoding="utf-8") as handle:
        return np.array([float(row["val_f1"]) for row in csv.DictReader(handle)])


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a table below its header."""
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))[1:]


if __name__ == "__main__":
    write_figure(draw_picture, TARGET)
    print(TARGET.relative_to(ROOT))
