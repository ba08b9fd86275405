"""Draw docs/demo.png, the picture at the top of the README, from what `make demo` left behind.

    python -m scripts.draw_readme_picture

reads outputs/demo/ and demo/: a strip of drawn poses, the band of the seeds over epochs, and every
vote of one, two, three members on the test images, on which nothing was chosen.
"""

import csv
import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pose import metrics
from pose.data.folder import read_test_images
from pose.reports.plots import BEST_COLOR, VAL_COLOR, write_figure
from pose.seeds.folder import HISTORY, read_model
from pose.vote import combine_probs
from pose_models import Combination
from pose_models.decode import read_image

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
    """The whole picture, from the folders of the demo run."""
    folders = sorted(RUN.glob("seed_*"))
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.5))
    draw_poses(top.subplots(1, len(POSES)))
    left, right = bottom.subplots(1, 2, width_ratios=(1.7, 1))
    draw_band(left, {folder.name: read_val_f1(folder / HISTORY) for folder in folders})
    draw_votes(right, np.stack([predict_tests(folder) for folder in folders]), read_truth())
    return figure


def draw_poses(axes: np.ndarray) -> None:
    """The first labelled image of each of `POSES`."""
    label_of = {name: label for label, name, _ in read_rows(DATA / "classes.csv")}
    first_ids = {label: i for i, label in reversed(read_rows(DATA / "train_solution.csv"))}
    for one, name in zip(axes, POSES, strict=True):
        one.imshow(Image.open(DATA / "train_images" / f"{first_ids[label_of[name]]}.jpg"))
        title = name.removeprefix("Yoga_").removeprefix("Traffic_").replace("_", " ")
        one.set_title(title, fontsize=9)
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
    axes.set(
        title="Three seeds of one recipe",
        xlabel="epoch",
        ylabel="validation macro F1",
        xticks=epochs,
        # Below this lies the first epoch alone; on its scale the seeds would be one line.
        xlim=(1.6, len(epochs) + 0.2),
        ylim=(0.66, 0.96),
    )
    axes.legend(loc="lower right", frameon=False)
    tidy(axes)


def draw_votes(axes: Axes, probs: np.ndarray, labels: np.ndarray) -> None:
    """Macro F1 of every soft vote by the number of its members.

    Args:
        probs: `(M, N, C)` of the members.
        labels: `(N,)` class indices.
    """
    sizes = range(1, len(probs) + 1)
    means = []
    for size in sizes:
        votes = itertools.combinations(range(len(probs)), size)
        scores = [score_vote(probs[list(members)], labels) for members in votes]
        print(f"{size} members: {' '.join(f'{score:.4f}' for score in scores)}")
        means.append(float(np.mean(scores)))
        axes.plot([size] * len(scores), scores, "o", color=VAL_COLOR, alpha=0.75, markersize=8)
    axes.plot(sizes, means, "_-", color=BEST_COLOR, linewidth=1.4, markersize=18, zorder=0)
    axes.plot(sizes[-1], means[-1], "o", color=BEST_COLOR, markersize=11)
    for place, text, offset in ((0, "alone", (-16, -6)), (-1, "together", (0, 12))):
        axes.annotate(
            f"{text}: {means[place]:.3f}" if place else f"{text}:\n{means[place]:.3f}",
            (sizes[place], means[place]),
            xytext=offset,
            textcoords="offset points",
            ha="right" if place == 0 else "center",
            color=BEST_COLOR,
            fontsize=11,
        )
    axes.margins(y=0.18)
    axes.set(
        title=f"Their votes on {len(labels)} test images",
        xlabel="members that vote",
        ylabel="macro F1",
        xlim=(0.35, sizes[-1] + 0.5),
        xticks=sizes,
    )
    tidy(axes)


def score_vote(probs: np.ndarray, labels: np.ndarray) -> float:
    """Macro F1 of a soft vote of members `(M, N, C)`."""
    combined = combine_probs(probs, Combination())
    confusion = metrics.confusion_matrix(labels, combined.argmax(axis=1), combined.shape[1])
    return metrics.macro_f1(confusion)


def predict_tests(folder: Path) -> np.ndarray:
    """A seed's probabilities `(N, C)` for the test images, in the order of `read_test_images`."""
    model, card = read_model(folder)
    files = list(read_test_images(DATA).values())
    pixels = np.stack([read_image(path.read_bytes(), card.image_size) for path in files])
    with torch.inference_mode():
        batches = [model(batch).softmax(dim=1) for batch in torch.from_numpy(pixels).split(100)]
    return torch.cat(batches).numpy()


def read_truth() -> np.ndarray:
    """Class indices `(N,)` of the test images; the demo's labels are 0, 1, 2 and so on."""
    label_of = dict(read_rows(DATA / "test_solution.csv"))
    return np.array([int(label_of[image_id]) for image_id in read_test_images(DATA)])


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
