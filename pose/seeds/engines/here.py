"""Trains seeds one after another in this process."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

from pose.data.loaded import LoadedData
from pose.device import pick_device
from pose.display import Display
from pose.errors import DivergedError
from pose.results import SeedResult
from pose.seeds.engines.budget import Budget
from pose.seeds.job import OpenTracker, SeedJob
from pose.seeds.train import train_seed
from pose.stop import Stop


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
