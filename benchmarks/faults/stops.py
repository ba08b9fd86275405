"""SIGTERM, Ctrl-C and stop.txt, through `python -m` and through `mlflow run`."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.faults.lab import Attempt, Lab
from benchmarks.faults.outcome import Outcome, Try
from benchmarks.faults.process import Process, below, wait_until_gone

# The end of the batch and the record of the end take seconds, on however busy a machine less.
MAX_SECONDS = 300
Send = Callable[[Process, Attempt], None]


def stop_file(process: Process, attempt: Attempt) -> None:
    """Write stop.txt."""
    (attempt.folder / "stop.txt").write_text("")


def to_group(number: int) -> Send:
    """A signal to all, as a terminal's Ctrl-C is."""
    return lambda process, attempt: os.killpg(process.pid, number)


def to_process(number: int) -> Send:
    """A signal to the command alone."""
    return lambda process, attempt: process.send_signal(number)


def to_training(number: int) -> Send:
    """A signal to what `mlflow run` started, and not to MLflow."""
    return lambda process, attempt: os.kill(list(below(process.pid))[-1], number)


PYTHON = {
    "SIGTERM": to_process(signal.SIGTERM),
    "Ctrl-C": to_group(signal.SIGINT),
    "stop.txt": stop_file,
}
MLFLOW = {
    "stop.txt": stop_file,
    "Ctrl-C": to_group(signal.SIGINT),
    "SIGTERM to mlflow": to_process(signal.SIGTERM),
    "SIGTERM to the training": to_training(signal.SIGTERM),
    "SIGINT to mlflow alone": to_process(signal.SIGINT),
    "SIGKILL to the training": to_training(signal.SIGKILL),
}


def stops(lab: Lab, count: int, seed: int = 2) -> Iterator[Try]:
    """Each way to stop `python -m entrypoints.train`, at `count` moments of its life."""
    rng = random.Random(seed)
    for way in PYTHON:
        for number in range(count):
            share = (number + rng.random()) / count
            run = partial(_stop_python, lab, way, number, share)
            yield Try(fault=f"{way}, `python -m`", name=f"{number} at {share:.3f}", run=run)


def _stop_python(lab: Lab, way: str, number: int, share: float) -> Outcome:
    attempt = Attempt(lab, f"stop_{way}_{number}")
    return _stop(attempt, attempt.training(), PYTHON[way], seconds=share * lab.seconds)


def stops_of_mlflow(lab: Lab, count: int) -> Iterator[Try]:
    """Each way to stop `mlflow run`, in the first seed's epochs, `count` times."""
    for way in MLFLOW:
        for number in range(count):
            run = partial(_stop_mlflow, lab, way, number)
            yield Try(fault=f"{way}, `mlflow run`", name=str(number), run=run)


def _stop_mlflow(lab: Lab, way: str, number: int) -> Outcome:
    attempt = Attempt(lab, f"mlflow_{way}_{number}".replace(" ", "_"))
    return _stop(attempt, attempt.through_mlflow(), MLFLOW[way])


def _stop(
    attempt: Attempt, command: list[str], send: Send, seconds: float | None = None
) -> Outcome:
    """Stop a command after `seconds`, or after its first epoch."""
    process = attempt.launch(command)
    started = time.monotonic()
    while process.poll() is None:
        if seconds is None:
            if attempt.history("night", 1):
                break
        elif time.monotonic() - started > seconds:
            break
        time.sleep(0.005)
    children = list(below(process.pid))
    if process.poll() is None:
        send(process, attempt)
    asked = time.monotonic()
    done = attempt.finish(process, seconds=MAX_SECONDS)
    problems = [] if wait_until_gone(children) else ["the training below it ran on for a minute"]
    if time.monotonic() - asked > MAX_SECONDS:
        problems.append(f"had not ended after {MAX_SECONDS} s")
    if "Traceback" in done.text:
        problems.append(done.said())
    lines = [line for line in done.text.splitlines() if line.startswith("stopped")]
    # One that is older than the command asks for nothing.
    time.sleep(1.1)
    problems += attempt.judge(command)
    if not problems:
        attempt.remove()
    return Outcome(
        said=lines[-1] if lines else "the same command continues",
        problems=tuple(problems),
        measured={"seconds": time.monotonic() - asked if not lines else done.seconds},
    )
