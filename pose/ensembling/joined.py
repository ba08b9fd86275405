"""Members' predictions of the same rows, joined by id and never by position."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pose.data.groups import leaders
from pose.errors import InputError, first_few
from pose.predictions import Predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """What several members say of the rows that at least one of them predicted.

    Attributes:
        ids: `(N,)`, in the order in which the members name them.
        labels: `(N,)` true class indices.
        probs: `(M, N, C)`; zeros where a member has no prediction.
        is_known: `(M, N)` whether member m predicted row n.
        groups: `(N,)` int64, equal for rows that belong together; None where each stands alone.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    probs: np.ndarray
    is_known: np.ndarray
    groups: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Joined":
        """Those at `rows` `(n,)`, in that order."""
        return Joined(
            ids=tuple(self.ids[row] for row in rows.tolist()),
            labels=self.labels[rows],
            probs=self.probs[:, rows],
            is_known=self.is_known[:, rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def by_group(self, groups: Sequence[int]) -> "Joined":
        """Groups of members in place of members: the mean of those that predicted a row.

        Args:
            groups: `(M,)` of each member, counted from 0. Together the folds of a seed predict
                every row.
        """
        numbers = np.array(groups)
        known = np.stack([self.is_known[numbers == g].sum(axis=0) for g in range(max(groups) + 1)])
        sums = np.stack([self.probs[numbers == g].sum(axis=0) for g in range(max(groups) + 1)])
        return dataclasses.replace(
            self, probs=sums / np.maximum(known, 1)[..., None], is_known=known > 0
        )

    def combined(self, combine_probs: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Each row's probabilities `(N, C)`, combined by `(M, N, C)` to `(N, C)`.

        A row is left to the members that predicted it, so that rows of the same ones are combined
        together.
        """
        combined = np.empty(self.probs.shape[1:])
        patterns, pattern_of = np.unique(self.is_known, axis=1, return_inverse=True)
        for number, voters in enumerate(patterns.T):
            rows = np.flatnonzero(pattern_of.ravel() == number)
            combined[rows] = combine_probs(self.probs[voters][:, rows])
        return combined

    def votes(self) -> np.ndarray:
        """Of how many of the members that predicted a row each class is the choice; `(N, C)`."""
        choices = self.probs.argmax(axis=2)[..., None] == np.arange(self.probs.shape[2])
        votes: np.ndarray = (choices & self.is_known[..., None]).sum(axis=0)
        return votes

    def group_names(self) -> tuple[str, ...] | None:
        """The group `(N,)` of each row, by the first of its ids; None where each stands alone."""
        if self.groups is None:
            return None
        return tuple(self.ids[row] for row in leaders(self.groups).tolist())

    def shared(self) -> "Joined":
        """The rows that every member predicted."""
        return self.take(np.flatnonzero(self.is_known.all(axis=0)))


def join(predictions: Mapping[str, Predictions]) -> Joined:
    """The labelled predictions of members, by the members' names.

    Raises:
        InputError: members differ in their classes or in a row's label, or one has an id twice.
    """
    first, *_ = predictions
    class_labels = predictions[first].class_labels
    number_of: dict[str, int] = {}
    label_of: dict[str, int] = {}
    for name, own in predictions.items():
        assert own.labels is not None
        if own.class_labels != class_labels:
            raise InputError(
                f"predictions must have the same classes in the same order, but {first} has "
                f"{first_few(class_labels)} and {name} has {first_few(own.class_labels)}"
            )
        if len(set(own.ids)) < len(own.ids):
            twice = sorted({i for i in own.ids if own.ids.count(i) > 1})
            raise InputError(f"predictions must have an id once, {name} has {first_few(twice)}")
        labels = dict(zip(own.ids, own.labels.tolist(), strict=True))
        unlike = [i for i, label in labels.items() if label_of.setdefault(i, label) != label]
        if unlike:
            raise InputError(
                f"predictions must agree on the true label of a row, but {name} has another one "
                f"than the members before it for {first_few(unlike)}: were the labels changed "
                "between their trainings?"
            )
        for image_id in own.ids:
            number_of.setdefault(image_id, len(number_of))
    probs = np.zeros((len(predictions), len(number_of), len(class_labels)))
    is_known = np.zeros(probs.shape[:2], dtype=bool)
    for member, own in enumerate(predictions.values()):
        numbers = [number_of[image_id] for image_id in own.ids]
        probs[member, numbers] = own.probs
        is_known[member, numbers] = True
    return Joined(
        ids=tuple(number_of),
        labels=np.array([label_of[image_id] for image_id in number_of], dtype=np.int64),
        probs=probs,
        is_known=is_known,
        groups=_groups_of(tuple(number_of), predictions.values()),
    )


def _groups_of(ids: tuple[str, ...], predictions: Iterable[Predictions]) -> np.ndarray | None:
    """The group of each id as a number, as the first member that knows one has it."""
    group_of: dict[str, str] = {}
    for own in predictions:
        for image_id, group in zip(own.ids, own.groups or (), strict=False):
            group_of.setdefault(image_id, group)
    # A group is named by one of its ids: no other one bears its name.
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(group_of.get(own, own), len(numbers)) for own in ids]
    return np.array(groups, dtype=np.int64) if len(numbers) < len(ids) else None
