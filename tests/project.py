"""A copy of the project in a folder of its own, and its commands as a user types them."""

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
from mlflow.entities import Run

ROOT = Path(__file__).parents[1]
# Seconds after which a process hangs, on however busy a machine; no promise is measured by it.
PATIENCE = 1200
PARTS = ("pose", "pose_models", "entrypoints", "MLproject", "conda.yaml", "requirements.txt")


class Project:
    """The project in `folder`, with its own store, outputs and stop file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for part in PARTS:
            if (ROOT / part).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / part, ignore=ignore)
            else:
                shutil.copy(ROOT / part, folder)
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self._started: list[subprocess.Popen[str]] = []

    @classmethod
    def at(cls, folder: Path) -> "Project":
        """The project that is in `folder` already."""
        project = cls.__new__(cls)
        project.folder = folder
        project.store = f"sqlite:///{folder / 'mlflow.db'}"
        project._started = []
        return project

    def environment(self) -> dict[str, str]:
        """Of a user's shell in which this Python is active."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_RUN")}
        kept.pop("MLFLOW_TRACKING_URI", None)
        return {**kept, "PATH": path}

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command in the project's folder, with `environment` besides."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end_all(self) -> None:
        """Kill what a failed test has left at work."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command to its end; its standard output."""
        process = self.start(*command, **environment)
        out, err = map(str, process.communicate(timeout=PATIENCE))
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out if code == 0 else out + err

    def mlflow_run(self, entry_point: str, **parameters: object) -> str:
        """Run `mlflow run . -e entry_point -P ...` to its end; its standard output."""
        return self.run(*self.mlflow_command(entry_point, **parameters))

    def mlflow_command(self, entry_point: str, **parameters: object) -> list[str]:
        """`mlflow run . -e entry_point -P ...` in this environment."""
        pairs = [part for k, v in parameters.items() for part in ("-P", f"{k}={v}")]
        return ["mlflow", "run", ".", "-e", entry_point, "--env-manager", "local", *pairs]

    def train_command(self, **options: object) -> list[str]:
        """`python -m entrypoints.train --...`."""
        pairs = [part for k, v in options.items() for part in (f"--{k}", str(v))]
        return [sys.executable, "-m", "entrypoints.train", *pairs]

    def client(self) -> mlflow.MlflowClient:
        """A client of the project's store."""
        return mlflow.MlflowClient(tracking_uri=self.store, registry_uri=self.store)

    def runs(self, kind: str, **tags: str) -> list[Run]:
        """The runs of a kind, oldest first."""
        wanted = {"kind": kind, **tags}
        text = " and ".join(f"tags.{key} = '{value}'" for key, value in wanted.items())
        return self.client().search_runs(["0"], text, order_by=["attributes.start_time ASC"])

    def children(self, parent: Run) -> list[Run]:
        """The seeds of a run, oldest first."""
        return self.runs("seed", parent_run_id=parent.info.run_id)

    def history(self, run: str, seed: int) -> list[dict[str, str]]:
        """The rows of a seed's training_history.csv; none where it is not there yet."""
        path = self.folder / "outputs" / run / f"seed_{seed}" / "training_history.csv"
        if not path.exists():
            return []
        with open(path, newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    def wait_for_epochs(
        self, process: subprocess.Popen[str], run: str, seed: int, count: int
    ) -> None:
        """Wait until a run in the background has completed epochs."""
        deadline = time.monotonic() + PATIENCE
        while len(self.history(run, seed)) < count:
            assert process.poll() is None, "".join(process.communicate())
            assert time.monotonic() < deadline, "training makes no progress"
            time.sleep(0.02)
