"""Vector scaling: probabilities calibrated by a scale and a bias for each class.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017, arXiv:1706.04599.
A temperature makes all classes more or less sure; this also mends classes that are predicted too
often. It has two parameters per class, and may change which class is the most probable.
"""

import numpy as np

from pose import metrics

# Fewer rows of a class say too little of its two parameters.
MIN_ROWS_PER_CLASS = 20
# Of the square distance from the temperature alone, in nats: that of a unit Gaussian.
_RIDGE = 1.0
_MIN_PROB = 1e-12
_NUM_STEPS = 30


def allows_scales(labels: np.ndarray, num_classes: int) -> bool:
    """Whether rows with these class indices are enough for vector scaling."""
    counts = np.bincount(labels, minlength=num_classes)
    return bool(counts.min() >= MIN_ROWS_PER_CLASS)


def fit_scales(
    probs: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """The scales and biases with the lowest NLL, by Newton's method; it is convex in them.

    Args:
        probs: `(N, C)`.
        labels: `(N,)`.
        temperature: the best one, from which it starts and is held by a ridge.

    Returns:
        Scales and biases of log-probabilities, `(C,)` each.
    """
    logs = np.log(np.maximum(probs, _MIN_PROB))
    start = np.repeat([1 / temperature, 0.0], logs.shape[1])
    values = start.copy()
    loss = _loss(values, start, logs, labels)
    for _ in range(_NUM_STEPS):
        gradient, curvature = _derivatives(values, start, logs, labels)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (new := _loss(values - size * step, start, logs, labels)) > loss and size > 1e-6:
            size /= 2
        if new > loss:
            break
        values, gain, loss = values - size * step, loss - new, new
        if gain < 1e-9 * len(labels):
            break
    scales, biases = np.split(values, 2)
    return scales, biases


def scaled(logs: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """The probabilities `(N, C)` of scaled log-probabilities."""
    logits = logs * scales + biases
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probs


def _loss(values: np.ndarray, start: np.ndarray, logs: np.ndarray, labels: np.ndarray) -> float:
    """The NLL of all rows, in nats, and the ridge."""
    probs = scaled(logs, *np.split(values, 2))
    ridge = _RIDGE / 2 * float(((values - start) ** 2).sum())
    return len(labels) * metrics.nll(probs, labels) + ridge


def _derivatives(
    values: np.ndarray, start: np.ndarray, logs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient `(2C,)` of `_loss` and its Hessian `(2C, 2C)`."""
    probs = scaled(logs, *np.split(values, 2))
    errors = probs.copy()
    errors[np.arange(len(labels)), labels] -= 1
    gradient = np.concatenate([(errors * logs).sum(axis=0), errors.sum(axis=0)])
    both = np.concatenate([probs * logs, probs], axis=1)  # (N, 2C)
    means = both.sum(axis=0)
    squares, crossed, plain = (probs * logs**2).sum(axis=0), *np.split(means, 2)
    curvature = np.block([[np.diag(squares), np.diag(crossed)], [np.diag(crossed), np.diag(plain)]])
    curvature += _RIDGE * np.eye(len(values)) - both.T @ both
    return gradient + _RIDGE * (values - start), curvature
