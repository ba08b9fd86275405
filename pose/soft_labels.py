"""The soft labels that a student learns: where they lie, and how they fit its rows.

What they are is made in `pose.distil`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose.errors import InputError, first_few
from pose.predictions import read_predictions


def soft_labels_path(cache_root: Path, teachers: str, folder: Path) -> Path:
    """The file of what these teachers say of the labelled images of a data folder.

    Args:
        teachers: digest of their weights.
    """
    place = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()
    return cache_root / "soft_labels" / f"{teachers[:16]}_{place[:16]}.csv"


def read_soft_labels(path: Path, ids: Sequence[str], class_labels: Sequence[str]) -> np.ndarray:
    """Probabilities `(N, C)` float32 for the rows of `ids`.

    Raises:
        InputError: they are gone, or of other images or classes.
    """
    found = read_predictions(path, "the soft labels of distil")
    missing = sorted(set(ids) - set(found.ids))
    if missing or found.class_labels != tuple(class_labels):
        raise InputError(
            "the soft labels of distil must be of the images and classes that are trained on, "
            f"found none of {first_few(missing) or 'these classes'}: were images added meanwhile? "
            "Repeat the train command"
        )
    probs: np.ndarray = found.take(ids).probs.astype(np.float32)
    return probs
