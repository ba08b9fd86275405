"""Trains several seeds at once, each in a process of its own on this machine."""

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pose.data.loaded import LoadedData
from pose.display import Display
from pose.results import SeedResult
from pose.seeds.engines.budget import Budget
from pose.seeds.engines.team import Team
from pose.seeds.job import OpenTracker, SeedJob
from pose.seeds.relay import GONE, FarEnd, train_elsewhere
from pose.stop import Stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """An engine that trains seeds in processes of their own, several at once.

    Results come as members end. A request to stop reaches all; what they show and record is shown
    and recorded by the process that began them.

    Args:
        parallel: how many members train at the same time.
    """

    parallel: int

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
        """Train the seeds; each process finds the data of all jobs decoded.

        Raises:
            DivergedError: a seed's training is no longer finite; the others were stopped softly.
            DiedError: a process died; the others were trained to their end.
        """
        waiting, team = list(jobs), Team(open_tracker, display, budget)
        processes: dict[int, BaseProcess] = {}
        try:
            while True:
                reason = stop() or ("error" if team.error else None)
                if reason:
                    waiting.clear()
                    team.ask_to_stop(reason)
                while waiting and len(team.members) < self.parallel:
                    near, far = multiprocessing.Pipe()
                    member = team.begin(waiting.pop(0), near)
                    processes[id(member)] = _start(member.job, far, loaded.digest)
                if not team.members:
                    break
                for member in team.hear():
                    process = processes.pop(id(member))
                    process.join()
                    if member.is_over:
                        yield from team.result_of(member)
                    else:
                        team.bury(member.job.key, _how_it_died(process), member)
        finally:
            for process in processes.values():
                process.kill()
                process.join()
            for member in team.members:
                member.give_up("KILLED", "signal")
        team.raise_failures()


def _start(job: SeedJob, far: Connection, dataset_digest: str) -> BaseProcess:
    """A process that trains `job` at the far end of a connection."""
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(far, job, dataset_digest), name=job.title
    )
    # Started with the first process, it would let the signals through again.
    resource_tracker.ensure_running()
    # A terminal's Ctrl-C, and a signal to the whole group, are this process's to pass on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # The process has its own; while this one is open, its death would not be seen.
    far.close()
    return process


def _how_it_died(process: BaseProcess) -> str:
    """`killed by SIGKILL`, or its exit code."""
    code = process.exitcode or 0
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _train(connection: Connection, job: SeedJob, dataset_digest: str) -> None:
    """What a member's process does."""
    with contextlib.suppress(*GONE):
        train_elsewhere(FarEnd(connection), job, dataset_digest)
