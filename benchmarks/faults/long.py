"""A long run, and many runs in one store: what grows?"""

import itertools
import re
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.lab import Attempt, Lab
from benchmarks.faults.outcome import Outcome, Try
from benchmarks.faults.process import Process

LONG = "300 epochs of 5 seeds"
MANY = "100 runs in one store"
# Grown by more than this from the first tenth to the last, it does not stay as it was.
MAX_GROWTH = 1.25
TICKS = 100  # of /proc's CPU time, per second


class Sample(NamedTuple):
    """A process at the end of an epoch."""

    cpu_seconds: float
    memory_mb: float
    threads: int
    files: int


def sample(pid: int) -> Sample:
    """What a process has used and holds now."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(RssAnon|Threads):\s+(\d+)", status, re.MULTILINE))
    return Sample(
        cpu_seconds=(int(stat[11]) + int(stat[12])) / TICKS,
        memory_mb=int(found["RssAnon"]) / 1024,
        threads=int(found["Threads"]),
        files=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    )


def long_runs(lab: Lab) -> Iterator[Try]:
    """One long run, then many short ones."""
    yield Try(fault=LONG, name="", run=partial(_train_long, lab, 300, 5))
    yield Try(fault=MANY, name="", run=partial(_train_often, lab, 100))


def _train_long(lab: Lab, num_epochs: int, num_seeds: int) -> Outcome:
    attempt = Attempt(lab, "long")
    seeds = ",".join(map(str, range(num_seeds)))
    process = attempt.launch(attempt.training(num_epochs=num_epochs, seeds=seeds))
    samples = list(_watch(process, attempt))
    done = attempt.finish(process)
    if done.code:
        return Outcome(problems=(done.said(),))
    # The first seed imports and caches; from the second on nothing may grow.
    second, last = samples[num_epochs : 2 * num_epochs], samples[-num_epochs:]
    grown = Growth()
    for name in ("memory_mb", "threads", "files"):
        early, late = ([getattr(one, name) for one in part] for part in (second, last))
        grown.add(f"{name} in the second and the last seed", early, late)
    early, late = _cpu_seconds(second), _cpu_seconds(last)
    grown.add("CPU seconds per epoch in the second and the last seed", early, late)
    third = num_epochs // 3
    early, late = _cpu_seconds(last[:third]), _cpu_seconds(last[-third:])
    grown.add("CPU seconds per epoch in the last seed's first and last third", early, late)
    return grown.outcome()


def _cpu_seconds(samples: Sequence[Sample]) -> list[float]:
    """Of each epoch."""
    return [b.cpu_seconds - a.cpu_seconds for a, b in itertools.pairwise(samples)]


class Growth:
    """Figures early and late, and which of them grew."""

    def __init__(self) -> None:
        self._measured: dict[str, float] = {}
        self._problems: list[str] = []

    def add(self, name: str, early: Sequence[float], late: Sequence[float]) -> None:
        """The medians of a figure, early and late."""
        before, after = statistics.median(early), statistics.median(late)
        self._measured |= {f"{name}: early": before, f"{name}: late": after}
        if after > MAX_GROWTH * before:
            self._problems.append(f"{name} grew from {before:.2f} to {after:.2f}")

    def outcome(self, **measured: float) -> Outcome:
        """Survived where nothing grew."""
        return Outcome(
            said="as at its beginning",
            problems=tuple(self._problems),
            measured={**self._measured, **measured},
        )


def _watch(process: Process, attempt: Attempt) -> Iterator[Sample]:
    """A sample at the end of each epoch, or soon after."""
    seen = 0
    while process.poll() is None:
        epochs = len(re.findall(r"^seed \d+ epoch ", attempt.text(), re.MULTILINE))
        if seen < epochs:
            taken = sample(process.pid)
            yield from [taken] * (epochs - seen)
            seen = epochs
        time.sleep(0.02)


def _train_often(lab: Lab, num_runs: int) -> Outcome:
    attempt = Attempt(lab, "many")
    seconds = []
    for number in range(num_runs):
        command = attempt.training(run_name=f"run_{number}", seeds="1", num_epochs=1)
        before = _cpu_of_children()
        done = attempt.do(command)
        seconds.append(_cpu_of_children() - before)
        if done.code:
            return Outcome(problems=(f"run {number}: {done.said()}",))
    grown = Growth()
    tenth = num_runs // 10
    grown.add(
        "CPU seconds per run, the first and the last tenth", seconds[:tenth], seconds[-tenth:]
    )
    return grown.outcome(store_mb=(attempt.folder / "mlflow.db").stat().st_size / 1e6)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
