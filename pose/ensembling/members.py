"""The members of a vote: what each is, and whether they can vote together."""

import dataclasses
from collections.abc import Sequence

from pose.errors import InputError, first_few
from pose.model_card import ModelCard
from pose.predictions import Predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisteredMember:
    """A registered model version that can vote.

    Attributes:
        run: name of the run, the tag by which it was found.
        uri: as `mlflow.pytorch.load_model` takes it.
        parent_run_id: of the run that trained it; `run_id` is the seed's own.
        recipe: what it was trained with, and any changes to it, in words.
        weights_sha256: of the weights that were registered; empty where they were not hashed yet.
    """

    run: str
    seed: int
    version: int
    uri: str
    parent_run_id: str
    run_id: str
    recipe: str
    weights_sha256: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A member that votes.

    Attributes:
        val_predictions: on the rows that validated it, which it never trained on.
    """

    registered: RegisteredMember
    card: ModelCard
    val_predictions: Predictions

    @property
    def name(self) -> str:
        """`ensemble_1 seed 76`."""
        return f"{self.registered.run} seed {self.registered.seed}"


def check_compatible(members: Sequence[Member]) -> None:
    """Refuse members that cannot vote together.

    Raises:
        InputError: a member knows other classes than the first.
    """
    first = members[0]
    for member in members[1:]:
        if member.card.labels != first.card.labels:
            raise InputError(
                f"members must know the same classes, but {first.name} has "
                f"{first_few(first.card.labels)} and {member.name} has "
                f"{first_few(member.card.labels)}: vote with runs of the same data"
            )
