"""SIGKILL at random moments of the command's whole life, and at each point where it writes."""

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.lab import Attempt, Lab
from benchmarks.faults.outcome import Outcome, Try
from benchmarks.faults.process import below, wait_until_gone

RANDOM = "SIGKILL at a random moment"
RANDOM_MLFLOW = "SIGKILL of `mlflow run` at a random moment"
POINT = "SIGKILL before a commit, rename, copy or new file"
# Python's own reports of what changes on disk.
# Of runs, models, temporary files: others in every try.
RANDOM_NAMES = re.compile(
    r"(?<=/)(m-)?[0-9a-f]{32}|(?<=[./])\d+(?=\.(partial|new))|(?<=uploading\.)\w+"
)
EVENTS = {"os.rename", "os.remove", "os.mkdir", "shutil.copyfile", "shutil.copytree"}


def random_kills(lab: Lab, count: int, seed: int = 0) -> Iterator[Try]:
    """Kills of `python -m entrypoints.train`, spread evenly over its life."""
    rng = random.Random(seed)
    for number in range(count):
        share = (number + rng.random()) / count
        run = partial(_kill, lab, number, share)
        yield Try(fault=RANDOM, name=f"{number} at {share:.3f}", run=run)


def _kill(lab: Lab, number: int, share: float) -> Outcome:
    # One in eight begins without a store.
    attempt = Attempt(lab, f"kill_{number}", has_store=number % 8 != 0)
    return _kill_at(attempt, attempt.training(), share * lab.seconds)


def random_kills_of_mlflow(lab: Lab, count: int, seed: int = 1) -> Iterator[Try]:
    """Kills of `mlflow run`, the training below it left to itself."""
    rng = random.Random(seed)
    for number in range(count):
        share = (number + rng.random()) / count
        run = partial(_kill_mlflow, lab, number, share)
        yield Try(fault=RANDOM_MLFLOW, name=f"{number} at {share:.3f}", run=run)


def _kill_mlflow(lab: Lab, number: int, share: float) -> Outcome:
    attempt = Attempt(lab, f"kill_mlflow_{number}")
    # Before the command's own life two processes import, for some seconds each.
    return _kill_at(attempt, attempt.through_mlflow(), share * (lab.seconds + 10))


def _kill_at(attempt: Attempt, command: list[str], seconds: float) -> Outcome:
    process = attempt.launch(command)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    children = list(below(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait()
    problems = []
    if not wait_until_gone(children):
        problems.append("the training below it ran on for a minute")
    problems += attempt.judge(command)
    if not problems:
        attempt.remove()
    return Outcome(said="the same command continues", problems=tuple(problems))


class Points:
    """Counts the points at which a process writes, and kills it before a chosen one.

    Args:
        folder: what is written elsewhere does not count.
        log: the points, one per line.
        kill_at: number of the point, from 1; 0: none.
        kill_before: name of the point, or its beginning; the first that has it counts.
    """

    def __init__(self, folder: Path, log: Path, kill_at: int = 0, kill_before: str = "") -> None:
        self._home = str(folder)
        self._log = log
        self._kill_at = kill_at
        self._kill_before = kill_before
        self._count = 0
        self._is_busy = False

    def arm(self) -> None:
        """Begin to count in this process."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        self._descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Engine, "commit", self._on_commit)
        sys.addaudithook(self._on_event)

    def _hit(self, name: str) -> None:
        if self._is_busy:
            return
        self._is_busy = True
        self._count += 1
        shown = RANDOM_NAMES.sub("*", name)
        os.write(self._descriptor, f"{shown}\n".encode())
        is_named = bool(self._kill_before) and shown.startswith(self._kill_before)
        if self._count == self._kill_at or is_named:
            os.kill(os.getpid(), signal.SIGKILL)
        self._is_busy = False

    def _on_event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in EVENTS:
            place = 1 if name in ("os.rename", "shutil.copyfile", "shutil.copytree") else 0
        elif name == "open" and _writes(*arguments[1:3]):
            place = 0
        else:
            return
        path = arguments[place]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        shown = os.path.abspath(os.fsdecode(path))
        # Copies of code and in the temporary folder: what counts is where they are moved to.
        if not shown.startswith(self._home) or "/tmp/" in shown[len(self._home) :]:
            return
        if "/code/" not in shown and "__pycache__" not in shown and shown != str(self._log):
            self._hit(f"{name} {shown.removeprefix(self._home)}")

    def _on_statement(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.upper().split()
        if words and words[0] in ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP"):
            table = words[1] if words[0] == "UPDATE" else words[2]
            connection.info.setdefault("wrote", []).append(f"{words[0]} {table}".lower())

    def _on_commit(self, connection: Any) -> None:
        if wrote := connection.info.pop("wrote", None):
            self._hit(f"commit {', '.join(dict.fromkeys(wrote))}")


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def every_point(lab: Lab) -> Iterator[Try]:
    """Kills before each point of the undisturbed run; first those that are unlike each other."""
    made = Attempt(lab, "points")
    log = made.folder / "points.txt"
    made.finish(made.launch(made.training(), arm=Points(made.folder, log).arm))
    names = log.read_text(encoding="utf-8").splitlines()
    first = {name: number for number, name in reversed(list(enumerate(names, start=1)))}
    for number in sorted(range(1, len(names) + 1), key=lambda n: first[names[n - 1]] != n):
        run = partial(_kill_before, lab, number)
        yield Try(fault=POINT, name=f"{number} {names[number - 1]}"[:120], run=run)


def _kill_before(lab: Lab, number: int) -> Outcome:
    attempt = Attempt(lab, f"point_{number}")
    arm: Callable[[], None] = Points(attempt.folder, attempt.folder / "points.txt", number).arm
    attempt.finish(attempt.launch(attempt.training(), arm=arm))
    problems = attempt.judge(attempt.training())
    if not problems:
        attempt.remove()
    return Outcome(said="the same command continues", problems=problems)
