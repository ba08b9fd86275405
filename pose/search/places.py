"""Where candidates are tried: in this process in turn, or side by side where members train."""

import contextlib
import dataclasses
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

from pose.cluster import Tasks, lack_of_room
from pose.config import MAX_THREADS, Recipe, Setup
from pose.data.loaded import LoadedData
from pose.data.tensors import framing_of
from pose.device import keep_freed_memory
from pose.display import Display
from pose.plan import member_threads
from pose.search.trial import TrialData, TrialJob, Tried, try_candidate
from pose.seeds.engines import device_there, gpus_of, num_at_once
from pose.stop import Stop
from pose.workers import Workers
from pose_models import Framing

J = TypeVar("J")
T = TypeVar("T")


class Places(Protocol):
    """Where calls are computed; see `pose.cluster.Tasks`."""

    def __call__(
        self,
        function: Callable[[Any, J], T],
        shared: object,
        jobs: Iterable[J],
        stop: Stop,
        at_once: int,
    ) -> Iterator[tuple[J, T]]:
        """The jobs with what a function returns for them, as its calls end."""


class Here:
    """Tries candidates one after another in this process.

    Args:
        data: the rows that trials may know.
    """

    def __init__(self, data: TrialData, display: Display, stop: Stop) -> None:
        self._data = data
        self._display = display
        self._stop = stop
        self._loaded: dict[Framing, LoadedData] = {}

    def load(self, recipe: Recipe) -> LoadedData:
        """The rows with their images, decoded once."""
        framing = framing_of(recipe)
        if framing not in self._loaded:
            self._loaded[framing] = self._data.load(recipe, self._display.cache_progress)
        return self._loaded[framing]

    def prepare(self, recipes: Sequence[Recipe]) -> None:
        """Decode what candidates need, up to a request to stop."""
        for recipe in recipes:
            self.load(recipe)
            if self._stop():
                return

    def num_at_once(self, num_trials: int) -> int:
        """How many of so many trials go side by side."""
        return min(1, num_trials)

    def __call__(self, jobs: Iterable[TrialJob]) -> Iterator[tuple[TrialJob, Tried]]:
        """The jobs with what came of them, up to one that was stopped."""
        for job in jobs:
            tried = try_candidate(job, self.load(job.recipe), self._stop)
            if tried is None:
                return
            yield job, tried


class SideBySide(Here):
    """Tries candidates side by side where members train: on the cluster, or in processes.

    Trials that are under way when it is asked to stop are ended and forgotten.
    """

    def __init__(
        self, data: TrialData, display: Display, stop: Stop, *, setup: Setup, places: Places
    ) -> None:
        super().__init__(data, display, stop)
        self._setup = setup
        self._places = places
        self._device = setup.device
        if setup.engine == "ray":
            self._device = device_there(setup.device, gpus_of(setup))

    def prepare(self, recipes: Sequence[Recipe]) -> None:
        """Decode what candidates need, here and at each place, up to a request to stop.

        Processes have begun then, so that the seconds of the trials are for training.
        """
        super().prepare(recipes)
        if self._stop():
            return
        self._data = dataclasses.replace(self._data, digest=self.load(recipes[0]).digest)
        num = self.num_at_once(len(recipes))
        self._display.say(f"trials: {num} side by side ({self._setup.engine})")
        jobs = [Preparation(recipes=tuple(recipes))] * num
        for _ in self._places(_prepare, self._data, jobs, self._stop, num):
            pass

    def num_at_once(self, num_trials: int) -> int:
        """How many of so many trials go side by side."""
        return min(num_at_once(self._setup, num_trials), num_trials)

    def __call__(self, jobs: Iterable[TrialJob]) -> Iterator[tuple[TrialJob, Tried]]:
        """The jobs with what came of them, as they end, up to a request to stop."""
        threads = member_threads(self._setup)
        placed = (dataclasses.replace(job, device=self._device, threads=threads) for job in jobs)
        num = num_at_once(self._setup, MAX_THREADS)
        return self._places(_try, self._data, placed, self._stop, num)


@contextlib.contextmanager
def trial_engine(setup: Setup, data: TrialData, display: Display, stop: Stop) -> Iterator[Here]:
    """What tries candidates, for the time of a block; the engine of `setup` is ready."""
    if setup.engine == "ray":
        tasks = Tasks(num_cpus=member_threads(setup), num_gpus=gpus_of(setup))
        for line in lack_of_room(tasks.num_cpus, tasks.num_gpus):
            display.say(line)
        yield SideBySide(data, display, stop, setup=setup, places=tasks)
    elif setup.engine == "processes" and setup.parallel > 1:
        with Workers() as workers:
            yield SideBySide(data, display, stop, setup=setup, places=workers)
    else:
        yield Here(data, display, stop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What there is to decode before anything is tried."""

    recipes: tuple[Recipe, ...]

    def __str__(self) -> str:
        return "preparation of the trials"


def _prepare(data: TrialData, job: Preparation) -> None:
    """What a process does before it tries anything."""
    # A first trial would wait for it.
    importlib.import_module("sklearn.metrics")
    for recipe in job.recipes:
        data.load(recipe)


def _try(data: TrialData, job: TrialJob) -> Tried:
    """What a process of this or another machine does: find the images, train, score."""
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    started = time.monotonic()
    tried = try_candidate(job, data.load(job.recipe), lambda: None)
    assert tried is not None
    trial = dataclasses.replace(tried.trial, seconds=time.monotonic() - started)
    return dataclasses.replace(tried, trial=trial)
