"""The members of a vote: what each is, and whether they can vote together."""

import dataclasses
from collections.abc import Sequence

from pose.errors import InputError, first_few
from pose.member_key import MemberKey
from pose.model_card import ModelCard
from pose.predictions import Predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisteredMember:
    """A registered model version that can vote.

    Attributes:
        run: name of the run, the tag by which it was found.
        fold: the fold that validated it, counted from 1; 0: its run has no folds.
        uri: as `mlflow.pytorch.load_model` takes it.
        parent_run_id: of the run that trained it; `run_id` is the seed's own.
        recipe: what it was trained with, and any changes to it, in words.
        weights_sha256: of the weights that were registered; empty where they were not hashed yet.
        dataset_digest: of the data that it was trained on.
        files_sha256: of what else a vote reads of it; empty where it was not hashed yet.
    """

    run: str
    seed: int
    version: int
    uri: str
    parent_run_id: str
    run_id: str
    recipe: str
    weights_sha256: str = ""
    dataset_digest: str = ""
    fold: int = 0
    files_sha256: str = ""

    @property
    def name(self) -> str:
        """`ensemble_1 seed 76`."""
        return f"{self.run} {MemberKey(self.seed, self.fold)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A member that votes.

    Attributes:
        val_predictions: on the rows that validated it, which it never trained on.
        weights_sha256: of its weights, also where they were registered without.
    """

    registered: RegisteredMember
    card: ModelCard
    val_predictions: Predictions
    weights_sha256: str

    @property
    def name(self) -> str:
        """`ensemble_1 seed 76`."""
        return self.registered.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberState:
    """What the records say of one member of a run.

    Attributes:
        is_promised: whether the run was to train it.
        state: of its own run, in words: `finished`, `running`, `failed (diverged)`, `deleted`,
            `not begun`.
        versions: its registered models, oldest first.
    """

    key: MemberKey
    is_promised: bool
    state: str
    versions: tuple[RegisteredMember, ...]


def check_classes(members: Sequence[Member]) -> None:
    """Refuse members that cannot vote together.

    Raises:
        InputError: a member knows other classes than the first, or has them in another order.
    """
    first = members[0]
    for member in members[1:]:
        if member.card.labels != first.card.labels:
            is_order = sorted(member.card.labels) == sorted(first.card.labels)
            raise InputError(
                f"members must know the same classes in the same order, but {first.name} has "
                f"{first_few(first.card.labels)} and {member.name} has "
                f"{'the same in another order, ' if is_order else ''}"
                f"{first_few(member.card.labels)}: vote with runs of the same data"
            )
