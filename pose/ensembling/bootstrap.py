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
    """Macro-F1 of each of `preds`: of the rows as they are, then of `NUM_SAMPLES` drawings.

    Rows of the same label and predictions are alike, so that a drawing is a multinomial one.
    """
    cells, counts = np.unique(np.stack([labels, *preds]), axis=1, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(labels), counts / len(labels), size=NUM_SAMPLES)
    weights = np.concatenate([counts[None], drawn])  # (1 + NUM_SAMPLES, cells)
    return [_macro_f1(weights, cells[0], own, num_classes) for own in cells[1:]]


def _macro_f1(
    weights: np.ndarray, labels: np.ndarray, preds: np.ndarray, num_classes: int
) -> np.ndarray:
    """`metrics.macro_f1` for each row of weights of cells `(B, K)`."""
    classes = np.arange(num_classes)
    is_label, is_pred = labels[:, None] == classes, preds[:, None] == classes  # (K, C)
    right = weights @ (is_label & is_pred)
    occurrences = weights @ (is_label.astype(int) + is_pred)
    scores = 2 * right / np.maximum(occurrences, 1)
    means: np.ndarray = scores.sum(axis=1) / (occurrences > 0).sum(axis=1)
    return means
