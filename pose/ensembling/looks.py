"""Which ways of looking at an image help: test-time augmentation, chosen on held-out rows.

A row's choice is made without it, as in `pose.ensembling.selection`, and plain looking stays where
the gain is within noise.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pose.ensembling.bootstrap import Interval, gain_interval
from pose.ensembling.fit import Combine
from pose.ensembling.selection import NUM_FOLDS, assign_folds
from pose.metrics import f1_of
from pose_models.combination import UNFITTED, Combination

# Names of views that are averaged; none: an image is looked at once.
Views = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looked:
    """What members say of the rows that validated them, looking in several ways.

    Attributes:
        probs: `(n, C)` of each member, in the order of its validation predictions, by the views
            that are averaged; `()` is among them.
        seconds: that it took.
        reason: why there is none; empty where there is.
    """

    probs: Mapping[Views, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewTrial:
    """Ways of looking beside a single look.

    Attributes:
        best: the views with the highest macro-F1 on all rows.
        gain: in macro-F1 over a single look, of views that were chosen on other rows.
        scores: macro-F1 of each, on all rows.
        nested: `(G, N, C)`, each row's probabilities by the views that were chosen without it.
        whole: the same by `best`.
        seconds: that looking took.
    """

    best: Views
    gain: Interval
    scores: Mapping[Views, float]
    nested: np.ndarray
    whole: np.ndarray
    seconds: float = 0.0

    @property
    def is_kept(self) -> bool:
        """Whether the gain is beyond noise."""
        return bool(self.best) and self.gain.low > 0

    def note(self) -> str:
        """What was decided, and why."""
        if self.is_kept:
            return f"several looks ({', '.join(self.best)}): a gain of {self.gain} over one"
        return f"one look: the best of several gains {self.gain}, which is within noise"


def choose_views(
    looks: Mapping[Views, np.ndarray],
    labels: np.ndarray,
    rule: str,
    combine: Combine,
    groups: np.ndarray | None = None,
) -> ViewTrial:
    """The views whose combined predictions have the highest macro-F1.

    Args:
        looks: `(G, N, C)` of groups of members that did not train on the rows, by views.
        labels: `(N,)` class indices.
        rule: of the vote; where it would have to be fitted, views are chosen for a soft one.
        groups: `(N,)`, equal for rows of which none decides about another; None: each is alone.
    """
    how = Combination(rule=rule if rule in UNFITTED else "soft")
    preds = {views: combine(probs, how).argmax(axis=1) for views, probs in looks.items()}
    folds = assign_folds(labels, NUM_FOLDS, 0, groups)
    num_classes = looks[()].shape[2]
    nested, nested_preds = looks[()].copy(), preds[()].copy()
    for fold in range(NUM_FOLDS):
        rest, own = folds != fold, folds == fold
        views = _best({v: p[rest] for v, p in preds.items()}, labels[rest], num_classes)
        nested[:, own], nested_preds[own] = looks[views][:, own], preds[views][own]
    best = _best(preds, labels, num_classes)
    return ViewTrial(
        best=best,
        gain=gain_interval(labels, nested_preds, preds[()], num_classes, groups),
        scores={views: _f1(own, labels, num_classes) for views, own in preds.items()},
        nested=nested,
        whole=looks[best],
    )


def _best(preds: Mapping[Views, np.ndarray], labels: np.ndarray, num_classes: int) -> Views:
    """The first of those with the highest macro-F1; fewer views come first."""
    return max(sorted(preds, key=len), key=lambda views: _f1(preds[views], labels, num_classes))


def _f1(preds: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    return f1_of(np.eye(num_classes)[preds], labels)
