"""Where seeds are trained. An engine takes jobs and gives their results as they come."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

from pose.config import MIN_SEED_SECONDS
from pose.data.loaded import LoadedData
from pose.device import pick_device
from pose.display import Display
from pose.errors import DivergedError
from pose.results import SeedResult
from pose.seeds.job import OpenTracker, SeedJob
from pose.seeds.train import train_seed
from pose.stop import Stop

# What saving and registering a seed takes, before the first one is measured.
SAVING_SECONDS = 5.0


class Budget:
    """Time for several seeds, each of which gets an equal share of what the others left.

    Args:
        seconds: for all of them, saving and recording included.
        num_seeds: how many share it.
    """

    def __init__(self, seconds: float, num_seeds: int) -> None:
        self._seconds = seconds
        self._num_seeds = num_seeds
        self._overheads: list[float] = []

    def share(self) -> float:
        """Seconds for the epochs of the next seed."""
        overheads = self._overheads or [SAVING_SECONDS]
        expected = sum(overheads) / len(overheads)
        return max(self._seconds / self._num_seeds - expected, MIN_SEED_SECONDS / 2)

    def spend(self, seconds: float, overhead: float = SAVING_SECONDS) -> None:
        """One seed is finished: `seconds` of epochs, and `overhead` for all else."""
        self._seconds -= seconds + overhead
        self._num_seeds -= 1
        self._overheads.append(overhead)


def train_here(
    jobs: Sequence[SeedJob],
    open_tracker: OpenTracker,
    display: Display,
    stop: Stop,
    *,
    loaded: LoadedData,
    budget: Budget | None = None,
) -> Iterator[SeedResult]:
    """Train the seeds one after another in this process, up to the first that is stopped.

    Args:
        loaded: the data of all jobs.

    Raises:
        DivergedError: a seed's training is no longer finite; the message names the seed.
    """
    for job in jobs:
        if stop():
            return
        # On a CUDA device the first seed brings the images there, for all.
        loaded = loaded.on(pick_device(job.device))
        if budget is not None:
            job = dataclasses.replace(job, time_limit=budget.share())
        started = time.monotonic()
        try:
            result = train_seed(job, loaded, open_tracker(job), display, stop)
        except DivergedError as error:
            raise DivergedError(f"{job.key}: {error}") from error
        if budget is not None:
            elapsed = time.monotonic() - started
            budget.spend(result.seconds, elapsed - result.session_seconds)
        yield result
        if not result.is_finished:
            return
