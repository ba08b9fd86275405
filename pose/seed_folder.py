"""The folder that one seed leaves behind: the only place that writes it.

<output_root>/<run_name>/seed_<seed>/
  last_ckpt.pth           to continue from
  training_history.csv    one row an epoch
  training_history.png
  confusion_matrix.png    of the best epoch, on the validation images
  val_predictions.csv     id, label, pred and a probability a class
  pose_cnn.pth            best weights by val_f1 (a state dict)
  config.json             all that rebuilds the model around the weights
"""

import csv
import dataclasses
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose import metrics, plots
from pose.classes import ClassList
from pose.errors import InputError
from pose.files import atomic_path, write_text
from pose.models import ImageClassifier, build_model

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_acc",
    "train_f1",
    "val_loss",
    "val_acc",
    "val_f1",
    "learning_rate",
    "epoch_seconds",
    "images_per_second",
)
CHECKPOINT = "last_ckpt.pth"
WEIGHTS = "pose_cnn.pth"
CONFIG = "config.json"
HISTORY = "training_history.csv"
VAL_PREDICTIONS = "val_predictions.csv"
CONFIG_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Probabilities that never travel without what they are about.

    Attributes:
        ids: `(N,)`.
        probs: `(N, C)` float32, rows sum to 1.
        class_labels: `(C,)` label of each column.
        labels: `(N,)` true class indices, where they are known.
    """

    ids: tuple[str, ...]
    probs: np.ndarray
    class_labels: tuple[str, ...]
    labels: np.ndarray | None = None


def write_checkpoint(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Replace the checkpoint; a kill at any moment leaves the old or the new one, whole."""
    with atomic_path(folder / CHECKPOINT) as partial:
        torch.save(checkpoint, partial)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU; no code of the file is run.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} must be a whole checkpoint, found a damaged one "
            f"({str(error).splitlines()[0][:100]}): remove it, or train with --fresh"
        ) from error


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Replace `training_history.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / HISTORY, text.getvalue())


def write_results(
    folder: Path,
    *,
    title: str,
    history: list[dict[str, float]],
    best_epoch: int,
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    val_predictions: Predictions,
    class_names: tuple[str, ...],
) -> None:
    """Write what a finished seed leaves beside its checkpoint."""
    write_history(folder, history)
    plots.plot_history(history, best_epoch, title, folder / "training_history.png")
    preds = val_predictions.probs.argmax(axis=1)
    confusion = metrics.confusion_matrix(val_predictions.labels, preds, len(class_names))
    score = metrics.macro_f1(confusion)
    plots.plot_confusion(
        confusion,
        class_names,
        f"{title}: validation macro F1 {score:.4f}",
        folder / "confusion_matrix.png",
    )
    write_predictions(folder / VAL_PREDICTIONS, val_predictions)
    with atomic_path(folder / WEIGHTS) as partial:
        torch.save(weights, partial)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """A row an image: id, label where it is known, pred, and `p_<label>` for each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    class_labels = predictions.class_labels
    label_column = [] if predictions.labels is None else ["label"]
    writer.writerow(["id", *label_column, "pred", *(f"p_{label}" for label in class_labels)])
    preds = predictions.probs.argmax(axis=1)
    for row, image_id in enumerate(predictions.ids):
        label = [] if predictions.labels is None else [class_labels[predictions.labels[row]]]
        probs = (f"{value:.9g}" for value in predictions.probs[row])
        writer.writerow([image_id, *label, class_labels[preds[row]], *probs])
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote."""
    with open(path, newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    first = header.index("pred") + 1
    class_labels = tuple(name.removeprefix("p_") for name in header[first:])
    indices = {label: index for index, label in enumerate(class_labels)}
    labels = np.array([indices[row[1]] for row in rows]) if header[1] == "label" else None
    return Predictions(
        ids=tuple(row[0] for row in rows),
        probs=np.array([row[first:] for row in rows], dtype=np.float32),
        class_labels=class_labels,
        labels=labels,
    )


def model_config(
    *, model: str, image_size: int, classes: ClassList, facts: dict[str, Any]
) -> dict[str, Any]:
    """The content of `config.json`: what `read_model` needs, then `facts` about the training."""
    return {
        "format": CONFIG_FORMAT,
        "model": model,
        "image_size": image_size,
        "labels": list(classes.labels),
        "names": list(classes.names),
        "mirrors": list(classes.mirrors),
        **facts,
    }


def read_model(folder: Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The trained model in a folder with `config.json` and `pose_cnn.pth`, in evaluation mode.

    Runs no code from the files: the network is rebuilt by its name.

    Raises:
        InputError: a file is missing or damaged, or from a newer version of this software.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} must hold a readable {CONFIG}, found: {error}") from error
    if config["format"] > CONFIG_FORMAT:
        raise InputError(
            f"{folder / CONFIG} must be of format {CONFIG_FORMAT}, found {config['format']}: "
            "update this software"
        )
    model = build_model(config["model"], config["labels"], config["image_size"])
    model.load_state_dict(read_checkpoint(folder / WEIGHTS))
    return model.eval(), config
