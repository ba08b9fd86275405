"""The processes of this machine that train one member: one, or several on parts of every batch."""

import contextlib
import dataclasses
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pose.device import pick_device
from pose.seeds.follower import follow_seed
from pose.seeds.job import SeedJob
from pose.seeds.relay import GONE, FarEnd, train_elsewhere
from pose.stop import ask_for_signal_when_parent_dies
from pose.workers import how_it_died, start_process

# How long processes may take to notice that another is gone, before they are ended.
NOTICE_SECONDS = 5.0


class Crew:
    """The processes of one member; the first speaks for all.

    Args:
        far: the far end of the member's connection.
        dataset_digest: of the data that they must find.
        place: which of the members that train at the same time this is; with several processes
            each, it has the GPUs from `place * job.processes` on.
    """

    def __init__(self, job: SeedJob, far: Connection, dataset_digest: str, place: int) -> None:
        self.place = place
        self._all: list[BaseProcess] = []
        self._noticed: float | None = None
        jobs = list(jobs_of_processes(job, place))
        pipes = [multiprocessing.Pipe() for _ in jobs[1:]]
        near = [near for near, _ in pipes]
        try:
            self._all.append(start_process(_lead, (far, jobs[0], dataset_digest, near), job.title))
            for rank, (own, (_, its)) in enumerate(zip(jobs[1:], pipes, strict=True), start=2):
                name = f"{job.title}, process {rank}"
                self._all.append(start_process(_follow, (its, own, dataset_digest), name))
        except BaseException:
            self.kill()
            raise
        finally:
            # The processes have their own; while these are open, deaths would not be seen.
            for connection in (far, *near, *(its for _, its in pipes)):
                connection.close()

    def end_if_broken(self) -> None:
        """End the first where another is gone and it has not noticed: it may wait for ever."""
        if all(process.exitcode in (None, 0) for process in self._all[1:]):
            return
        self._noticed = self._noticed or time.monotonic()
        if time.monotonic() - self._noticed > NOTICE_SECONDS:
            self._all[0].kill()

    def join(self) -> str:
        """Wait for the end of the first, and soon of all; how they died, in words."""
        first, *others = self._all
        first.join()
        deadline = time.monotonic() + NOTICE_SECONDS
        for process in others:
            process.join(max(0.0, deadline - time.monotonic()))
        # One that is ended here is not what went wrong.
        how = self._how_they_died()
        self.kill()
        return how

    def kill(self) -> None:
        """End all at once."""
        for process in self._all:
            process.kill()
            process.join()

    def _how_they_died(self) -> str:
        if len(self._all) == 1:
            return how_it_died(self._all[0].exitcode or 0)
        # The first may have been ended because of another.
        for rank in (*range(1, len(self._all)), 0):
            code = self._all[rank].exitcode
            if code:
                return f"process {rank + 1} of {len(self._all)} {how_it_died(code)}"
        return f"its {len(self._all)} processes lost each other"


def jobs_of_processes(job: SeedJob, place: int) -> Iterator[SeedJob]:
    """The job as each of its processes sees it."""
    if job.processes == 1 or pick_device(job.device).type != "cuda":
        yield from [job] * job.processes
        return
    for rank in range(job.processes):
        yield dataclasses.replace(job, device=f"cuda:{place * job.processes + rank}")


def _lead(
    connection: Connection, job: SeedJob, dataset_digest: str, followers: Sequence[Connection]
) -> None:
    """What a member's first process does."""
    if followers:
        _end_with_parent()
    with contextlib.suppress(*GONE):
        train_elsewhere(FarEnd(connection), job, dataset_digest, followers=followers)


def _follow(link: Connection, job: SeedJob, dataset_digest: str) -> None:
    """What the others do."""
    _end_with_parent()
    if not follow_seed(link, job, dataset_digest):
        sys.exit(1)


def _end_with_parent() -> None:
    """Not even wait for another process, where nobody is there to end this one."""
    ask_for_signal_when_parent_dies(signal.SIGKILL)
