"""Which combination is taken, and its score on rows that it was not fitted on.

Everything is cross-fitted: a row's prediction comes from a combination that was chosen and fitted
without it. What is fitted sees only rows that no voting member trained on, or, of a seed with
folds, the member that did not train on them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pose.data.group_split import share_groups
from pose.ensembling.bootstrap import Interval, gain_interval, mean_interval
from pose.ensembling.fit import Combine, FitSpec, fit
from pose.ensembling.scaling import allows_scales
from pose.metrics import f1_of
from pose_models.combination import RULES, Combination

NUM_FOLDS = 5
NUM_INNER_FOLDS = 3
# Fewer rows, or fewer of a class, say too little to fit anything to.
MIN_ROWS = 100
MIN_ROWS_PER_CLASS = 5
_MIN_PROB = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """Each row's combined probabilities `(N, C)`, decided without that row.

    Attributes:
        probs: with offsets; their argmax is the prediction.
        calibrated: without offsets.
        raw: without offsets and calibration.
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
        groups: `(N,)`, equal for rows that belong together; None where each stands alone.
        rule_scores: cross-fitted macro-F1 of each rule that was tried.
        gain: of the choice over soft voting, in macro-F1, where there was a choice.
        scaling: what vector scaling would do; None where there is no calibration, or too few rows.
    """

    how: Combination
    rows: CrossFitted
    labels: np.ndarray
    rule_scores: dict[str, float]
    groups: np.ndarray | None = None
    gain: Interval | None = None
    scaling: "ScalingTrial | None" = None

    def note(self) -> str:
        """What was decided, and why."""
        if self.gain is None:
            return f"{self.how.rule}, as asked"
        if self.how.rule == "soft":
            return f"soft: the best of the rules gains {self.gain}, which is within noise"
        return f"{self.how.rule}: a gain of {self.gain} over soft"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingTrial:
    """Vector scaling beside a temperature, both cross-fitted.

    Attributes:
        nll_gain: by how many nats it lowers the mean NLL.
        f1_gain: by how much it changes macro-F1.
    """

    nll_gain: Interval
    f1_gain: float

    @property
    def is_taken(self) -> bool:
        """Whether probabilities get better beyond noise, and decisions no worse."""
        return self.nll_gain.low > 0 and self.f1_gain >= 0

    def note(self) -> str:
        """What came of it."""
        if self.is_taken:
            return f"vector scaling lowers the NLL by {self.nll_gain} beside a temperature"
        if self.nll_gain.low > 0:
            return (
                f"vector scaling lowers the NLL by {self.nll_gain}, but macro F1 by "
                f"{-self.f1_gain:.4f}: a temperature"
            )
        return f"vector scaling lowers the NLL by {self.nll_gain}, which is within noise"


def too_few(
    labels: np.ndarray, class_labels: Sequence[str], groups: np.ndarray | None = None
) -> str | None:
    """Why rows with these class indices are too few to fit anything to; None if they are enough.

    Args:
        groups: `(N,)`, equal for rows that belong together, which count as one of each class.
    """
    if len(labels) < MIN_ROWS:
        return f"{len(labels)} common rows, fewer than {MIN_ROWS}"
    what = "common rows" if groups is None else "groups of common rows"
    if groups is not None:
        labels, _ = np.unique(np.stack([labels, groups]), axis=1)
    counts = np.bincount(labels, minlength=len(class_labels))
    if counts.min() < MIN_ROWS_PER_CLASS:
        rare = class_labels[int(counts.argmin())]
        return f"{counts.min()} {what} of class {rare}, fewer than {MIN_ROWS_PER_CLASS}"
    return None


def select(
    probs: np.ndarray,
    labels: np.ndarray,
    spec: FitSpec,
    combine: Combine,
    whole: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Selection:
    """The combination of `spec`; of the rule `auto`, the best one, or soft where none is better.

    Args:
        probs: `(G, N, C)` of groups of members that did not train on the rows.
        labels: `(N,)` class indices.
        whole: what the combination is fitted to in the end, where that is something else than
            `probs`: these by views that were chosen on all rows, those on all other rows.
        groups: `(N,)`, equal for rows of which none decides about another; None: each is alone.
    """
    rules = RULES if spec.rule == "auto" else (spec.rule,)
    specs = [dataclasses.replace(spec, rule=rule) for rule in rules]
    folds = assign_folds(labels, NUM_FOLDS, spec.seed, groups)
    fitted = {own.rule: _cross_fit(probs, labels, [own] * NUM_FOLDS, combine, folds)
              for own in specs}  # fmt: skip
    scores = {rule: f1_of(own.probs, labels) for rule, own in fitted.items()}
    chosen, picks, gain = specs[0], specs[:1] * NUM_FOLDS, None
    rows = fitted[chosen.rule]
    if spec.rule == "auto":
        nested_picks = _pick(probs, labels, specs, combine, folds, groups)
        nested = _cross_fit(probs, labels, nested_picks, combine, folds)
        gain = _gain(nested, fitted["soft"], labels, groups)
        best = max(specs, key=lambda own: scores[own.rule])
        if gain.low > 0 and best.rule != "soft":
            chosen, picks, rows = best, nested_picks, nested
    scaling = None
    if spec.has_temperature and allows_scales(labels, probs.shape[2]):
        # By the same rules, fold by fold, so that nothing but the calibration differs.
        scaled = [dataclasses.replace(own, has_scales=True) for own in picks]
        scaled_rows = _cross_fit(probs, labels, scaled, combine, folds)
        scaling = _try_scaling(scaled_rows, rows, labels, groups)
        if scaling.is_taken:
            chosen, rows = dataclasses.replace(chosen, has_scales=True), scaled_rows
    return Selection(
        how=fit(probs if whole is None else whole, labels, chosen, combine),
        rows=rows,
        labels=labels,
        groups=groups,
        rule_scores=scores,
        gain=gain,
        scaling=scaling,
    )


def _gain(
    better: CrossFitted, base: CrossFitted, labels: np.ndarray, groups: np.ndarray | None
) -> Interval:
    """Of macro-F1."""
    preds, base_preds = (own.probs.argmax(axis=1) for own in (better, base))
    return gain_interval(labels, preds, base_preds, base.probs.shape[1], groups)


def _try_scaling(
    scaled: CrossFitted, heated: CrossFitted, labels: np.ndarray, groups: np.ndarray | None
) -> ScalingTrial:
    """Cross-fitted rows with vector scaling beside those with a temperature."""
    rows = np.arange(len(labels))
    own, base = (
        -np.log(np.maximum(part.calibrated[rows, labels], _MIN_PROB)) for part in (scaled, heated)
    )
    return ScalingTrial(
        nll_gain=mean_interval(base - own, groups),
        f1_gain=f1_of(scaled.probs, labels) - f1_of(heated.probs, labels),
    )


def assign_folds(
    labels: np.ndarray, num_folds: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """The fold `(N,)` of each row, drawn so that every fold has its share of every class.

    Args:
        groups: `(N,)`, equal for rows that share a fold; None: each is alone.
    """
    if groups is not None:
        return share_groups(labels, groups, np.full(num_folds, 1 / num_folds), seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


def _cross_fit(
    probs: np.ndarray,
    labels: np.ndarray,
    picks: Sequence[FitSpec],
    combine: Combine,
    folds: np.ndarray,
) -> CrossFitted:
    """What each fold's pick makes of its rows, fitted on the other folds."""
    combined = [np.empty(probs.shape[1:]) for _ in range(3)]
    for fold, spec in enumerate(picks):
        rest, own = folds != fold, folds == fold
        how = fit(probs[:, rest], labels[rest], spec, combine)
        for place, stage in zip(combined, (how, *how.stages()), strict=True):
            place[own] = combine(probs[:, own], stage)
    return CrossFitted(probs=combined[0], calibrated=combined[1], raw=combined[2])


def _pick(
    probs: np.ndarray,
    labels: np.ndarray,
    specs: Sequence[FitSpec],
    combine: Combine,
    folds: np.ndarray,
    groups: np.ndarray | None,
) -> list[FitSpec]:
    """The best of `specs` for each fold, chosen on the other folds."""
    rest = [np.flatnonzero(folds != fold) for fold in range(NUM_FOLDS)]
    return [
        _best(probs[:, own], labels[own], specs, combine, None if groups is None else groups[own])
        for own in rest
    ]


def _best(
    probs: np.ndarray,
    labels: np.ndarray,
    specs: Sequence[FitSpec],
    combine: Combine,
    groups: np.ndarray | None,
) -> FitSpec:
    """The one with the highest cross-fitted macro-F1; the first of equals."""
    folds = assign_folds(labels, NUM_INNER_FOLDS, specs[0].seed, groups)
    scores = [
        f1_of(_cross_fit(probs, labels, [spec] * NUM_INNER_FOLDS, combine, folds).probs, labels)
        for spec in specs
    ]
    return specs[int(np.argmax(scores))]
