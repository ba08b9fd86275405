"""Scores predictions against the truth of the demo's test images; nothing else reads that."""

import collections
from pathlib import Path

import numpy as np

from pose import metrics
from pose.data.classes import sorted_texts
from pose.data.labels import read_label_rows
from pose.errors import InputError, first_few


def score_predictions(predictions: Path, folder: Path) -> str:
    """One line with the macro-F1 and accuracy of a predictions file (`id,label`).

    Args:
        folder: a data folder with `test_solution.csv`.

    Raises:
        InputError: a file is missing, or the ids are not those of the test images.
    """
    truth = _read(folder / "test_solution.csv")
    predicted = _read(predictions)
    if set(truth) != set(predicted):
        odd = sorted_texts(set(truth) ^ set(predicted))
        raise InputError(
            f"{predictions} must have the {len(truth)} ids of {folder / 'test_solution.csv'}, "
            f"found {len(predicted)}; differing: {first_few(odd)}"
        )
    index = {label: i for i, label in enumerate(sorted({*truth.values(), *predicted.values()}))}
    ids = list(truth)
    labels = np.array([index[truth[i]] for i in ids])
    preds = np.array([index[predicted[i]] for i in ids])
    confusion = metrics.confusion_matrix(labels, preds, len(index))
    return (
        f"test macro F1 {metrics.macro_f1(confusion):.4f}, "
        f"accuracy {metrics.accuracy(confusion):.4f} on {len(ids)} test images"
    )


def _read(path: Path) -> dict[str, str]:
    """The label of each id.

    Raises:
        InputError: the file cannot be read, or has an id twice.
    """
    if not path.is_file():
        raise InputError(f"{path} must be a file with the columns id,label, found none")
    rows = read_label_rows(path).rows
    labels = dict(rows)
    if len(labels) < len(rows):
        times = collections.Counter(image_id for image_id, _ in rows)
        twice = sorted_texts(image_id for image_id, number in times.items() if number > 1)
        raise InputError(f"{path} must have one row per id, found twice: {first_few(twice)}")
    return labels
