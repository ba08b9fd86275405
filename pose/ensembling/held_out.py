"""An ensemble's score on the rows that no member trained on."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pose import metrics
from pose.ensembling.members import Member

# Below this many rows that no member trained on, a score says too little to be shown.
MIN_ROWS = 50

# Members' probabilities `(M, N, C)` to the ensemble's `(N, C)`.
CombineProbs = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """Scores on the validation rows that no member trained on.

    Attributes:
        num_rows: how many there are.
        reason: why there are no scores; None if there are.
        ensemble: macro-F1, accuracy, NLL in nats, ECE; by metric.
        members: macro-F1 of each member on the same rows.
    """

    num_rows: int
    reason: str | None = None
    ensemble: dict[str, float] = dataclasses.field(default_factory=dict)
    members: tuple[float, ...] = ()


def score_held_out(members: Sequence[Member], combine_probs: CombineProbs) -> HeldOutScore:
    """Score the ensemble on the rows that no member trained on, if there are enough."""
    digests = {member.card.dataset_digest for member in members}
    if len(digests) > 1:
        return HeldOutScore(num_rows=0, reason="the members were trained on different data")
    ids = shared_ids([member.val_predictions.ids for member in members])
    if len(ids) < MIN_ROWS:
        return HeldOutScore(
            num_rows=len(ids),
            reason=f"only {len(ids)} validation rows were in no member's training rows, fewer "
            f"than {MIN_ROWS}",
        )
    picked = [member.val_predictions.take(ids) for member in members]
    labels = picked[0].labels
    if labels is None:
        return HeldOutScore(num_rows=len(ids), reason="the members' predictions have no labels")
    probs = np.stack([predictions.probs for predictions in picked])
    combined = combine_probs(probs)
    num_classes = probs.shape[2]
    confusion = metrics.confusion_matrix(labels, combined.argmax(axis=1), num_classes)
    return HeldOutScore(
        num_rows=len(ids),
        ensemble={
            "val_f1": metrics.macro_f1(confusion),
            "val_acc": metrics.accuracy(confusion),
            "val_nll": metrics.nll(combined, labels),
            "val_ece": metrics.ece(combined, labels),
        },
        members=tuple(
            metrics.macro_f1(metrics.confusion_matrix(labels, own.argmax(axis=1), num_classes))
            for own in probs
        ),
    )


def shared_ids(ids_of_members: Sequence[Sequence[str]]) -> list[str]:
    """The ids that every member has, in the first member's order.

    Given each member's validation ids, these are the rows that no member trained on.
    """
    others = [set(ids) for ids in ids_of_members[1:]]
    return [image_id for image_id in ids_of_members[0] if all(image_id in ids for ids in others)]
