"""Trains seeds as tasks of a Ray cluster, each on the machine that has room for it."""

import dataclasses
import socket
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pose.cluster import MAX_RETRIES, lack_of_room
from pose.config import Recipe
from pose.data.exclusion import tables_of
from pose.data.loaded import LoadedData
from pose.device import describe, pick_device, pick_precision
from pose.display import Display
from pose.errors import one_line
from pose.results import SeedResult
from pose.seeds.engines.budget import Budget
from pose.seeds.engines.reception import Reception, report
from pose.seeds.engines.team import Team
from pose.seeds.job import OpenTracker, SeedJob
from pose.seeds.relay import GONE, FarEnd, NearEnd, train_elsewhere
from pose.seeds.shipping import at_hand
from pose.stop import Stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayTasks:
    """An engine that trains seeds on the cluster that this process is part of.

    What members show and record is shown and recorded by this process. One whose machine dies is
    started again by Ray, and goes on from its checkpoint under the same record.

    Args:
        parallel: how many members train at the same time at most; 0: as many as there is room for.
        gpus: of each member; less than one is a share.
    """

    parallel: int
    gpus: float

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
        """Train the seeds; each machine finds the data decoded, or decodes it once.

        Raises:
            DivergedError: a seed's training is no longer finite; the others were stopped softly.
            DiedError: Ray gave a member up; the others were trained to their end.
        """
        import ray

        team = Team(open_tracker, display, budget)
        with Reception(ray.util.get_node_ip_address()) as reception:
            tasks = _Tasks(self, jobs, team, reception)
            tasks.warn_of_no_room(display)
            try:
                while tasks.are_left:
                    reason = stop() or ("error" if team.error else None)
                    if reason:
                        team.ask_to_stop(reason)
                        tasks.drop_absent(reason)
                    tasks.submit()
                    tasks.let_in(loaded.digest)
                    for member in team.hear():
                        if member.is_over:
                            yield from team.result_of(member)
                        else:
                            display.say(
                                f"warning: {member.job.key} is lost with its process; Ray starts "
                                "it again"
                            )
                    tasks.bury_dead()
            finally:
                tasks.drop_all()
        team.raise_failures()


@dataclasses.dataclass
class _Task:
    """A member's task.

    Attributes:
        reference: Ray's, to its end.
        member: None until it has come in for the first time.
        is_done: whether Ray considers it over.
    """

    job: SeedJob
    reference: Any
    member: NearEnd | None = None
    is_done: bool = False


