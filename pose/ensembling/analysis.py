"""What members and their ensemble do on the rows that they did not train on."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from pose import metrics
from pose.ensembling.held_out import MIN_ROWS
from pose.ensembling.joined import Joined, join
from pose.predictions import Predictions

# Members' probabilities `(M, N, C)` to the ensemble's `(N, C)`.
CombineProbs = Callable[[np.ndarray], np.ndarray]

# Subsets of members of one size that are tried at most.
MAX_SUBSETS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Predictions of rows by members that did not train on them.

    Attributes:
        ids, labels: `(N,)`.
        combined: `(N, C)` of the ensemble; the predictions are its argmax.
        calibrated: `(N, C)`, how probable each class is: `combined`, but for offsets between
            classes.
        probs: `(M, N, C)` of the members; None where not every row is held out from all, and
            `combined` is the mean over those that it is held out from.
        votes: `(N, C)` int64, of how many members that a row is held out from each class is the
            choice.
        groups: `(N,)`, equal for rows that belong together; None where each stands alone.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    combined: np.ndarray
    calibrated: np.ndarray
    probs: np.ndarray | None
    votes: np.ndarray
    groups: np.ndarray | None = None

    @property
    def confusion(self) -> np.ndarray:
        """Of the ensemble: rows are labels, columns predictions."""
        num_classes = self.combined.shape[1]
        return metrics.confusion_matrix(self.labels, self.combined.argmax(axis=1), num_classes)

    def rows_text(self) -> str:
        """How many rows there are, and who predicted them, for people."""
        if self.probs is not None:
            return f"{len(self.ids)} validation rows that no member trained on"
        return f"{len(self.ids)} validation rows, each by the members that did not train on it"


def hold_out(
    members: Sequence[Predictions], combine_probs: CombineProbs, *, has_all: bool = False
) -> HeldOut | None:
    """The rows that members did not train on, from each one's validation predictions.

    The rows that all share, if there are enough of them; else all rows that any has, each by those
    members that have it. None where labels are unknown.

    Args:
        combine_probs: fitted on none of the rows.
        has_all: take all rows that any member has, in any case.
    """
    if not members or any(own.labels is None for own in members):
        return None
    rows = join({str(number): own for number, own in enumerate(members)})
    shared = rows.shared()
    if len(shared.ids) >= MIN_ROWS and not has_all:
        rows = shared
    combined = rows.combined(combine_probs)
    return held_out_of(rows, combined, combined)


def held_out_of(rows: Joined, combined: np.ndarray, calibrated: np.ndarray) -> HeldOut:
    """Rows with what their members say, and what the ensemble makes of it: `(N, C)` each."""
    return HeldOut(
        ids=rows.ids,
        labels=rows.labels,
        combined=combined,
        calibrated=calibrated,
        probs=rows.probs if bool(rows.is_known.all()) else None,
        votes=rows.votes(),
        groups=rows.groups,
    )


def mean_probs(probs: np.ndarray) -> np.ndarray:
    """The soft vote of `(M, N, C)`, `(N, C)` float64."""
    mean: np.ndarray = probs.mean(axis=0, dtype=np.float64)
    return mean


def worst_pairs(confusion: np.ndarray, num: int = 5) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: label, prediction, count; the most frequent first."""
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:num]
    pairs = (divmod(int(cell), len(confusion)) for cell in order)
    return [(row, column, int(mistakes[row, column])) for row, column in pairs
            if mistakes[row, column]]  # fmt: skip


def f1_by_size(
    probs: np.ndarray, labels: np.ndarray, combine_probs: CombineProbs
) -> list[list[float]]:
    """Macro F1 of subsets of the members, by their size: 1, 2, and so on up to all.

    Args:
        probs: `(M, N, C)`.

    Returns:
        One list per size, of at most `MAX_SUBSETS` subsets, the same ones every time.
    """
    num_members = len(probs)
    rng = np.random.default_rng(0)
    scores = []
    for size in range(1, num_members + 1):
        subsets = list(itertools.islice(itertools.combinations(range(num_members), size), 2000))
        if len(subsets) > MAX_SUBSETS:
            picked = rng.choice(len(subsets), MAX_SUBSETS, replace=False)
            subsets = [subsets[index] for index in picked]
        scores.append(
            [metrics.f1_of(combine_probs(probs[list(subset)]), labels) for subset in subsets]
        )
    return scores


def confident_mistakes(held_out: HeldOut, num: int) -> list[int]:
    """Rows that the ensemble gets wrong, the most confident first."""
    preds = held_out.combined.argmax(axis=1)
    wrong = np.flatnonzero(preds != held_out.labels)
    order = np.argsort(-held_out.combined[wrong].max(axis=1), kind="stable")
    return [int(row) for row in wrong[order][:num]]
