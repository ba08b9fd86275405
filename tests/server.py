"""A real MLflow server on loopback that can be taken away and brought back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run
from project import PATIENCE

from pose.seeds import folder as seed_folder
from pose.tracking.spool import SPOOL, Spool


class Server:
    """`mlflow server` with its store and artifacts in `folder`, always on the same port."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")},
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        with open(self.folder / "log", "a") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    answer.read()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.05)

    def stop(self) -> None:
        """Kill it, with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """From now on it takes connections and does not answer."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def client(self) -> mlflow.MlflowClient:
        """A client of what is in its store, whether it runs or not."""
        store = f"sqlite:///{self.folder / 'server.db'}"
        return mlflow.MlflowClient(tracking_uri=store, registry_uri=store)

    def assert_whole(self, folder: Path, seeds: Sequence[int], num_epochs: int) -> None:
        """All of the run in `folder` is there once and in order, and nothing waits."""
        client = self.client()
        parent_id = json.loads((folder / "training.json").read_text())["parent_run_id"]
        parent = client.get_run(parent_id)
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["is_complete"] == "true"
        assert "val_f1_mean" in parent.data.metrics
        children = client.search_runs(
            ["0"],
            f"tags.parent_run_id = '{parent_id}' and tags.kind = 'seed'",
            order_by=["attributes.start_time ASC"],
        )
        assert [int(child.data.tags["seed"]) for child in children] == list(seeds)
        for child in children:
            self._assert_whole_seed(child, folder / f"seed_{child.data.tags['seed']}", num_epochs)
        assert not Spool(folder / SPOOL).waiting()

    def _assert_whole_seed(self, child: Run, folder: Path, num_epochs: int) -> None:
        client, run_id = self.client(), child.info.run_id
        assert child.info.status == "FINISHED"
        assert child.data.tags["stop_reason"] == "epochs"
        assert child.data.params["seed"] == child.data.tags["seed"]
        assert len(child.data.params) > 25
        assert len(child.inputs.dataset_inputs) == 1
        for name in ("train_loss", "val_f1", "time/epoch_seconds"):
            points = client.get_metric_history(run_id, name)
            assert [point.step for point in points] == list(range(1, num_epochs + 1))
            assert [p.timestamp for p in points] == sorted(p.timestamp for p in points)
        assert len(client.get_metric_history(run_id, "best_val_f1")) == 1
        (version,) = client.search_model_versions(f"run_id = '{run_id}'")
        assert version.tags["seed"] == child.data.tags["seed"]
        assert len(client.search_logged_models(["0"], f"source_run_id = '{run_id}'")) == 1
        stored = self.folder / "artifacts" / "0" / run_id / "artifacts"
        for name in seed_folder.RESULTS:
            assert (stored / name).read_bytes() == (folder / name).read_bytes()
