"""The record of one seed: a child run, and the registered model that comes of it."""

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import mlflow.data
import pandas as pd
from mlflow.entities import DatasetInput, InputTag, Run

from pose.history import COLUMNS, Row
from pose.results import SeedResult
from pose.seeds import folder as seed_folder
from pose.tracking import flavors, packaging, registry
from pose.tracking.store import PARENT_TAG, Store

# History columns that MLflow groups under another name than the CSV's.
METRIC_NAMES = {
    "epoch_seconds": "time/epoch_seconds",
    "images_per_second": "time/images_per_second",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The labelled images as the data that a seed trains on.

    Attributes:
        ids, labels: `(N,)`.
        digest: of ids, labels and contents.
    """

    ids: Sequence[str]
    labels: Sequence[str]
    folder: Path
    digest: str


class SeedRecord:
    """The child run of one seed; a `pose.seeds.job.SeedTracker`.

    Made from plain values, so that it can be opened in another process.
    """

    def __init__(self, run_id: str, *, store_uri: str, model_format: str) -> None:
        self.run_id = run_id
        self.store_uri = store_uri
        self.model_format = model_format
        self._opened: Store | None = None
        self._num_logged: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self.store_uri)
        return self._opened

    def log_epochs(self, history: list[Row]) -> None:
        """Record the epochs that the run lacks, one call per epoch, the epoch as step."""
        if self._num_logged is None:
            recorded = self._store.client.get_metric_history(self.run_id, "val_f1")
            self._num_logged = max((metric.step for metric in recorded), default=0)
        for row in history[self._num_logged :]:
            step = int(row["epoch"])
            metrics = {METRIC_NAMES.get(key, key): v for key, v in row.items() if key != "epoch"}
            self._store.log_metrics(self.run_id, metrics, step)
            self._num_logged = step

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """Bring the recorded checkpoint into `folder`; None if there is none."""
        names = {artifact.path for artifact in self._store.client.list_artifacts(self.run_id)}
        if seed_folder.CHECKPOINT not in names:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        # Under its own name, half written, it would replace the one that it may stand in for.
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=folder) as staging:
            fetched = self._store.client.download_artifacts(
                self.run_id, seed_folder.CHECKPOINT, staging
            )
            os.replace(fetched, folder / seed_folder.CHECKPOINT)
        return folder / seed_folder.CHECKPOINT

    def log_checkpoint(self, folder: Path) -> None:
        """Record what an unfinished seed has so far."""
        for name in (seed_folder.CHECKPOINT, seed_folder.HISTORY):
            self._store.client.log_artifact(self.run_id, str(folder / name))

    def log_results(self, folder: Path) -> None:
        """Record the seed's files and its best model, and register the model.

        Asks before it records, so that a kill at any moment is made up for by doing it again.
        """
        client = self._store.client
        model, card = seed_folder.read_model(folder)
        for name in seed_folder.RESULTS:
            if (folder / name).exists():
                client.log_artifact(self.run_id, str(folder / name))
        run = client.get_run(self.run_id)
        best = {"best_val_f1": card.val_f1, "best_epoch": float(card.best_epoch)}
        missing = {key: value for key, value in best.items() if key not in run.data.metrics}
        if missing:
            self._store.log_metrics(self.run_id, missing)
        if self._store.search_versions(
            f"name = '{registry.MODEL_NAME}' and run_id = '{self.run_id}'"
        ):
            return
        model_id = self._logged_model(run) or packaging.log_model(
            self._store,
            self.run_id,
            model,
            config=flavors.predictor_config([card]),
            extra_files=[folder / seed_folder.WEIGHTS, folder / seed_folder.CONFIG],
            model_format=self.model_format,
        )
        tags = run.data.tags
        packaging.register(
            self._store,
            registry.MODEL_NAME,
            self.run_id,
            model_id,
            {
                "run": tags["run"],
                "seed": tags["seed"],
                "model": tags["model"],
                "recipe": tags["recipe"],
                "val_f1": f"{card.val_f1:.6f}",
                "dataset_digest": card.dataset_digest,
                "weights_sha256": card.weights_sha256,
                "parent_run_id": tags[PARENT_TAG],
            },
        )

    def _logged_model(self, run: Run) -> str | None:
        """The model that a killed command logged and did not register; a partial one is removed."""
        whole = None
        for found in self._store.client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{self.run_id}'"
        ):
            if str(found.status).rpartition(".")[2] == "READY":
                whole = found.model_id
            else:
                self._store.client.delete_logged_model(found.model_id)
        return whole

    def finish(self, status: str, stop_reason: str) -> None:
        """End the child run with the reason in its tags."""
        self._store.set_tags(self.run_id, {"stop_reason": stop_reason})
        self._store.client.set_terminated(self.run_id, status)


def log_data(store: Store, run_id: str, data: DataRecord) -> None:
    """Record the labelled images as the data that a run trained on."""
    with warnings.catch_warnings():
        # MLflow knows two kinds of source for a local path, of the same name and meaning.
        warnings.filterwarnings("ignore", message="The specified dataset source can be")
        # MLflow makes this function while it is imported.
        dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
            pd.DataFrame({"id": data.ids, "label": data.labels}),
            source=str(data.folder.absolute()),
            targets="label",
            name=data.folder.absolute().name[:500],
            digest=data.digest,
        )
    entity = dataset._to_mlflow_entity()
    context = InputTag(key="mlflow.data.context", value="training and validation")
    store.client.log_inputs(run_id, [DatasetInput(dataset=entity, tags=[context])])


def recorded_result(store: Store, child: Run, seed: int) -> SeedResult:
    """What the record of a finished seed says of it."""
    history = recorded_history(store, child.info.run_id)
    return SeedResult(
        seed=seed,
        stop_reason=child.data.tags["stop_reason"],
        best_epoch=int(child.data.metrics["best_epoch"]),
        val_f1=child.data.metrics["best_val_f1"],
        num_epochs=len(history),
        seconds=sum(row["epoch_seconds"] for row in history),
        session_seconds=0.0,
        history=history,
    )


def recorded_history(store: Store, run_id: str) -> list[Row]:
    """The epochs of a seed's run as rows of a history."""
    rows: dict[int, Row] = {}
    for column in COLUMNS[1:]:
        for metric in store.client.get_metric_history(run_id, METRIC_NAMES.get(column, column)):
            rows.setdefault(metric.step, {"epoch": metric.step})[column] = metric.value
    return [rows[step] for step in sorted(rows)]
