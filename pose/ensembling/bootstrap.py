"""How far a score could be off: the percentile bootstrap over rows (Efron, 1979).

Rows of one group (the images of one patient, copies of one picture) are drawn together: they say
less than as many that stand alone (Davison and Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

NUM_SAMPLES = 2000
# What an interval is to cover.
LEVEL = 0.95
# Drawings that are counted at the same time.
_CHUNK = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the interval that the bootstrap gives it.

    Attributes:
        value: on the rows as they are.
        low, high: percentiles of the value on rows drawn from them with replacement.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def f1_interval(
    labels: np.ndarray, preds: np.ndarray, num_classes: int, groups: np.ndarray | None = None
) -> Interval:
    """Macro-F1 of predictions `(N,)` of labels `(N,)`, class indices both.

    Args:
        groups: `(N,)`, equal for rows that are drawn together; None: each by itself.
    """
    (scores,) = _sampled(labels, [preds], num_classes, groups)
    return _interval(scores)


def gain_interval(
    labels: np.ndarray,
    preds: np.ndarray,
    base: np.ndarray,
    num_classes: int,
    groups: np.ndarray | None = None,
) -> Interval:
    """How much higher the macro-F1 of `preds` is than that of `base`, on the same drawn rows."""
    scores, base_scores = _sampled(labels, [preds, base], num_classes, groups)
    return _interval(scores - base_scores)


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The mean of values `(N,)`."""
    rng = np.random.default_rng(0)
    if groups is None:
        drawn = [rng.choice(values, size=len(values)).mean() for _ in range(NUM_SAMPLES)]
        return _interval(np.array([values.mean(), *drawn]))
    _, group_of = np.unique(groups, return_inverse=True)
    parts = np.stack([np.bincount(group_of, weights=values), np.bincount(group_of)], axis=1)
    sums = np.concatenate([times @ parts for times in _drawn_groups(len(parts))])
    return _interval(np.append(values.mean(), sums[:, 0] / sums[:, 1]))


def _interval(values: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Interval(value=float(values[0]), low=float(low), high=float(high))


def _sampled(
    labels: np.ndarray, preds: list[np.ndarray], num_classes: int, groups: np.ndarray | None
) -> list[np.ndarray]:
    """Macro-F1 of each of `preds`: of the rows as they are, then of `NUM_SAMPLES` drawings."""
    weights, cells = row_weights(labels, preds, groups)
    return [macro_of(class_f1(weights, cells[0], own, num_classes)) for own in cells[1:]]


def row_weights(
    labels: np.ndarray, preds: list[np.ndarray], groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How often rows occur, `(1 + NUM_SAMPLES, K)`: as they are, then drawn with replacement.

    Rows of the same label and predictions are alike, so that a drawing is a multinomial one; the
    K cells that they fall into are `(1 + len(preds), K)`, label and predictions.

    Args:
        groups: `(N,)`, equal for rows that are drawn together; None: each by itself.
    """
    cells, cell_of, counts = np.unique(
        np.stack([labels, *preds]), axis=1, return_inverse=True, return_counts=True
    )
    if groups is None:
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(len(labels), counts / len(labels), size=NUM_SAMPLES)
    else:
        _, group_of = np.unique(groups, return_inverse=True)
        table = np.zeros((group_of.max() + 1, len(counts)), dtype=np.int64)
        np.add.at(table, (group_of, cell_of.ravel()), 1)
        drawn = np.concatenate([times @ table for times in _drawn_groups(len(table))])
    return np.concatenate([counts[None], drawn]), cells


def _drawn_groups(num_groups: int) -> Iterator[np.ndarray]:
    """How often each of G groups is drawn in `NUM_SAMPLES` drawings of G: `(n, G)`, in parts."""
    rng = np.random.default_rng(0)
    for start in range(0, NUM_SAMPLES, _CHUNK):
        num = min(_CHUNK, NUM_SAMPLES - start)
        yield rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num)


def class_f1(
    weights: np.ndarray, labels: np.ndarray, preds: np.ndarray, num_classes: int
) -> np.ndarray:
    """The F1 of each class `(B, C)` for each row of weights of cells `(B, K)`.

    NaN where a class occurs neither as label nor as prediction.
    """
    classes = np.arange(num_classes)
    is_label, is_pred = labels[:, None] == classes, preds[:, None] == classes  # (K, C)
    right = weights @ (is_label & is_pred)
    occurrences = weights @ (is_label.astype(int) + is_pred)
    scores: np.ndarray = np.where(occurrences > 0, 2 * right / np.maximum(occurrences, 1), np.nan)
    return scores


def macro_of(scores: np.ndarray) -> np.ndarray:
    """The mean `(B,)` of the F1 of those classes that occur, as `metrics.macro_f1` has it."""
    means: np.ndarray = np.nansum(scores, axis=1) / np.isfinite(scores).sum(axis=1)
    return means
