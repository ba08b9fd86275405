"""Where members are trained. An engine takes jobs and gives their results as they come."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from pose.cluster import joined, num_places
from pose.config import Setup
from pose.data.loaded import LoadedData
from pose.device import pick_device
from pose.display import Display
from pose.results import SeedResult
from pose.seeds.engines.budget import SAVING_SECONDS, Budget, num_turns
from pose.seeds.engines.here import train_here
from pose.seeds.engines.processes import Processes
from pose.seeds.engines.ray_tasks import RayTasks, device_there
from pose.seeds.job import OpenTracker, SeedJob
from pose.stop import Stop

__all__ = [
    "SAVING_SECONDS",
    "Budget",
    "Engine",
    "Processes",
    "RayTasks",
    "device_there",
    "engine_ready",
    "gpus_of",
    "num_at_once",
    "num_turns",
    "pick_engine",
    "train_here",
]


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
    if setup.engine == "processes" or setup.processes_per_seed > 1:
        return Processes(parallel=setup.parallel or 1)
    if setup.engine == "ray":
        return RayTasks(parallel=setup.parallel, gpus=gpus_of(setup))
    return train_here


def gpus_of(setup: Setup) -> float:
    """GPUs of each member on a cluster; less than one is a share."""
    if setup.gpus is None:
        return float(pick_device(setup.device).type == "cuda")
    return setup.gpus


def num_at_once(setup: Setup, num_members: int) -> int:
    """How many of so many members train at the same time; the engine is ready."""
    places = setup.parallel
    if setup.engine == "ray":
        room = num_places(setup.threads or 1, gpus_of(setup))
        places = min(room, places or room, num_members)
    return max(1, places)


@contextlib.contextmanager
def engine_ready(setup: Setup) -> Iterator[None]:
    """Keep ready what the engine of `setup` needs: a cluster for Ray, nothing for others.

    Raises:
        InputError: there is no Ray, or no such cluster.
    """
    if setup.engine != "ray":
        yield
        return
    with joined((setup.threads or 1) * (setup.parallel or 1)):
        yield
