"""When to ask a person instead: the confidence below which predictions are not sure enough.

Selective classification (El-Yaniv and Wiener, 2010; Geifman and El-Yaniv, 2017,
arXiv:1705.08500): the surest predictions are kept, as many as are right often enough.
"""

import dataclasses

import numpy as np

from pose.ensembling.selection import NUM_FOLDS, assign_folds
from pose.metrics import accuracy_of_surest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abstention:
    """Which predictions to keep.

    Attributes:
        target: the part of kept predictions that is to be right.
        threshold: predictions with a lower confidence are to be asked about; above 1: all are.
        coverage, accuracy: the part of rows that is kept, and the part of these that is right,
            where the threshold was chosen on other rows; an accuracy of 1 where nothing is kept.
        curve_coverage, curve_accuracy: `(N,)` of the k surest rows, k from 1.
    """

    target: float
    threshold: float
    coverage: float
    accuracy: float
    curve_coverage: np.ndarray
    curve_accuracy: np.ndarray

    def __str__(self) -> str:
        return (
            f"{self.coverage:.1%} of the predictions are kept, {self.accuracy:.1%} of them right "
            f"(asked for: {self.target:.1%}), on rows that the threshold {self.threshold:.3f} was "
            "not chosen on"
        )


def choose_threshold(
    confidence: np.ndarray,
    is_right: np.ndarray,
    labels: np.ndarray,
    target: float,
    groups: np.ndarray | None = None,
) -> Abstention:
    """The threshold that keeps most predictions while `target` of the kept ones are right.

    Args:
        confidence: `(N,)` calibrated probability of each predicted class.
        is_right: `(N,)` whether it is the true one.
        labels: `(N,)` class indices, for folds that have their share of each.
        groups: `(N,)`, equal for rows of which none decides about another; None: each is alone.
    """
    folds = assign_folds(labels, NUM_FOLDS, 0, groups)
    is_kept = np.zeros(len(confidence), dtype=bool)
    for fold in range(NUM_FOLDS):
        rest, own = folds != fold, folds == fold
        is_kept[own] = confidence[own] >= _threshold(confidence[rest], is_right[rest], target)
    coverage, accuracy = accuracy_of_surest(confidence, is_right)
    return Abstention(
        target=target,
        threshold=_threshold(confidence, is_right, target),
        coverage=float(is_kept.mean()),
        accuracy=float(is_right[is_kept].mean()) if is_kept.any() else 1.0,
        curve_coverage=coverage,
        curve_accuracy=accuracy,
    )


def _threshold(confidence: np.ndarray, is_right: np.ndarray, target: float) -> float:
    _, accuracy = accuracy_of_surest(confidence, is_right)
    enough = np.flatnonzero(accuracy >= target)
    if len(enough) == 0:
        return 2.0
    return float(np.sort(confidence)[::-1][enough[-1]])
