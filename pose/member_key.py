"""Which member of a run: its seed, and its fold where the run has folds."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, order=True)
class MemberKey:
    """A member of a run; members are sorted by seed, then by fold.

    Attributes:
        fold: the fold that validates it, counted from 1; 0: the run has no folds.
    """

    seed: int
    fold: int = 0

    def __str__(self) -> str:
        """`seed 7`, or `seed 7 fold 2`."""
        return f"seed {self.seed}" + (f" fold {self.fold}" if self.fold else "")

    @property
    def folder(self) -> str:
        """Name of its folder and of its run in MLflow: `seed_7`, or `seed_7_fold_2`."""
        return str(self).replace(" ", "_")

    def tags(self) -> dict[str, str]:
        """The tags `seed` and, where there are folds, `fold`."""
        return {"seed": str(self.seed), **({"fold": str(self.fold)} if self.fold else {})}

    @classmethod
    def from_folder(cls, name: str) -> "MemberKey":
        """What `folder` named."""
        words = name.split("_")
        return cls(int(words[1]), int(words[3]) if len(words) > 2 else 0)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "MemberKey":
        """What `tags` made, also from before there were folds."""
        return cls(int(tags["seed"]), int(tags.get("fold", 0)))
