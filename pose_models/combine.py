"""How members' probabilities become one: the same for files, records and the registered model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

RULES = ("soft", "hard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """A way to combine members.

    Attributes:
        rule: `soft`, the mean of the members' probabilities; `hard`, each class's share of the
            members' votes.

    Raises:
        ValueError: an unknown rule.
    """

    rule: str = "soft"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    def to_dict(self) -> dict[str, Any]:
        """The combination as plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Combination":
        """The combination that `to_dict` wrote."""
        return cls(**values)


SOFT = Combination(rule="soft")


def combine(probs: Tensor, how: Combination = SOFT) -> Tensor:
    """The ensemble's probabilities `(N, C)`; its prediction is their argmax.

    In a hard vote, among classes with equally many votes the one with the higher mean probability
    wins, and the first if those are equal too.

    Args:
        probs: `(M, N, C)` of M members, N images, C classes, rows sum to 1.

    Returns:
        float64; float32 on devices that have no other (MPS).
    """
    exact = probs if probs.device.type == "mps" else probs.double()
    mean = exact.mean(dim=0)
    if how.rule == "soft":
        return mean
    num_members, _, num_classes = probs.shape
    votes = torch.nn.functional.one_hot(exact.argmax(dim=2), num_classes)
    shares = votes.to(exact.dtype).mean(dim=0)
    # Too small to overturn a vote (each is worth 1 / num_members), but enough to break a tie.
    shares = shares + mean / (2 * num_members)
    return shares / shares.sum(dim=1, keepdim=True)
