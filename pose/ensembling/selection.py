"""Which combination is taken, and its score on rows that it was not fitted on.

Everything is cross-fitted: a row's prediction comes from a combination that was chosen and fitted
without it. What is fitted sees only rows that no voting member trained on, or, of a seed with
folds, the member that did not train on them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pose.ensembling.bootstrap import Interval, gain_interval
from pose.ensembling.fit import Combine, FitSpec, fit
from pose.metrics import f1_of
from pose_models.combination import RULES, Combination

NUM_FOLDS = 5
NUM_INNER_FOLDS = 3
# Fewer rows, or fewer of a class, say too little to fit anything to.
MIN_ROWS = 100
MIN_ROWS_PER_CLASS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """Each row's combined probabilities `(N, C)`, decided without that row.

    Attributes:
        probs: with offsets; their argmax is the prediction.
        calibrated: without offsets.
        raw: without offsets and temperature.
    """

    probs: np.ndarray
    calibrated: np.ndarray
    raw: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """A combination that was chosen or fitted.

    Attributes:
        how: fitted on all rows.
        rows: what such a combination makes of each row that it was not chosen or fitted on.
        labels: `(N,)` class indices of the rows.
        rule_scores: cross-fitted macro-F1 of each rule that was tried.
        gain: of the choice over soft voting, in macro-F1, where there was a choice.
    """

    how: Combination
    rows: CrossFitted
    labels: np.ndarray
    rule_scores: dict[str, float]
    gain: Interval | None = None

    def note(self) -> str:
        """What was decided, and why."""
        if self.gain is None:
            return f"{self.how.rule}, as asked"
        if self.how.rule == "soft":
            return f"soft: the best of the rules gains {self.gain}, which is within noise"
        return f"{self.how.rule}: a gain of {self.gain} over soft"


def too_few(labels: np.ndarray, class_labels: Sequence[str]) -> str | None:
    """Why rows with these class indices are too few to fit anything to; None if they are enough."""
    if len(labels) < MIN_ROWS:
        return f"{len(labels)} common rows, fewer than {MIN_ROWS}"
    counts = np.bincount(labels, minlength=len(class_labels))
    if counts.min() < MIN_ROWS_PER_CLASS:
        rare = class_labels[int(counts.argmin())]
        return f"{counts.min()} common rows of class {rare}, fewer than {MIN_ROWS_PER_CLASS}"
    return None


def select(probs: np.ndarray, labels: np.ndarray, spec: FitSpec, combine: Combine) -> Selection:
    """The combination of `spec`; of the rule `auto`, the best one, or soft where none is better.

    Args:
        probs: `(G, N, C)` of groups of members that did not train on the rows.
        labels: `(N,)` class indices.
    """
    rules = RULES if spec.rule == "auto" else (spec.rule,)
    specs = [dataclasses.replace(spec, rule=rule) for rule in rules]
    folds = assign_folds(labels, NUM_FOLDS, spec.seed)
    fitted = {own.rule: _cross_fit(probs, labels, [own], combine, folds) for own in specs}
    scores = {rule: f1_of(own.probs, labels) for rule, own in fitted.items()}
    if spec.rule != "auto":
        return Selection(
            how=fit(probs, labels, spec, combine),
            rows=fitted[spec.rule],
            labels=labels,
            rule_scores=scores,
        )
    nested = _cross_fit(probs, labels, specs, combine, folds)
    preds, soft_preds = (own.probs.argmax(axis=1) for own in (nested, fitted["soft"]))
    gain = gain_interval(labels, preds, soft_preds, probs.shape[2])
    best = max(specs, key=lambda own: scores[own.rule])
    is_better = gain.low > 0 and best.rule != "soft"
    chosen = best if is_better else dataclasses.replace(spec, rule="soft")
    return Selection(
        how=fit(probs, labels, chosen, combine),
        rows=nested if is_better else fitted["soft"],
        labels=labels,
        rule_scores=scores,
        gain=gain,
    )


def assign_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """The fold `(N,)` of each row, drawn so that every fold has its share of every class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


def _cross_fit(
    probs: np.ndarray,
    labels: np.ndarray,
    specs: Sequence[FitSpec],
    combine: Combine,
    folds: np.ndarray,
) -> CrossFitted:
    """What the best of `specs` makes of each row, chosen and fitted on the other folds."""
    combined = [np.empty(probs.shape[1:]) for _ in range(3)]
    for fold in np.unique(folds):
        rest, own = folds != fold, folds == fold
        spec = _best(probs[:, rest], labels[rest], specs, combine)
        how = fit(probs[:, rest], labels[rest], spec, combine)
        calibrated = dataclasses.replace(how, offsets=())
        raw = dataclasses.replace(calibrated, temperature=1.0)
        for place, stage in zip(combined, (how, calibrated, raw), strict=True):
            place[own] = combine(probs[:, own], stage)
    return CrossFitted(probs=combined[0], calibrated=combined[1], raw=combined[2])


def _best(
    probs: np.ndarray, labels: np.ndarray, specs: Sequence[FitSpec], combine: Combine
) -> FitSpec:
    """The one with the highest cross-fitted macro-F1; the first of equals."""
    if len(specs) == 1:
        return specs[0]
    folds = assign_folds(labels, NUM_INNER_FOLDS, specs[0].seed)
    scores = [
        f1_of(_cross_fit(probs, labels, [spec], combine, folds).probs, labels) for spec in specs
    ]
    return specs[int(np.argmax(scores))]
