"""Scores of predictions, as pure functions on NumPy arrays."""

import numpy as np


def confusion_matrix(labels: np.ndarray, preds: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `(num_classes, num_classes)` int64: row the label, column the prediction."""
    flat = np.bincount(labels * num_classes + preds, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def accuracy(confusion: np.ndarray) -> float:
    """Part of the predictions that are right, in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: np.ndarray) -> float:
    """Mean F1 over the classes that occur as a label or a prediction, in [0, 1].

    Equals scikit-learn's `f1_score(labels, preds, average="macro")`.
    """
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    occurs = occurrences > 0
    return float(np.mean(2 * np.diag(confusion)[occurs] / occurrences[occurs]))


def f1_of(probs: np.ndarray, labels: np.ndarray) -> float:
    """Macro-F1 of the likeliest classes of `probs` `(N, C)`, of any scale."""
    return macro_f1(confusion_matrix(labels, probs.argmax(axis=1), probs.shape[1]))


def nll(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of `labels` `(N,)` under `probs` `(N, C)`, in nats."""
    own = probs[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())


def ece(probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error over bins of equal width (Guo et al., 2017, arXiv:1706.04599).

    Args:
        probs: `(N, C)`, rows sum to 1.
        labels: `(N,)` class indices.

    Returns:
        Mean distance between confidence and accuracy, weighted by bin size, in [0, 1].
    """
    bins, confidence, is_right = _binned(probs, labels, num_bins)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def brier(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of `probs` `(N, C)` from the true classes, in [0, 2] (Brier, 1950)."""
    errors = probs.copy()
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(axis=1).mean())


def per_class(confusion: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 of each class, `(C, 3)` in [0, 1]; 0 where there is no case.

    Equals scikit-learn's `precision_recall_fscore_support(zero_division=0)`.
    """
    right = np.diag(confusion)
    predicted, labelled = confusion.sum(axis=0), confusion.sum(axis=1)
    return np.stack(
        [
            right / np.maximum(1, predicted),
            right / np.maximum(1, labelled),
            2 * right / np.maximum(1, predicted + labelled),
        ],
        axis=1,
    )


def reliability(
    probs: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and number of rows of each bin of `ece` that has rows."""
    bins, confidence, is_right = _binned(probs, labels, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    has_rows = counts > 0
    means = [
        np.bincount(bins, weights=values, minlength=num_bins)[has_rows] / counts[has_rows]
        for values in (confidence, is_right)
    ]
    return means[0], means[1], counts[has_rows]


def _binned(
    probs: np.ndarray, labels: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bin of each row by its confidence, the confidence, and whether it is right; `(N,)`."""
    confidence = probs.max(axis=1)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    return bins, confidence, probs.argmax(axis=1) == labels


def calibration_scores(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How far probabilities can be believed: NLL in nats, ECE and Brier score, by name."""
    return {
        "nll": nll(probs, labels),
        "ece": ece(probs, labels),
        "brier": brier(probs, labels),
    }


def accuracy_of_surest(
    confidence: np.ndarray, is_right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The part of all rows and the part that is right, `(N,)`, of the k surest, k from 1.

    Equally confident rows come in their order.
    """
    order = np.argsort(-confidence, kind="stable")
    numbers = np.arange(1, len(order) + 1)
    return numbers / len(order), np.cumsum(is_right[order]) / numbers


def risk_coverage(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk `(N,)` when only the most confident rows are answered.

    Risk is the part of the answers that are wrong (El-Yaniv and Wiener, 2010).
    """
    coverage, accuracy = accuracy_of_surest(probs.max(axis=1), probs.argmax(axis=1) == labels)
    return coverage, 1 - accuracy
