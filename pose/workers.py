"""Processes of this machine: how they are started, how they died, and several that take calls."""

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self, TypeVar

from pose.errors import DiedError, InputError, one_line
from pose.stop import Stop, ask_for_signal_when_parent_dies

# How often a request to stop is looked for while nothing ends.
LOOK_SECONDS = 0.2
# What reading and writing raise when the other end is gone.
_GONE = (EOFError, ConnectionError)

J = TypeVar("J")
T = TypeVar("T")


def start_process(
    target: Callable[..., None], arguments: tuple[Any, ...], name: str
) -> BaseProcess:
    """A new process that is spared a terminal's Ctrl-C, and signals to the whole group.

    These are this process's to pass on.
    """
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, name=name)
    # Started with the first process, it would let the signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def how_it_died(code: int) -> str:
    """`killed by SIGKILL`, or its exit code."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def died(job: object, how: str) -> DiedError:
    """That the process of `job` is gone, in one line."""
    return DiedError(
        f"every process must live to its end, found dead: {job} ({how}); the same command goes on"
    )


class Workers:
    """Processes that take one call at a time each; they end with the block."""

    def __init__(self) -> None:
        self._processes: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connection in list(self._processes):
            self._end(connection)

    def __call__(
        self,
        function: Callable[[Any, J], T],
        shared: object,
        jobs: Iterable[J],
        stop: Stop,
        at_once: int,
    ) -> Iterator[tuple[J, T]]:
        """As `pose.cluster.Tasks`; a call whose process is gone is not started again."""
        waiting = iter(jobs)
        job_of: dict[Connection, J] = {}
        try:
            while not stop():
                for job in itertools.islice(waiting, at_once - len(job_of)):
                    connection = self._free(job_of)
                    job_of[connection] = job
                    connection.send((function, shared, job))
                if not job_of:
                    return
                ready = wait(list(job_of), LOOK_SECONDS)
                for connection in [own for own in job_of if own in ready]:
                    job = job_of.pop(connection)
                    yield job, self._answer(connection, job)
        finally:
            for connection in job_of:
                self._end(connection)

    def _free(self, busy: Iterable[Connection]) -> Connection:
        """A connection to a process that has nothing to do."""
        for connection in self._processes:
            if connection not in busy:
                return connection
        near, far = multiprocessing.Pipe()
        self._processes[near] = start_process(_work, (far,), f"worker {len(self._processes) + 1}")
        # The process has its own; while this one is open, its death would not be seen.
        far.close()
        return near

    def _answer(self, connection: Connection, job: object) -> Any:
        try:
            answer, error = connection.recv()
        except _GONE:
            # It closed its end by dying: how is known in a moment.
            self._processes[connection].join(LOOK_SECONDS)
            raise died(job, how_it_died(self._end(connection))) from None
        if error is not None:
            raise error
        return answer

    def _end(self, connection: Connection) -> int:
        """End a process at once, unless it has ended; its exit code."""
        process = self._processes.pop(connection)
        process.kill()
        process.join()
        connection.close()
        return process.exitcode or 0


def _work(connection: Connection) -> None:
    """What such a process does: answer calls until nobody is there."""
    # Not even to the end of a call, where nobody is there to end this process.
    ask_for_signal_when_parent_dies(signal.SIGKILL)
    with contextlib.suppress(*_GONE):
        while True:
            function, shared, job = connection.recv()
            connection.send(_answered(function, shared, job))


def _answered(function: Callable[[Any, J], T], shared: Any, job: J) -> tuple[T | None, Any]:
    """What a function returns, or what it raises."""
    try:
        return function(shared, job), None
    except InputError as error:
        return None, error
    except Exception as error:
        return None, RuntimeError(f"{job}: {type(error).__name__}: {one_line(error)}")