class _Tasks:
    """The tasks that Ray has, and the jobs that wait for their turn."""

    def __init__(
        self, engine: RayTasks, jobs: Sequence[SeedJob], team: Team, reception: Reception
    ) -> None:
        import ray

        self._ray = ray
        self._engine = engine
        self._waiting = list(jobs)
        self._team = team
        self._reception = reception
        self._tasks: dict[int, _Task] = {}
        self._num_submitted = 0
        self._num_cpus = max((job.threads for job in jobs), default=0) or 1
        self._train = ray.remote(_train).options(
            num_cpus=self._num_cpus,
            num_gpus=engine.gpus,
            max_retries=MAX_RETRIES,
            retry_exceptions=list(GONE),
        )

    @property
    def are_left(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._waiting or self._tasks)

    def warn_of_no_room(self, display: Display) -> None:
        """Say so where no machine of the cluster has what a member wants; one may come."""
        for line in lack_of_room(self._num_cpus, self._engine.gpus) if self._waiting else ():
            display.say(line)

    def submit(self) -> None:
        """Hand jobs to Ray, as many as may train at the same time."""
        limit = self._engine.parallel or len(self._waiting) + len(self._tasks)
        while self._waiting and len(self._tasks) < limit:
            number, job = self._num_submitted, self._waiting.pop(0)
            reference = self._train.remote(self._reception.address, self._reception.key, number)
            self._tasks[number] = _Task(job, reference)
            self._num_submitted += 1

    def let_in(self, dataset_digest: str) -> None:
        """Give those that came in their job: for the first time, or to go on with it."""
        for number, connection in self._reception.arrived():
            task = self._tasks.get(number)
            if task is None or (task.member is not None and task.member.is_over):
                connection.close()
                continue
            if task.member is None:
                task.member = self._team.begin(task.job, connection)
            else:
                self._team.welcome_back(task.member, connection)
            _send(connection, (self._as_seen_there(task.member.job), dataset_digest))

    def _as_seen_there(self, job: SeedJob) -> SeedJob:
        """The job for a process with another working folder, that has the GPUs it was given."""
        return dataclasses.replace(
            job,
            recipe=_with_absolute_paths(job.recipe),
            dataset=job.dataset.absolute(),
            output=job.output.absolute(),
            cache_root=job.cache_root.absolute() if job.cache_root else None,
            device=device_there(job.device, self._engine.gpus),
        )

    def bury_dead(self) -> None:
        """Forget members that have ended, and say which ones Ray has given up."""
        for number, task in list(self._tasks.items()):
            if task.member is not None and task.member.is_over:
                del self._tasks[number]
            elif task.is_done and task.member not in self._team.members:
                del self._tasks[number]
                self._team.bury(task.job.key, self._how_it_died(task.reference), task.member)
        if not self._tasks:
            return
        # What a task said before its end is heard first: it is buried at the next turn.
        number_of = {task.reference: number for number, task in self._tasks.items()}
        done, _ = self._ray.wait(list(number_of), num_returns=len(number_of), timeout=0)
        for reference in done:
            self._tasks[number_of[reference]].is_done = True

    def _how_it_died(self, reference: Any) -> str:
        try:
            self._ray.get(reference, timeout=0)
        except Exception as error:
            return one_line(getattr(error, "cause", None) or error, 300)
        return "it ended without a word"

    def drop_absent(self, reason: str) -> None:
        """Nobody else is to begin, or to go on after having been lost."""
        self._waiting.clear()
        for number, task in list(self._tasks.items()):
            if task.member not in self._team.members:
                del self._tasks[number]
                self._ray.cancel(task.reference, force=True)
                if task.member is not None:
                    task.member.give_up("KILLED", reason)

    def drop_all(self) -> None:
        """End whatever is still at work, at once."""
        for task in self._tasks.values():
            self._ray.cancel(task.reference, force=True)
            if task.member is not None:
                task.member.give_up("KILLED", "signal")
        self._tasks.clear()


def device_there(device: str, gpus: float) -> str:
    """What `device` means for a task that has so many GPUs, on whichever machine."""
    if device != "auto":
        return device
    return "cuda" if gpus else "cpu"


def _send(connection: Connection, what: object) -> None:
    try:
        connection.send(what)
    except OSError:
        # One that is gone is noticed where it is read from.
        return


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe for another working folder; where its files lie is not part of its identity."""
    changes: dict[str, Any] = {}
    if recipe.weights is not None and not recipe.weights.startswith("models:/"):
        changes["weights"] = str(Path(recipe.weights).expanduser().absolute())
    if recipe.exclude is not None:
        changes["exclude"] = ",".join(str(path.absolute()) for path in tables_of(recipe.exclude))
    return dataclasses.replace(recipe, **changes) if changes else recipe


def _train(address: tuple[str, int], key: bytes, number: int) -> None:
    """What a member's task does, on whichever machine."""
    with report(address, key, number) as connection:
        job, dataset_digest = connection.recv()
        device = pick_device(job.device)
        torch.set_num_threads(job.threads or torch.get_num_threads())
        where = describe(device, pick_precision(job.precision, device))
        end = FarEnd(connection)
        with at_hand(end, job) as (job, tracker):
            tracker.log_tags({"trained_on": f"{socket.gethostname()}, {where}"})
            train_elsewhere(end, job, dataset_digest, tracker)
