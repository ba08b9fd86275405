"""Where members are trained. An engine takes jobs and gives their results as they come."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from pose.config import Setup
from pose.data.loaded import LoadedData
from pose.display import Display
from pose.results import SeedResult
from pose.seeds.engines.budget import SAVING_SECONDS, Budget
from pose.seeds.engines.here import train_here
from pose.seeds.engines.processes import Processes
from pose.seeds.job import OpenTracker, SeedJob
from pose.stop import Stop

__all__ = ["SAVING_SECONDS", "Budget", "Engine", "Processes", "pick_engine", "train_here"]


class Engine(Protocol):
    """Trains seeds; `train_here` is one."""

    def __call__(
        self,
        jobs: Sequence[SeedJob],
        open_tracker: OpenTracker,
        display: Display,
        stop: Stop,
        *,
        loaded: LoadedData,
        budget: Budget | None = None,
    ) -> Iterator[SeedResult]:
        """The results of `jobs`, up to those that are stopped.

        Args:
            loaded: the data of all jobs.
        """


def pick_engine(setup: Setup) -> Engine:
    """The engine that `setup` names."""
    if setup.engine == "processes":
        return Processes(parallel=setup.parallel)
    return train_here
