"""Combinations fitted to labelled rows that no member trained on.

Everything here sees `probs` `(G, N, C)` of G groups of members (or single ones), N rows, C classes,
and `labels` `(N,)`. Who sees which rows is decided by `pose.ensembling.selection`.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pose import metrics
from pose.ensembling.scaling import fit_scales
from pose_models.combination import UNFITTED, Combination

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# The members' probabilities `(M, N, C)` combined, `(N, C)`.
Combine = Callable[[np.ndarray, Combination], np.ndarray]

# Inverse strengths of the ridge that stacking chooses from.
_RIDGES = (0.01, 0.1, 1.0)
_TEMPERATURES = np.geomspace(0.2, 5.0, 161)
_OFFSETS = np.arange(-30, 31) / 10
_MIN_PROB = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSpec:
    """What is fitted.

    Attributes:
        rule: one of `pose_models.combination.RULES`, or `auto`.
        has_temperature: whether probabilities are calibrated.
        has_scales: whether by vector scaling in place of a temperature.
        has_offsets: whether classes get offsets, for a higher macro-F1.
        seed: of everything that is drawn.
    """

    rule: str = "soft"
    has_temperature: bool = False
    has_scales: bool = False
    has_offsets: bool = False
    seed: int = 0

    @property
    def is_fitted(self) -> bool:
        """Whether labels decide anything."""
        return self.rule not in UNFITTED or self.has_temperature or self.has_offsets


def fit(probs: np.ndarray, labels: np.ndarray, spec: FitSpec, combine: Combine) -> Combination:
    """The combination of `spec` with the parameters that suit these rows best."""
    if spec.rule == "weighted":
        how = Combination(rule="weighted", weights=_as_tuple(mixture_weights(probs, labels)))
    elif spec.rule == "greedy":
        weights = greedy_weights(probs, labels, np.random.default_rng(spec.seed))
        how = Combination(rule="greedy", weights=_as_tuple(weights))
    elif spec.rule == "stacking":
        how = _fit_stacking(probs, labels, np.random.default_rng(spec.seed))
    else:
        how = Combination(rule=spec.rule)
    if spec.has_temperature:
        how = _calibrate(how, combine(probs, how), labels, spec.has_scales)
    if spec.has_offsets:
        offsets = fit_offsets(combine(probs, how), labels)
        how = dataclasses.replace(how, offsets=_as_tuple(offsets))
    return how


def _calibrate(
    how: Combination, combined: np.ndarray, labels: np.ndarray, has_scales: bool
) -> Combination:
    """The combination whose probabilities are `combined` `(N, C)`, calibrated."""
    temperature = fit_temperature(combined, labels)
    if not has_scales:
        return dataclasses.replace(how, temperature=temperature)
    scales, biases = fit_scales(combined, labels, temperature)
    return dataclasses.replace(how, scales=_as_tuple(scales), biases=_as_tuple(biases))


def mixture_weights(probs: np.ndarray, labels: np.ndarray, num_steps: int = 200) -> np.ndarray:
    """The weights `(G,)`, sum 1, of the weighted mean with the lowest NLL.

    Expectation maximization of a mixture's proportions (Dempster, Laird and Rubin, 1977). The
    likelihood is concave in them, so that it ends at the best ones from anywhere.
    """
    own = np.maximum(probs[:, np.arange(len(labels)), labels], _MIN_PROB)  # (G, N)
    weights = np.full(len(probs), 1 / len(probs))
    for _ in range(num_steps):
        shares = weights[:, None] * own
        weights = (shares / shares.sum(axis=0)).mean(axis=1)
    return weights


def greedy_weights(
    probs: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    num_bags: int = 5,
    num_rounds: int = 12,
) -> np.ndarray:
    """The weights `(G,)`, sum 1, of ensemble selection with replacement and bagging.

    Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models" (2004):
    round by round the candidate is added that makes macro-F1 the highest (of equals, the one with
    the lowest NLL), and the best round is kept. Each bag draws rows, and the bags' selections are
    averaged. In the paper bags draw models: of a handful, every other bag would lack the best.
    """
    num_groups, num_rows, _ = probs.shape
    counts = np.zeros(num_groups)
    for _ in range(num_bags):
        drawn = rng.integers(0, num_rows, size=num_rows)
        picks = _select(probs[:, drawn], labels[drawn], num_rounds)
        counts += np.bincount(picks, minlength=num_groups) / len(picks)
    weights: np.ndarray = counts / counts.sum()
    return weights


def _select(probs: np.ndarray, labels: np.ndarray, num_rounds: int) -> list[int]:
    """The candidates that forward selection picks, up to its best round."""
    total = np.zeros(probs.shape[1:])
    picks: list[int] = []
    best, num_best = -np.inf, 1
    for _ in range(num_rounds):
        sums = total + probs
        scores = np.array([metrics.f1_of(own, labels) for own in sums])
        equals = np.flatnonzero(scores == scores.max())
        pick = min(equals, key=lambda number: metrics.nll(_normed(sums[number]), labels))
        picks.append(int(pick))
        total = sums[pick]
        if scores[pick] > best:
            best, num_best = scores[pick], len(picks)
    return picks[:num_best]


def _normed(sums: np.ndarray) -> np.ndarray:
    probs: np.ndarray = sums / sums.sum(axis=1, keepdims=True)
    return probs


def _fit_stacking(probs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Combination:
    """Multinomial logistic regression on log-probabilities; its ridge is chosen on a third."""
    num_groups, num_rows, num_classes = probs.shape
    if len(np.unique(labels)) < num_classes:
        # A part of the rows may lack a class where groups are few: of it nothing is to be learned.
        return Combination(rule="soft")
    features = np.log(np.maximum(probs, _MIN_PROB)).transpose(1, 0, 2).reshape(num_rows, -1)
    order = rng.permutation(num_rows)
    held_out, rest = order[: num_rows // 3], order[num_rows // 3 :]
    ridge = _RIDGES[0]
    if set(labels[rest]) == set(labels):
        fitted = {c: _regress(features[rest], labels[rest], c) for c in _RIDGES}
        ridge = min(_RIDGES, key=lambda c: _nll_of(features[held_out], labels[held_out], fitted[c]))
    model = _regress(features, labels, ridge)
    coefficients, intercepts = model.coef_, model.intercept_
    if num_classes == 2:
        # Of two classes, scikit-learn keeps the second one's advantage alone.
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    return Combination(
        rule="stacking",
        coefficients=tuple(_as_tuple(row) for row in coefficients),
        intercepts=_as_tuple(intercepts),
    )


def _regress(features: np.ndarray, labels: np.ndarray, ridge: float) -> "LogisticRegression":
    # Imported here: it brings SciPy along, for a second or two, and training has no use for it.
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=ridge, max_iter=1000, tol=1e-3).fit(features, labels)


def _nll_of(features: np.ndarray, labels: np.ndarray, model: "LogisticRegression") -> float:
    return metrics.nll(model.predict_proba(features), labels)


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest NLL, to 2 % (Guo et al., 2017, arXiv:1706.04599)."""
    logs = np.log(np.maximum(probs, _MIN_PROB))
    own = logs[np.arange(len(labels)), labels]
    losses = []
    for temperature in _TEMPERATURES:
        scaled = logs / temperature
        top = scaled.max(axis=1)
        sums = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        losses.append(float((sums - own / temperature).mean()))
    return float(_TEMPERATURES[int(np.argmin(losses))])


def fit_offsets(probs: np.ndarray, labels: np.ndarray, num_sweeps: int = 2) -> np.ndarray:
    """The offsets `(C,)` of log-probabilities with the highest macro-F1, class by class.

    An offset counts as good as the mean of it and its four neighbours, so that a peak that few rows
    make is not taken for one; of equals the smallest.
    """
    logs = np.log(np.maximum(probs, _MIN_PROB))
    offsets = np.zeros(logs.shape[1])
    for _ in range(num_sweeps):
        for column in range(logs.shape[1]):
            scores = []
            for offset in _OFFSETS:
                tried = offsets.copy()
                tried[column] = offset
                scores.append(metrics.f1_of(logs + tried, labels))
            offsets[column] = _steadiest(np.array(scores))
    centred: np.ndarray = offsets - offsets.mean()
    return centred


def _steadiest(scores: np.ndarray) -> float:
    smooth = np.convolve(np.pad(scores, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    is_best = smooth >= smooth.max() - 1e-12
    candidates = _OFFSETS[is_best]
    return float(candidates[np.abs(candidates).argmin()])


def _as_tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
