"""What there is to train, and where it is recorded."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pose.config import Recipe
from pose.history import Row
from pose.member_key import MemberKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedJob:
    """One member to train: plain values, for this process, another one, or another machine.

    Attributes:
        run: name of the run that it belongs to.
        fold: the fold that validates it, counted from 1; 0: the recipe has no folds.
        dataset: the data folder.
        cache: `decoded`, or `stream`: images are decoded when they are needed.
        output: the member's own folder; a checkpoint in it is continued.
        threads: of the CPU, of each process; 0: as many as torch takes.
        processes: how many train it together.
        time_limit: seconds for all of its epochs, instead of the recipe's number of epochs.
    """

    run: str
    recipe: Recipe
    seed: int
    fold: int = 0
    dataset: Path
    output: Path
    cache_root: Path | None = None
    num_workers: int = 0
    cache: str = "decoded"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    processes: int = 1
    time_limit: float | None = None

    @property
    def key(self) -> MemberKey:
        """Which member of the run."""
        return MemberKey(self.seed, self.fold)

    @property
    def title(self) -> str:
        """`ensemble_1, seed 76`."""
        return f"{self.run}, {self.key}"


class SeedTracker(Protocol):
    """Where a seed is recorded."""

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """Bring the recorded checkpoint into `folder`; None if there is none."""

    def log_epochs(self, history: list[Row]) -> None:
        """Record the epochs of `history` that are not recorded yet."""

    def log_tags(self, tags: dict[str, str]) -> None:
        """Record what became of a setting."""

    def log_checkpoint(self, folder: Path) -> None:
        """Record the folder of a seed that will be continued."""

    def log_results(self, folder: Path) -> None:
        """Record the finished seed's folder and its best model."""

    def finish(self, status: str, stop_reason: str) -> None:
        """Say how the seed ended: `FINISHED`, `FAILED` or `KILLED`, and why."""


# Opens the record of a job when its turn has come.
OpenTracker = Callable[[SeedJob], SeedTracker]


class NoTracking:
    """A tracker that records nothing: the folder on disk is all that is left."""

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """None."""
        return None

    def log_epochs(self, history: list[Row]) -> None:
        """Nothing."""

    def log_tags(self, tags: dict[str, str]) -> None:
        """Nothing."""

    def log_checkpoint(self, folder: Path) -> None:
        """Nothing."""

    def log_results(self, folder: Path) -> None:
        """Nothing."""

    def finish(self, status: str, stop_reason: str) -> None:
        """Nothing."""
