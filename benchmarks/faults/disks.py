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

# Places and sizes of their file systems: too small at once, or after a while.
SIZES = {
    "outputs": ("1m", "8m", "14m", "20m"),
    "cache": ("100k", "160k"),
    "store": ("600k", "1000k", "1100k"),
    "artifacts": ("100k", "5m", "12m"),
    "temporary folder": ("0k", "1m", "3m"),
}
READ_ONLY = ("outputs", "cache", "store", "artifacts", "temporary folder", "project")
ENOUGH = "400m"


def disks(lab: Lab) -> Iterator[Try]:
    """Every place full, at several sizes; then every place read-only."""
    for place, sizes in SIZES.items():
        for size in sizes:
            yield Try(
                fault=f"disk of the {place} full", name=size, run=partial(_fill, lab, place, size)
            )
    for place in READ_ONLY:
        fault = "a place that may not be written to"
        yield Try(fault=fault, name=place, run=partial(_forbid, lab, place))


def _fill(lab: Lab, place: str, size: str) -> Outcome:
    attempt = Attempt(lab, f"full_{place}_{size}".replace(" ", "_"))
    return _with_small(attempt, place, f"size={size}", _make_room)


def _forbid(lab: Lab, place: str) -> Outcome:
    attempt = Attempt(lab, f"read_only_{place}".replace(" ", "_"))
    return _with_small(attempt, place, "ro", _make_writable)


def _make_room(folder: Path) -> None:
    _mount("-o", f"remount,size={ENOUGH}", str(folder))


def _make_writable(folder: Path) -> None:
    _mount("-o", "remount,rw", str(folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextlib.contextmanager
def _mounted(folder: Path, option: str) -> Iterator[None]:
    """A file system in memory at `folder`, with what is there copied into it."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.with_name(f"{folder.name}.kept")
    folder.rename(kept)
    folder.mkdir()
    first = f"size={ENOUGH}" if option == "ro" else option
    _mount("-t", "tmpfs", "-o", first, "faults", str(folder))
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        if option == "ro":
            _mount("-o", "remount,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _with_small(attempt: Attempt, place: str, option: str, mend: Callable[[Path], None]) -> Outcome:
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
    with _mounted(folders[place], option):
        done = attempt.finish(attempt.launch(attempt.training(), log=log, env=env), log)
        problems = list(_judge_end(attempt, done.code, done.text))
        mend(folders[place])
        again = attempt.launch(attempt.training(), log=log, env=env)
        done_again = attempt.finish(again, log)
        if place == "store":
            shutil.copy(folders["store"] / "mlflow.db", database)
        if done_again.code:
            problems.append(f"with room the same command ends: {done_again.said()}"[:300])
        else:
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
