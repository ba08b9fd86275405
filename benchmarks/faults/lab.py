"""Where the tries happen: tiny data, an empty store, an undisturbed run to compare with."""

import dataclasses
import functools
import io
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.faults.audit import Facts, read_facts
from benchmarks.faults.process import Forked, Process
from tests.project import Project

RUN = "night"
SEEDS = (1, 2)
NUM_EPOCHS = 3
NUM_IMAGES = 48
# No command takes so long by itself, on however busy a machine.
PATIENCE = 1200
NOTHING: Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    seconds: float
    text: str

    def said(self) -> str:
        """What a user sees of an end before time: the line of its error, else the last line."""
        if "Traceback (most recent call last)" in self.text:
            return f"traceback: {self.text.strip().splitlines()[-1]}"
        lines = [line for line in self.text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [""])[-1]


class Attempt(Project):
    """The project in a folder of its own, where something is going to happen to it."""

    def __init__(self, lab: "Lab", name: str, *, has_store: bool = True) -> None:
        folder = lab.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        super().__init__(folder)
        self.lab = lab
        self.name = name
        (folder / "tmp").mkdir()
        if has_store:
            lab.put_store(folder)

    @property
    def run_folder(self) -> Path:
        """Where the seeds' folders are."""
        return self.folder / "outputs" / RUN

    def options(self, **changes: object) -> dict[str, object]:
        """The options of the tiny run. Muon, averaged weights and one cycle: much to restore."""
        given = {
            "dataset": self.lab.data,
            "model": "simple_cnn",
            "run_name": RUN,
            "seeds": ",".join(map(str, SEEDS)),
            "num_epochs": NUM_EPOCHS,
            "image_size": 32,
            "batch_size": 8,
            **self.lab.options,
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def training(self, **changes: object) -> list[str]:
        """`python -m entrypoints.train` of the tiny run, as `start` takes it."""
        return self.train_command(**self.options(**changes))

    def through_mlflow(self, **changes: object) -> list[str]:
        """`mlflow run . -e train` of the tiny run."""
        return self.mlflow_command("train", **self.options(**changes))

    def environment(self, **changes: str) -> dict[str, str]:
        """Of its commands: nothing of this machine's own settings."""
        own = {
            "HOME": str(self.folder / "tmp"),
            "TMPDIR": str(self.folder / "tmp"),
            "POSE_CACHE": str(self.folder / "cache"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return {**super().environment(), **own, **changes}

    def launch(
        self,
        command: Sequence[str],
        *,
        log: str = "log.txt",
        arm: Callable[[], None] | None = None,
        is_real: bool = False,
        env: Mapping[str, str] = NOTHING,
    ) -> Process:
        """Start a command: in a fork where it is one of ours.

        Args:
            arm: called in the fork before the command.
            env: environment variables besides its own.
            is_real: as a user would start it, in a process of its own.
        """
        if command[0] == sys.executable and not is_real:
            uri = {"MLFLOW_TRACKING_URI": self.store, **env}
            path = self.folder / log
            # The fork may be later than whoever reads it.
            path.touch()
            return Forked(command[2:], self.folder, self.environment(**uri), path, arm)
        with open(self.folder / log, "w", encoding="utf-8") as handle:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(**env),
                stdout=handle,
                stderr=handle,
                start_new_session=True,
            )

    def finish(self, process: Process, log: str = "log.txt", seconds: float = PATIENCE) -> Done:
        """Wait for the end of a command; one that hangs is killed."""
        started = time.monotonic()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return Done(code, time.monotonic() - started, self.text(log))

    def text(self, log: str = "log.txt") -> str:
        """What a command has printed so far."""
        return (self.folder / log).read_text(encoding="utf-8", errors="replace")

    def do(
        self, command: Sequence[str], log: str = "log.txt", env: Mapping[str, str] = NOTHING
    ) -> Done:
        """Run a command to its end."""
        return self.finish(self.launch(command, log=log, env=env), log)

    def is_complete(self, run: str = RUN) -> bool:
        """Whether the newest run of that name says so."""
        try:
            with sqlite3.connect(f"file:{self.folder / 'mlflow.db'}?mode=ro", uri=True) as db:
                rows = db.execute(
                    "select c.value from runs r join tags c on c.run_uuid = r.run_uuid "
                    "join tags n on n.run_uuid = r.run_uuid where c.key = 'is_complete' "
                    "and n.key = 'run' and n.value = ? order by r.start_time desc",
                    (run,),
                ).fetchall()
        except sqlite3.Error:
            return False
        return bool(rows) and rows[0][0] == "true"

    def go_on(self, command: Sequence[str], env: Mapping[str, str] = NOTHING) -> list[Done]:
        """The same command until it is through, four times at most; none if it is already."""
        done: list[Done] = []
        while not self.is_complete() and len(done) < 4:
            done.append(self.do(command, f"again_{len(done)}.txt", env))
        return done

    def judge(self, command: Sequence[str], env: Mapping[str, str] = NOTHING) -> tuple[str, ...]:
        """Go on with the same command; what differs then from the undisturbed run."""
        done = self.go_on(command, env)
        if not self.is_complete():
            last = done[-1].said() if done else "nothing"
            return (f"the same command does not finish: {last}"[:300],)
        traces = sum(one.text.count("Traceback (most recent") for one in done)
        problems = read_facts(self.folder, RUN).differences(self.lab.reference)
        return (*problems, *([f"{traces} tracebacks on the way"] if traces else []))

    def remove(self) -> None:
        """Make room."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Lab:
    """What all tries share.

    Args:
        folder: where they happen.
        options: of its runs, other than the usual ones.
    """

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder.resolve()
        self.options = options
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        if not self.data.exists():
            write_noise(self.data)
        self._template = self.folder / "template.db"
        warm_up(self._template)

    def put_store(self, folder: Path) -> None:
        """An empty store with its tables, as every run but the first one finds it."""
        shutil.copy(self._template, folder / "mlflow.db")
        database = sqlite3.connect(folder / "mlflow.db")
        place = (str(folder / "mlruns" / "0"),)
        with database:
            database.execute("update experiments set artifact_location = ?", place)
        database.close()

    @functools.cached_property
    def reference(self) -> Facts:
        """What the undisturbed run left."""
        made = Attempt(self, "reference")
        done = made.do(made.training())
        if done.code:
            raise RuntimeError(f"the undisturbed run failed:\n{done.text}")
        return read_facts(made.folder, RUN)

    @functools.cached_property
    def seconds(self) -> float:
        """How long the undisturbed run takes, imports aside."""
        made = Attempt(self, "clock")
        return made.do(made.training()).seconds


def warm_up(store: Path) -> None:
    """Import, set up and cache what every command does at first, so that forks have it.

    Args:
        store: an empty one is made there.
    """
    from mlflow.utils.requirements_utils import (
        _get_installed_version,
        _init_packages_to_modules_map,
    )

    import pose.result_pages
    import pose.run
    import pose.vote  # noqa: F401

    # One thread is enough for tiny tensors.
    torch.set_num_threads(1)
    _init_packages_to_modules_map()
    _get_installed_version("torch")
    figure = Figure()
    figure.subplots().set_title("text")
    figure.savefig(io.BytesIO())
    uri = f"sqlite:///{store}"
    mlflow.MlflowClient(uri, uri).search_registered_models(max_results=1)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def write_noise(folder: Path) -> None:
    """Labelled images of nothing: what is learned from them does not matter here."""
    rng = np.random.default_rng(0)
    for part, first, count in (("train", 0, NUM_IMAGES), ("test", 1000, 4)):
        (folder / f"{part}_images").mkdir(parents=True)
        for number in range(first, first + count):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}_images" / f"{number}.png")
    rows = "".join(f"{number},{number % 2}\n" for number in range(NUM_IMAGES))
    (folder / "train_solution.csv").write_text(f"id,label\n{rows}", encoding="utf-8")
