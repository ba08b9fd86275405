"""How far a score could be off: the percentile bootstrap over rows (Efron, 1979)."""

import dataclasses

import numpy as np

NUM_SAMPLES = 2000
# What an interval is to cover.
LEVEL = 0.95


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


def f1_interval(labels: np.ndarray, preds: np.ndarray, num_classes: int) -> Interval:
    """Macro-F1 of predictions `(N,)` of labels `(N,)`, class indices both."""
    (scores,) = _sampled(labels, [preds], num_classes)
    return _interval(scores)


def gain_interval(
    labels: np.ndarray, preds: np.ndarray, base: np.ndarray, num_classes: int
) -> Interval:
    """How much higher the macro-F1 of `preds` is than that of `base`, on the same drawn rows."""
    scores, base_scores = _sampled(labels, [preds, base], num_classes)
    return _interval(scores - base_scores)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of values `(N,)`."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(values, size=len(values)).mean() for _ in range(NUM_SAMPLES)]
    return _interval(np.array([values.mean(), *drawn]))


def _interval(values: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Interval(value=float(values[0]), low=float(low), high=float(high))


def _sampled(labels: np.ndarray, preds: list[np.ndarray], num_classes: int) -> list[np.ndarray]:
    """Macro-F1 of each of `preds`: of the rows as they are, then of `NUM_SAMPLES` drawings."""
    weights, cells = row_weights(labels, preds)
    return [macro_of(class_f1(weights, cells[0], own, num_classes)) for own in cells[1:]]


def row_weights(labels: np.ndarray, preds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How often rows occur, `(1 + NUM_SAMPLES, K)`: as they are, then drawn with replacement.

    Rows of the same label and predictions are alike, so that a drawing is a multinomial one; the
    K cells that they fall into are `(1 + len(preds), K)`, label and predictions.
    """
    cells, counts = np.unique(np.stack([labels, *preds]), axis=1, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(labels), counts / len(labels), size=NUM_SAMPLES)
    return np.concatenate([counts[None], drawn]), cells


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
