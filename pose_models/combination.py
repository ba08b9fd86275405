"""How members' probabilities become one, as plain values; `pose_models.combine` applies it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

RULES = ("soft", "hard", "rank", "weighted", "greedy", "stacking")
# They have no parameters, so that nothing is fitted to them.
UNFITTED = ("soft", "hard", "rank")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """A way to combine members.

    Members of one group (the folds of a seed) are averaged before the rule sees them, where the
    rule has parameters. What follows the rule: temperature or scales with biases, then offsets.

    Attributes:
        rule: `soft`, the mean of the members' probabilities; `hard`, each class's share of the
            members' votes; `rank`, the mean of each class's rank in a member's prediction (Borda's
            count); `weighted` and `greedy`, a weighted mean; `stacking`, a linear layer on the
            groups' log-probabilities.
        groups: `(M,)` group of each member, counted from 0; empty: each is one of its own.
        weights: `(G,)` of the groups, sum 1.
        coefficients: `(C, G * C)`, of the first group's classes, then the second's and so on.
        intercepts: `(C,)`.
        temperature: divides the logarithms of the probabilities (Guo et al., 2017,
            arXiv:1706.04599).
        scales, biases: `(C,)` each, in place of a temperature: each class's logarithm is multiplied
            by its own scale, and its bias added (vector scaling, in the same paper).
        offsets: `(C,)` added to them after that: they move decisions between classes.
        tta: how members look at an image, names out of `pose_models.views.VIEWS`; before the rule.

    Raises:
        ValueError: an unknown rule, or parameters that are not the rule's.
    """

    rule: str = "soft"
    groups: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    coefficients: tuple[tuple[float, ...], ...] = ()
    intercepts: tuple[float, ...] = ()
    temperature: float = 1.0
    offsets: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    tta: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if bool(self.weights) != (self.rule in ("weighted", "greedy")):
            raise ValueError(f"weights must go with weighted or greedy, got {self.rule}")
        if bool(self.coefficients) != (self.rule == "stacking"):
            raise ValueError(f"coefficients must go with stacking, got {self.rule}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if len(self.scales) != len(self.biases) or (self.scales and self.temperature != 1):
            raise ValueError("scales must come with as many biases, and without a temperature")

    @property
    def is_calibrated(self) -> bool:
        """Whether probabilities were fitted to how often they are right."""
        return self.temperature != 1 or bool(self.scales)

    def stages(self) -> tuple["Combination", "Combination"]:
        """The combination without offsets, as probabilities are shown, and before calibration."""
        calibrated = dataclasses.replace(self, offsets=())
        return calibrated, dataclasses.replace(calibrated, temperature=1.0, scales=(), biases=())

    def calibration_text(self) -> str:
        """How it is calibrated, in words."""
        if self.scales:
            return "vector scaling (a scale and a bias for each class)"
        return f"the temperature {self.temperature:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """The combination as plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Combination":
        """The combination that `to_dict` wrote, also from JSON."""
        return cls(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value


SOFT = Combination(rule="soft")
