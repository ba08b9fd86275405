"""The Ray cluster that commands compute on: the one that RAY_ADDRESS names, else one started here.

Ray is an extra: it is imported when somebody asks for it.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pose
import pose_models
from pose.errors import InputError, one_line
from pose.stop import Stop
from pose.workers import LOOK_SECONDS, died

ADDRESS_VARIABLE = "RAY_ADDRESS"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Nothing large goes through Ray's own store of objects; this is the least that it takes.
_STORE_BYTES = 80 << 20
# How often Ray starts a call again whose process or machine is gone.
MAX_RETRIES = 3

J = TypeVar("J")
T = TypeVar("T")


def check_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        InputError: it is not installed, or RAY_ADDRESS is of a kind that cannot be used.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "engine=ray must find Ray, which is not installed: pip install -r requirements-ray.txt"
        )
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if address.startswith("ray://"):
        raise InputError(
            f"{ADDRESS_VARIABLE} must be <host>:<port> or auto, got {address}: Ray's client "
            "connects from outside, where members could not report; run on one of its machines"
        )


@contextlib.contextmanager
def joined(num_cpus: int) -> Iterator[None]:
    """Be part of a cluster; one that was started for it ends with the block.

    Blocks within the block are part of the same cluster.

    Args:
        num_cpus: for so many there is to be room where a cluster is started here.

    Raises:
        InputError: there is no Ray, or the cluster cannot be joined.
    """
    check_ray()
    with _signals_kept():
        _speak_little()
        import ray
    if ray.is_initialized():
        yield
        return
    with _signals_kept():
        _join(ray, num_cpus)
    try:
        yield
    finally:
        with _signals_kept():
            ray.shutdown()


def num_places(num_cpus: float, num_gpus: float) -> int:
    """How many tasks of that size the joined cluster has room for at the same time."""
    import ray

    places = 0.0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        needed = (("CPU", num_cpus), ("GPU", num_gpus))
        places += min(has.get(what, 0) // count for what, count in needed if count)
    return int(places)


def lack_of_room(num_cpus: int, num_gpus: float) -> list[str]:
    """A line where no machine of the joined cluster has what a task wants; one may come."""
    if num_places(num_cpus, num_gpus):
        return []
    return [
        f"warning: waiting for a machine with {num_cpus} CPUs and {num_gpus:g} GPUs, which the "
        "cluster does not have"
    ]


def in_turn(
    function: Callable[..., T], shared: object, arguments: Iterable[tuple[Any, ...]], num_cpus: int
) -> Iterator[T]:
    """What a function returns for all arguments, in their order, computed on the joined cluster.

    So many calls are under way that every machine has its next one, and no more: memory does not
    grow with their number.

    Args:
        function: of a module; its first argument is `shared`, which travels once.
        num_cpus: for each call.

    Raises:
        InputError: `shared` cannot travel, or Ray gave a call up.
    """
    import ray

    call = ray.remote(function).options(num_cpus=num_cpus, max_retries=MAX_RETRIES)
    try:
        there = ray.put(shared)
    # What pickling raises depends on what cannot be pickled.
    except Exception as error:
        raise InputError(
            f"model must be one that can be sent to other machines with engine=ray, found: "
            f"{one_line(error)}; leave the engine out"
        ) from error
    calls = (call.remote(there, *own) for own in arguments)
    waiting = collections.deque(itertools.islice(calls, 2 * max(1, num_places(num_cpus, 0))))
    while waiting:
        try:
            answer = ray.get(waiting.popleft())
        except ray.exceptions.RayError as error:
            raise InputError(
                f"every shard of the images must be predicted, found: "
                f"{one_line(getattr(error, 'cause', None) or error, 300)}; the same command goes on"
            ) from error
        waiting.extend(itertools.islice(calls, 1))
        yield answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """Calls on the joined cluster, each with so many CPUs and GPUs; less than one is a share."""

    num_cpus: int
    num_gpus: float

    def __call__(
        self,
        function: Callable[[Any, J], T],
        shared: object,
        jobs: Iterable[J],
        stop: Stop,
        at_once: int,
    ) -> Iterator[tuple[J, T]]:
        """The jobs with what a function returns for them, as its calls end.

        No more begin once `stop` asks for it, and those under way are ended at once. Ray starts
        a call again whose process or machine is gone.

        Args:
            function: of a module; its first argument is `shared`, which travels once.
            jobs: asked for one when it can begin.
            at_once: so many calls are under way at most.

        Raises:
            DiedError: Ray gave a call up; it is named as its job is in text.
            InputError: the function's own, as any other that it raises.
        """
        import ray

        call = ray.remote(function).options(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=MAX_RETRIES
        )
        there, waiting = ray.put(shared), iter(jobs)
        job_of: dict[Any, J] = {}
        try:
            while not stop():
                for job in itertools.islice(waiting, at_once - len(job_of)):
                    job_of[call.remote(there, job)] = job
                if not job_of:
                    return
                for reference in ray.wait(list(job_of), timeout=LOOK_SECONDS)[0]:
                    job = job_of.pop(reference)
                    yield job, _answer(ray, reference, job)
        finally:
            for reference in job_of:
                ray.cancel(reference, force=True)


def _answer(ray: Any, reference: Any, job: object) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise died(job, one_line(error, 300)) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for its own; here it is a request to stop, whoever is asked first."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _speak_little() -> None:
    """What Ray would say to its makers, or on the screen before it is asked."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Warnings of its C++ part go to the screen; what matters is raised as well.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    # Members without a GPU are told so by their device.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to stderr: Ray's C++ part says there how little it is going to say."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _join(ray: Any, num_cpus: int) -> None:
    address = os.environ.get(ADDRESS_VARIABLE) or "local"
    started_here = {
        "num_cpus": max(num_cpus, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        # By default Ray's work yields to everything else on the machine; here it is the work.
        "_system_config": {"worker_niceness": 0},
    }
    try:
        with _silent():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # The code alone: never the working folder, in which data and results may lie.
                runtime_env={
                    "py_modules": [_folder_of(pose), _folder_of(pose_models)],
                    "excludes": ["__pycache__"],
                },
                **(started_here if address == "local" else {}),
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        expected = (
            "a cluster must be possible on this machine"
            if address == "local"
            else f"{ADDRESS_VARIABLE} must be that of a Ray cluster that answers, got {address}"
        )
        raise InputError(f"{expected}, found: {one_line(error)}") from error


def _folder_of(package: Any) -> str:
    return str(Path(package.__file__).parent)
