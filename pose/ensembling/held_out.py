"""How members are combined, and the ensemble's score on rows that decided nothing about it.

A row is predicted by those members that did not train on it, and by nothing that was fitted on it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pose import metrics
from pose.ensembling.abstention import Abstention, choose_threshold
from pose.ensembling.bootstrap import Interval, f1_interval
from pose.ensembling.fit import Combine, FitSpec
from pose.ensembling.joined import Joined, join
from pose.ensembling.looks import Looked, Views, ViewTrial, choose_views
from pose.ensembling.members import Member, RegisteredMember
from pose.ensembling.selection import Selection, select, too_few
from pose.errors import InputError
from pose_models.combination import UNFITTED, Combination

# Below this many rows a score says too little to be shown.
MIN_ROWS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """Scores on validation rows, each predicted by members that did not train on it.

    These are the rows that no member trained on; where there are fewer than `MIN_ROWS` of them, as
    with folds, each row is left to those members that did not train on it.

    Attributes:
        num_rows: how many there are.
        members_per_row: mean number of members that predicted a row.
        reason: why there are no scores; None if there are.
        ensemble: macro-F1, accuracy, NLL in nats, ECE, Brier score; by metric.
        interval: of the macro-F1.
        members: macro-F1 of each member on those of the rows that it did not train on.
        num_groups: of rows that belong together, rows alone among them; None where all are.
    """

    num_rows: int
    members_per_row: float = 0.0
    reason: str | None = None
    ensemble: dict[str, float] = dataclasses.field(default_factory=dict)
    interval: Interval | None = None
    members: tuple[float, ...] = ()
    num_groups: int | None = None

    def rows_text(self) -> str:
        """`180 rows that no member trained on`, or who predicted them instead."""
        num_members = len(self.members)
        rows = f"{self.num_rows} rows"
        if self.num_groups is not None:
            rows += f" in {self.num_groups} groups"
        if self.members_per_row == num_members:
            return f"{rows} that no member trained on"
        return (
            f"{rows}, each predicted by those members that did not train on it "
            f"({self.members_per_row:.1f} of {num_members} on average)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """The rows that a score is of, and what it was made of.

    Attributes:
        members: the rows with the predictions of those members that did not train on them.
        probs: `(N, C)` of the ensemble, by a combination that was fitted without the row.
        calibrated: the same without offsets between classes.
    """

    members: Joined
    probs: np.ndarray
    calibrated: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """How members are combined.

    Attributes:
        scored: what `score` was made of; None where there is none.
        note: why, for people; empty where there was nothing to decide.
        selection: how it was fitted or chosen, where it was.
        abstention: which predictions are to be kept, where that was asked.
        views: ways of looking that were tried, where that was asked.
    """

    how: Combination
    score: HeldOutScore
    scored: ScoredRows | None = None
    note: str = ""
    selection: Selection | None = None
    abstention: Abstention | None = None
    views: ViewTrial | None = None


def decide(
    members: Sequence[Member],
    spec: FitSpec,
    combine: Combine,
    look: Callable[[], Looked] | None = None,
) -> Decision:
    """The combination of `spec`, fitted where it has parameters, and its score.

    Where rows are too few to fit or choose, it is soft voting, and the note says so.

    Args:
        look: has the members look at their validation rows in several ways; called where there
            are rows enough to choose between these.
    """
    note = ""
    if spec.is_fitted or look:
        rows = _rows_of(members)
        groups = groups_of([member.registered for member in members])
        if isinstance(rows, str):
            reason: str | None = rows
        else:
            common = rows.by_group(groups).shared()
            reason = too_few(common.labels, members[0].card.labels, common.groups)
            if reason is None:
                looked = look() if look else Looked()
                trial = _try_views(members, looked, spec, combine)
                decision = _fitted(rows, common, groups, spec, combine, trial)
                if looked.reason:
                    note = f"{decision.note}; one look: {looked.reason}"
                    decision = dataclasses.replace(decision, note=note)
                return decision
        spec = FitSpec(rule=spec.rule if spec.rule in UNFITTED else "soft")
        note = f"{spec.rule}, nothing fitted{' and one look' if look else ''}: {reason}"
    how = Combination(rule=spec.rule)
    return dataclasses.replace(_unfitted(members, how, combine), note=note)


def with_abstention(decision: Decision, target: float) -> Decision:
    """The decision with a threshold that keeps predictions of which `target` are right.

    Raises:
        InputError: there are too few rows to choose it on.
    """
    if decision.selection is None:
        raise InputError(
            f"abstain must have rows to choose a confidence on, found {decision.note or 'none'}"
        )
    rows, labels = decision.selection.rows, decision.selection.labels
    preds = rows.probs.argmax(axis=1)
    confidence = rows.calibrated[np.arange(len(preds)), preds]
    return dataclasses.replace(
        decision,
        abstention=choose_threshold(
            confidence, preds == labels, labels, target, decision.selection.groups
        ),
    )


def decided(members: Sequence[Member], how: Combination, combine: Combine) -> Decision:
    """A combination that was fitted before, by a vote that is repeated."""
    if how.rule in UNFITTED and how == Combination(rule=how.rule, tta=how.tta):
        return _unfitted(members, how, combine)
    reason = "the combination was fitted by the vote that is repeated, whose run has its score"
    return Decision(how=how, score=HeldOutScore(num_rows=0, reason=reason))


def groups_of(members: Sequence[RegisteredMember]) -> tuple[int, ...]:
    """The group of each member, counted from 0: the folds of a seed are one."""
    numbers: dict[object, int] = {}
    return tuple(
        numbers.setdefault(
            (member.parent_run_id, member.seed) if member.fold else member.uri,
            len(numbers),
        )
        for member in members
    )


def _unfitted(members: Sequence[Member], how: Combination, combine: Combine) -> Decision:
    """A combination that no row decided about, with its score."""
    rows = _rows_of(members)
    if isinstance(rows, str):
        return Decision(how=how, score=HeldOutScore(num_rows=0, reason=rows))
    shared = rows.shared()
    scored = shared if len(shared.ids) >= MIN_ROWS else rows
    if len(scored.ids) < MIN_ROWS:
        reason = f"only {len(scored.ids)} rows validated a member, fewer than {MIN_ROWS}"
        return Decision(how=how, score=HeldOutScore(num_rows=len(scored.ids), reason=reason))
    combined = scored.combined(lambda probs: combine(probs, how))
    own = ScoredRows(members=scored, probs=combined, calibrated=combined)
    return Decision(how=how, score=_score(own), scored=own)


def _rows_of(members: Sequence[Member]) -> Joined | str:
    """The rows that members can be scored on, or why there are none."""
    if len({member.card.dataset_digest for member in members}) > 1:
        return "the members were trained on different data"
    if any(member.val_predictions.labels is None for member in members):
        return "the members' predictions have no labels"
    return join({f"{m.name} ({m.registered.uri})": m.val_predictions for m in members})


def _try_views(
    members: Sequence[Member], looked: Looked, spec: FitSpec, combine: Combine
) -> ViewTrial | None:
    """The trial of ways of looking, on the rows that are common to all groups of members."""
    if not looked.probs:
        return None
    looks = {}
    for views, probs in looked.probs.items():
        seeing = [
            dataclasses.replace(
                member, val_predictions=dataclasses.replace(member.val_predictions, probs=own)
            )
            for member, own in zip(members, probs, strict=True)
        ]
        rows = _rows_of(seeing)
        assert not isinstance(rows, str)
        common = rows.by_group(groups_of([member.registered for member in members])).shared()
        looks[views] = common.probs
    trial = choose_views(looks, common.labels, spec.rule, combine, common.groups)
    return dataclasses.replace(trial, seconds=looked.seconds)


def _fitted(  # noqa: PLR0913 - rows twice, and what is made of them
    rows: Joined,
    common: Joined,
    groups: tuple[int, ...],
    spec: FitSpec,
    combine: Combine,
    trial: ViewTrial | None,
) -> Decision:
    selection = select(common.probs, common.labels, spec, combine, groups=common.groups)
    tta: Views = ()
    if trial and trial.is_kept:
        selection = select(trial.nested, common.labels, spec, combine, trial.whole, common.groups)
        tta = trial.best
    how = dataclasses.replace(selection.how, tta=tta)
    if how.rule not in UNFITTED:
        how = dataclasses.replace(how, groups=groups)
    number_of = {image_id: number for number, image_id in enumerate(rows.ids)}
    scored = ScoredRows(
        members=rows.take(np.array([number_of[image_id] for image_id in common.ids])),
        probs=selection.rows.probs,
        calibrated=selection.rows.calibrated,
    )
    return Decision(
        how=how,
        score=_score(scored),
        scored=scored,
        note="; ".join(own.note() for own in (selection, trial) if own),
        selection=selection,
        views=trial,
    )


def _score(scored: ScoredRows) -> HeldOutScore:
    """The score of rows: predictions with offsets, probabilities without."""
    rows, calibrated, num_classes = scored.members, scored.calibrated, scored.probs.shape[1]
    labels, preds = rows.labels, scored.probs.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, preds, num_classes)
    return HeldOutScore(
        num_rows=len(labels),
        members_per_row=float(rows.is_known.sum() / len(labels)),
        ensemble={
            "val_f1": metrics.macro_f1(confusion),
            "val_acc": metrics.accuracy(confusion),
            "val_nll": metrics.nll(calibrated, labels),
            "val_ece": metrics.ece(calibrated, labels),
            "val_brier": metrics.brier(calibrated, labels),
        },
        interval=f1_interval(labels, preds, num_classes, rows.groups),
        num_groups=None if rows.groups is None else len(np.unique(rows.groups)),
        members=tuple(
            metrics.f1_of(own[known], labels[known]) if known.any() else float("nan")
            for own, known in zip(rows.probs, rows.is_known, strict=True)
        ),
    )
