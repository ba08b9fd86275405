"""Probabilities that never travel without what they are about."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose.errors import InputError, one_line
from pose.files import read_bytes, reason_of, write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Probabilities with the images and classes that they are about.

    Attributes:
        ids: `(N,)`.
        probs: `(N, C)` float, rows sum to 1.
        class_labels: `(C,)` label of each column.
        labels: `(N,)` true class indices, where they are known.
        groups: `(N,)` what each image belongs to, equal for those that a split keeps together;
            None where every image stands alone.
    """

    ids: tuple[str, ...]
    probs: np.ndarray
    class_labels: tuple[str, ...]
    labels: np.ndarray | None = None
    groups: tuple[str, ...] | None = None

    def preds(self) -> np.ndarray:
        """Predicted class indices `(N,)`."""
        indices: np.ndarray = self.probs.argmax(axis=1)
        return indices

    def pred_labels(self) -> dict[str, str]:
        """The predicted class's label of each id."""
        return {
            image_id: self.class_labels[pred]
            for image_id, pred in zip(self.ids, self.preds(), strict=True)
        }

    def take(self, ids: Sequence[str]) -> "Predictions":
        """Those of `ids`, in that order.

        Raises:
            KeyError: there are none for an id.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        rows = [row_of[image_id] for image_id in ids]
        return dataclasses.replace(
            self,
            ids=tuple(ids),
            probs=self.probs[rows],
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """One row per image: id, label and group where known, pred, and `p_<label>` for each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    class_labels = predictions.class_labels
    columns: dict[str, Sequence[str]] = {"id": predictions.ids}
    if predictions.labels is not None:
        columns["label"] = [class_labels[label] for label in predictions.labels]
    if predictions.groups is not None:
        columns["group"] = predictions.groups
    columns["pred"] = [class_labels[pred] for pred in predictions.preds()]
    writer.writerow([*columns, *(f"p_{label}" for label in class_labels)])
    for row, probs in zip(zip(*columns.values(), strict=True), predictions.probs, strict=True):
        writer.writerow([*row, *(f"{value:.9g}" for value in probs)])
    write_text(path, text.getvalue())


def read_predictions(path: Path, name: str = "") -> Predictions:
    """What `write_predictions` wrote.

    Args:
        name: what an error calls them; default: their file.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        text = io.StringIO(read_bytes(path).decode(), newline="")
        header, *rows = csv.reader(text, strict=True)
        first = header.index("pred") + 1
        class_labels = tuple(text.removeprefix("p_") for text in header[first:])
        indices = {label: index for index, label in enumerate(class_labels)}
        columns = dict(zip(header[: first - 1], zip(*rows, strict=True), strict=False))
        labels = None
        if "label" in header[:first]:
            labels = np.array([indices[label] for label in columns.get("label", ())], dtype=int)
        probs = np.array([row[first:] for row in rows], dtype=np.float32)
        # Of members whose validation images are unknown there is not one row.
        probs = probs if rows else np.zeros((0, len(class_labels)), dtype=np.float32)
        if probs.shape != (len(rows), len(class_labels)) or not np.isfinite(probs).all():
            raise ValueError("rows that are not a probability for each class")
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        reason = reason_of(error) if isinstance(error, OSError) else one_line(error)
        raise InputError(f"{name or path} must be whole predictions, found: {reason}") from error
    return Predictions(
        ids=columns.get("id", ()),
        probs=probs,
        class_labels=class_labels,
        labels=labels,
        groups=columns.get("group"),
    )
