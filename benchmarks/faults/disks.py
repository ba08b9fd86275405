"""Disks that are full or may not be written to. Needs root: small file systems are mounted."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.faults.lab import Attempt, Lab
from benchmarks.faults.outcome import Outcome, Try
from pose.errors import InputError
from pose.seeds import folder as seed_folder

# Places and the kilobytes that they have for what comes: too few at once, or after a while.
ROOM = {
    "outputs": (100, 8_000, 14_000, 20_000),
    "cache": (100, 160),
    "store": (20, 80, 300),
    "artifacts": (100, 5_000, 12_000),
    "temporary folder": (20, 1_000, 3_000),
}
READ_ONLY = ("outputs", "cache", "store", "artifacts", "temporary folder", "project")
ENOUGH = "400m"


def disks(lab: Lab) -> Iterator[Try]:
    """Every place full, at several sizes; then every place read-only."""
    for place, rooms in ROOM.items():
        for room in rooms:
            run = partial(_fill, lab, place, room)
            yield Try(fault=f"disk of the {place} full", name=f"{room} kB", run=run)
    for place in READ_ONLY:
        fault = "a place that may not be written to"
        yield Try(fault=fault, name=place, run=partial(_forbid, lab, place))


def _fill(lab: Lab, place: str, room: int) -> Outcome:
    attempt = Attempt(lab, f"full_{place}_{room}".replace(" ", "_"))
    return _with_small(attempt, place, room, _make_room)


def _forbid(lab: Lab, place: str) -> Outcome:
    attempt = Attempt(lab, f"read_only_{place}".replace(" ", "_"))
    return _with_small(attempt, place, None, _make_writable)


def _make_room(folder: Path) -> None:
    _mount("-o", f"remount,size={ENOUGH}", str(folder))


def _make_writable(folder: Path) -> None:
    _mount("-o", "remount,rw", str(folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextlib.contextmanager
def _mounted(folder: Path, room: int | None) -> Iterator[None]:
    """A file system in memory at `folder`, with what is there copied into it.

    Args:
        room: kilobytes for what comes; None: it may not be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.with_name(f"{folder.name}.kept")
    folder.rename(kept)
    folder.mkdir()
    # A file system in memory counts pages of 4 kB.
    used = sum(4 + 4 * -(-path.stat().st_size // 4096) for path in kept.rglob("*"))
    size = ENOUGH if room is None else f"{used + room}k"
    _mount("-t", "tmpfs", "-o", f"size={size}", "faults", str(folder))
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        if room is None:
            _mount("-o", "remount,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _with_small(
    attempt: Attempt, place: str, room: int | None, mend: Callable[[Path], None]
) -> Outcome:
    """Train where `place` is small, then mend it, and go on."""
    folders = {
        "outputs": attempt.folder / "outputs",
        "cache": attempt.folder / "cache",
        "store": attempt.folder / "database",
        "artifacts": attempt.folder / "mlruns",
        "temporary folder": attempt.folder / "tmp",
        "project": attempt.folder,
    }
    env = {}
    database = attempt.folder / "mlflow.db"
    if place == "store":
        folders["store"].mkdir()
        database.rename(folders["store"] / "mlflow.db")
        env = {"MLFLOW_TRACKING_URI": f"sqlite:///{folders['store'] / 'mlflow.db'}"}
    # The log is no part of the project: it lies beside it.
    log = f"../{attempt.name}.txt"
    with _mounted(folders[place], room):
        done = attempt.finish(attempt.launch(attempt.training(), log=log, env=env), log)
        problems = list(_judge_end(attempt, done.code, done.text))
        mend(folders[place])
        # A run that needed no more room is finished: the same command would train another one.
        if done.code:
            again = attempt.finish(attempt.launch(attempt.training(), log=log, env=env), log)
            if again.code:
                problems.append(f"with room the same command ends: {again.said()}"[:300])
        if place == "store":
            shutil.copy(folders["store"] / "mlflow.db", database)
        if not problems:
            problems += attempt.judge(attempt.training())
    if not problems:
        attempt.remove()
    said = done.said().replace(str(attempt.folder), "<project>")
    return Outcome(said=said if done.code else "trains on", problems=tuple(problems))


def _judge_end(attempt: Attempt, code: int, text: str) -> Iterator[str]:
    if "Traceback" in text:
        yield f"traceback: {text.strip().splitlines()[-1]}"[:300]
    if code not in (0, 2):
        yield f"exit code {code}"
    for path in attempt.run_folder.glob(f"seed_*/{seed_folder.CHECKPOINT}"):
        try:
            seed_folder.read_checkpoint(path)
        except InputError as error:
            yield f"the last checkpoint is damaged: {error}"[:200]


def can_mount() -> bool:
    """Whether file systems can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None
