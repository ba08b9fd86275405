"""The one place that speaks to MLflow.

A training is a parent run with a child run per seed; what they are called and what they carry is
decided here. Everything goes by explicit run ids, so that threads and other processes can use it.
"""

import dataclasses
import json
import logging
import os
import shutil
import socket
import tempfile
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import mlflow.data
import mlflow.pytorch
import numpy as np
import pandas as pd
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec
from torch import nn

import pose
from pose import seed_folder
from pose.errors import InputError, known
from pose.files import locked
from pose.models import ImageClassifier
from pose.seed import Row

MODEL_NAME = "pose"
ENSEMBLE_NAME = "pose-ensemble"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
# History columns that MLflow groups under another name than the CSV's.
METRIC_NAMES = {
    "epoch_seconds": "time/epoch_seconds",
    "images_per_second": "time/images_per_second",
}
UNFINISHED = ("RUNNING", "SCHEDULED", "FAILED", "KILLED")


def connect() -> mlflow.MlflowClient:
    """A client of the tracking store that the environment names, ready for many processes.

    A new SQLite store is set up under a lock: several processes that start on an empty one at
    once would break it.

    Raises:
        InputError: the store cannot be reached.
    """
    # Setting up a database is news for MLflow's developers, not for who trains.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    # Bars for single small files would break the lines of the training.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = mlflow.get_tracking_uri()
    client = mlflow.MlflowClient()
    try:
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            with locked(path.with_name(f".{path.name}.lock")):
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
        else:
            client.search_experiments(max_results=1)
    except Exception as error:
        # MLflow passes on what SQLAlchemy, requests and the file system raise; all of it means
        # that nothing can be recorded, and training untracked is no way out.
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"the tracking store {uri} must be reachable, found: {reason}; set "
            "MLFLOW_TRACKING_URI or start the server"
        ) from error
    return client


def current_experiment_id() -> str:
    """The experiment that `mlflow run` or the environment chose, else MLflow's default."""
    from mlflow.tracking.fluent import _get_experiment_id

    return _get_experiment_id()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingIdentity:
    """What two trainings must share so that one can continue the other."""

    run: str
    recipe_digest: str
    dataset_digest: str

    def tags(self) -> dict[str, str]:
        """As tags of the parent run."""
        return dataclasses.asdict(self)


class TrainingTracker:
    """A training as a parent run; hands out a tracker for each of its seeds."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, *, is_continued: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.is_continued = is_continued
        self.experiment_id = client.get_run(run_id).info.experiment_id
        # The run that `mlflow run` made for a command that continues an older training.
        self.continuation_id: str | None = None

    def children(self) -> dict[int, Run]:
        """The newest child run of each seed."""
        runs = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{PARENT_TAG}` = '{self.run_id}' and tags.kind = 'seed'",
            order_by=["attributes.start_time ASC"],
        )
        return {int(run.data.tags["seed"]): run for run in runs}

    def seed_tracker(
        self, seed: int, tags: dict[str, str], params: dict[str, Any], model_format: str
    ) -> "SeedRun":
        """The tracker of a seed: its unfinished child run opened again, or a new one."""
        child = self.children().get(seed)
        if child is None:
            child = self.client.create_run(
                self.experiment_id,
                run_name=f"seed_{seed}",
                tags={
                    **_process_tags(),
                    **tags,
                    "kind": "seed",
                    "seed": str(seed),
                    "parent_run_id": self.run_id,
                    PARENT_TAG: self.run_id,
                },
            )
            self.client.log_batch(
                child.info.run_id,
                params=[Param(key, _param_text(value)) for key, value in params.items()],
            )
        else:
            self.client.update_run(child.info.run_id, status="RUNNING")
            _set_tags(self.client, child.info.run_id, _process_tags())
        return SeedRun(self.client, child.info.run_id, model_format)

    def log_text(self, text: str, name: str) -> None:
        """Record `text` as the artifact `name` of the parent."""
        self.client.log_text(self.run_id, text, name)

    def log_file(self, path: Path) -> None:
        """Record a file as an artifact of the parent."""
        self.client.log_artifact(self.run_id, str(path))

    def log_summary(self, metrics: dict[str, float], tags: dict[str, str], note: str) -> None:
        """Record the seeds' summary: metrics, tags and the description shown on the run's page."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in {**tags, NOTE_TAG: note}.items()],
        )

    def finish(self, status: str) -> None:
        """End the parent, and the run of the command that continued it, as `status`."""
        for run_id in filter(None, (self.continuation_id, self.run_id)):
            self.client.set_terminated(run_id, status)


class SeedRun:
    """The child run of one seed; a `pose.seed.SeedTracker`."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, model_format: str) -> None:
        self.client = client
        self.run_id = run_id
        self.model_format = model_format
        self._num_logged: int | None = None

    def log_epochs(self, history: list[Row]) -> None:
        """Record the epochs that the run lacks, one call an epoch, the epoch as step."""
        if self._num_logged is None:
            recorded = self.client.get_metric_history(self.run_id, "val_f1")
            self._num_logged = max((metric.step for metric in recorded), default=0)
        for row in history[self._num_logged :]:
            now, step = int(time.time() * 1000), int(row["epoch"])
            self.client.log_batch(
                self.run_id,
                metrics=[
                    Metric(METRIC_NAMES.get(key, key), float(value), now, step)
                    for key, value in row.items()
                    if key != "epoch"
                ],
            )
            self._num_logged = step

    def log_dataset(self, frame: pd.DataFrame, folder: Path, digest: str) -> None:
        """Record the labelled images (`id`, `label`) as the data that the run trained on."""
        with warnings.catch_warnings():
            # MLflow knows two kinds of source for a local path, of the same name and meaning.
            warnings.filterwarnings("ignore", message="The specified dataset source can be")
            dataset = mlflow.data.from_pandas(
                frame,
                source=str(folder.absolute()),
                targets="label",
                name=folder.name[:500],
                digest=digest,
            )
        entity = dataset._to_mlflow_entity()
        context = InputTag(key="mlflow.data.context", value="training and validation")
        self.client.log_inputs(self.run_id, [DatasetInput(dataset=entity, tags=[context])])

    def fetch_checkpoint(self, folder: Path) -> None:
        """Bring the recorded checkpoint into `folder`, if there is one."""
        names = {artifact.path for artifact in self.client.list_artifacts(self.run_id)}
        if seed_folder.CHECKPOINT in names:
            folder.mkdir(parents=True, exist_ok=True)
            self.client.download_artifacts(self.run_id, seed_folder.CHECKPOINT, str(folder))

    def log_checkpoint(self, folder: Path) -> None:
        """Record what an unfinished seed has so far."""
        for name in (seed_folder.CHECKPOINT, seed_folder.HISTORY):
            self.client.log_artifact(self.run_id, str(folder / name))

    def log_results(self, folder: Path, model: ImageClassifier, config: dict[str, Any]) -> None:
        """Record the seed's folder and its best model, and register the model."""
        self.client.log_artifacts(self.run_id, str(folder))
        now = int(time.time() * 1000)
        best = {"best_val_f1": config["val_f1"], "best_epoch": config["best_epoch"]}
        self.client.log_batch(
            self.run_id, metrics=[Metric(key, float(value), now, 0) for key, value in best.items()]
        )
        tags = self.client.get_run(self.run_id).data.tags
        registered = self.client.search_model_versions(
            f"name = '{MODEL_NAME}' and run_id = '{self.run_id}'"
        )
        if registered:  # killed between registering and finishing
            return
        log_model(
            self.client,
            self.run_id,
            model,
            name=MODEL_NAME,
            num_classes=len(config["labels"]),
            extra_files=[folder / seed_folder.WEIGHTS, folder / seed_folder.CONFIG],
            model_format=self.model_format,
            tags={
                "run": tags["run"],
                "seed": tags["seed"],
                "model": tags["model"],
                "recipe": tags["recipe"],
                "val_f1": f"{config['val_f1']:.6f}",
                "dataset_digest": config["dataset_digest"],
                "parent_run_id": tags[PARENT_TAG],
            },
        )

    def finish(self, status: str, stop_reason: str) -> None:
        """End the child run with the reason in its tags."""
        self.client.set_tag(self.run_id, "stop_reason", stop_reason)
        self.client.set_terminated(self.run_id, status)


def open_training(
    client: mlflow.MlflowClient, identity: TrainingIdentity, tags: dict[str, str], *, fresh: bool
) -> TrainingTracker:
    """The parent run of a training: its unfinished one, or a new one.

    `mlflow run` has made a run already. It becomes the parent of a new training; where an
    unfinished training goes on, that keeps its parent, and the run is nested below it.

    Args:
        fresh: never continue.
    """
    experiment_id = current_experiment_id()
    # Read and removed, or the next fluent call would take it for its own.
    given = os.environ.pop("MLFLOW_RUN_ID", None)
    if given:
        experiment_id = client.get_run(given).info.experiment_id
    close_dead_runs(client, experiment_id)
    unfinished = None if fresh else _find_unfinished(client, experiment_id, identity)
    all_tags = {**_process_tags(), **identity.tags(), **tags, "kind": "train"}
    if unfinished is None:
        if given is None:
            run = client.create_run(experiment_id, run_name=identity.run, tags=all_tags)
            return TrainingTracker(client, run.info.run_id, is_continued=False)
        client.update_run(given, name=identity.run)
        _set_tags(client, given, all_tags)
        return TrainingTracker(client, given, is_continued=False)
    parent_id = unfinished.info.run_id
    client.update_run(parent_id, status="RUNNING")
    _set_tags(client, parent_id, _process_tags())
    training = TrainingTracker(client, parent_id, is_continued=True)
    if given:
        client.update_run(given, name=f"{identity.run}_continued")
        _set_tags(
            client,
            given,
            {
                **_process_tags(),
                "run": identity.run,
                "kind": "continuation",
                PARENT_TAG: parent_id,
                NOTE_TAG: f"Continued the training {identity.run}, run `{parent_id}`.",
            },
        )
        training.continuation_id = given
    return training


def _find_unfinished(
    client: mlflow.MlflowClient, experiment_id: str, identity: TrainingIdentity
) -> Run | None:
    wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in identity.tags().items())
    last = client.search_runs(
        [experiment_id],
        f"tags.kind = 'train' and {wanted}",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return last[0] if last and last[0].info.status in UNFINISHED else None


def close_dead_runs(client: mlflow.MlflowClient, experiment_id: str) -> None:
    """End as KILLED the runs of this machine whose process is gone."""
    running = client.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'",
    )
    for run in running:
        if run.data.tags.get("process") not in (None, _process_key(int(run.data.tags["pid"]))):
            client.set_tag(run.info.run_id, "stop_reason", "killed")
            client.set_terminated(run.info.run_id, "KILLED")


def _process_tags() -> dict[str, str]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "process": _process_key(pid)}


def _process_key(pid: int) -> str:
    """A text that this process has and no later one with the same number; `gone` without one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    stat = Path(f"/proc/{pid}/stat")
    # Field 22 is the start time; the name in field 2 may hold spaces.
    started = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
    return f"{pid}/{started}"


def start_vote(client: mlflow.MlflowClient, name: str, tags: dict[str, str]) -> str:
    """Id of the run of an ensemble: the one that `mlflow run` made, or a new one."""
    given = os.environ.pop("MLFLOW_RUN_ID", None)
    tags = {**_process_tags(), **tags, "kind": "ensemble"}
    if given is None:
        return client.create_run(current_experiment_id(), run_name=name, tags=tags).info.run_id
    client.update_run(given, name=name)
    _set_tags(client, given, tags)
    return given


@contextmanager
def ending(client: mlflow.MlflowClient, run_id: str) -> Iterator[None]:
    """End the run when the block ends: FINISHED, FAILED on an error, KILLED if interrupted."""
    try:
        yield
    except Exception:
        client.set_terminated(run_id, "FAILED")
        raise
    except BaseException:
        client.set_terminated(run_id, "KILLED")
        raise
    client.set_terminated(run_id, "FINISHED")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisteredMember:
    """A registered model version that can vote.

    Attributes:
        run: name of the training, the tag by which it was found.
        run_id: the seed's own run.
        recipe: what it was trained with, and any changes to it, in words.
    """

    run: str
    seed: int
    version: int
    parent_run_id: str
    run_id: str
    recipe: str

    @property
    def uri(self) -> str:
        """As `mlflow.pytorch.load_model` takes it."""
        return f"models:/{MODEL_NAME}/{self.version}"


def find_members(
    client: mlflow.MlflowClient, run: str, parent_run_id: str | None = None
) -> list[RegisteredMember]:
    """Per seed the newest version of the newest finished training of `run`, by seed.

    Args:
        parent_run_id: take this training instead, finished or not.

    Raises:
        InputError: nothing is registered under that run; the message names the runs there are.
    """
    versions = _search_versions(client, f"name = '{MODEL_NAME}' and tags.run = '{run}'")
    if not versions:
        names = {v.tags["run"] for v in _search_versions(client, f"name = '{MODEL_NAME}'")}
        raise InputError(
            f"run must have registered models, found none under {run!r}; there are: "
            f"{known(names)}. Train it first: mlflow run . -e train -P run={run}"
        )
    parents = {v.tags["parent_run_id"] for v in versions}
    if parent_run_id is None:
        finished = [
            found
            for found in (_get_run(client, parent) for parent in parents)
            if found is not None and found.info.status == "FINISHED"
        ]
        if not finished:
            raise InputError(
                f"run must have a finished training, found only unfinished ones of {run!r}: "
                f"continue it with the same train command, or name one: --parent {parents.pop()}"
            )
        parent_run_id = max(finished, key=lambda found: found.info.start_time).info.run_id
    elif parent_run_id not in parents:
        raise InputError(
            f"parent must be a training of {run!r} with registered models ({known(parents)}), "
            f"got {parent_run_id!r}"
        )
    newest: dict[int, RegisteredMember] = {}
    for found in sorted(versions, key=lambda v: int(v.version)):
        if found.tags["parent_run_id"] == parent_run_id:
            seed = int(found.tags["seed"])
            newest[seed] = RegisteredMember(
                run=run,
                seed=seed,
                version=int(found.version),
                parent_run_id=parent_run_id,
                run_id=found.run_id,
                recipe=found.tags.get("recipe", run),
            )
    return [newest[seed] for seed in sorted(newest)]


def fetch_member(client: mlflow.MlflowClient, member: RegisteredMember, folder: Path) -> None:
    """Bring a member's config, weights and validation predictions into `folder`."""
    source = client.get_model_version_download_uri(MODEL_NAME, str(member.version))
    repository = get_artifact_repository(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (seed_folder.CONFIG, seed_folder.WEIGHTS):
        # Copied: of a store on this machine this is the path of the artifact itself.
        shutil.copy(repository.download_artifacts(f"extra_files/{name}"), folder / name)
    client.download_artifacts(member.run_id, seed_folder.VAL_PREDICTIONS, str(folder))


def log_model(
    client: mlflow.MlflowClient,
    run_id: str,
    model: nn.Module,
    *,
    name: str,
    num_classes: int,
    extra_files: Sequence[Path],
    model_format: str,
    tags: dict[str, str],
) -> int:
    """Log `model` to the run and register it under `name`; returns the version.

    Args:
        model: on the CPU, in evaluation mode, `(N, 3, H, W)` uint8 to `(N, num_classes)`.
    """
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 3, -1, -1))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, num_classes))]),
    )
    options: dict[str, Any] = {"serialization_format": model_format}
    if model_format == "pt2":
        options["input_example"] = np.zeros((2, 3, 256, 256), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as staging, _quiet_fluent_run(run_id):
        info = mlflow.pytorch.log_model(
            model,
            name="model",
            code_paths=[str(_stage_model_code(Path(staging)))],
            extra_files=[str(path) for path in extra_files],
            pip_requirements=[f"{package}=={version(package)}" for package in MODEL_PACKAGES],
            signature=signature,
            **options,
        )
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    registered = client.create_model_version(
        name, source=f"models:/{info.model_id}", run_id=run_id, tags=tags, model_id=info.model_id
    )
    return int(registered.version)


# What a loaded model imports. Named here, because inferring them takes 11 seconds a model.
MODEL_PACKAGES = ("mlflow", "torch", "torchvision", "numpy")


def _stage_model_code(folder: Path) -> Path:
    """A package `pose` with the models alone: what a loaded model needs, and no more."""
    package = folder / "pose"
    source = Path(pose.__file__).parent
    package.mkdir()
    shutil.copy(source / "__init__.py", package)
    shutil.copytree(
        source / "models", package / "models", ignore=shutil.ignore_patterns("__pycache__")
    )
    return package


@contextmanager
def _quiet_fluent_run(run_id: str) -> Iterator[None]:
    """Make `run_id` MLflow's active run, for the calls that know no other way."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:
        logger.setLevel(level)


def log_ensemble(
    client: mlflow.MlflowClient,
    run_id: str,
    *,
    metrics: dict[str, float],
    tags: dict[str, str],
    note: str,
    files: Sequence[Path],
) -> None:
    """Record a vote: its scores, its members, and its files as artifacts."""
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in {**tags, NOTE_TAG: note}.items()],
    )
    for path in files:
        client.log_artifact(run_id, str(path))


def artifact_uri(client: mlflow.MlflowClient, run_id: str, name: str) -> str:
    """Where an artifact of a run lies; a path where the store is on this machine."""
    uri = f"{client.get_run(run_id).info.artifact_uri}/{name}"
    return uri.removeprefix("file://")


def seeds_page(client: mlflow.MlflowClient, parent_run_id: str) -> str:
    """Address of the page that compares the seeds of a training, in charts, best seed first.

    Sorted by anything but time, MLflow's page shows children as rows of their own; in its usual
    order they stay folded below their parent and out of the charts.
    """
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    uri = mlflow.get_tracking_uri()
    base = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    query = urllib.parse.urlencode(
        {
            "workflowType": "machine_learning",
            "searchFilter": f"tags.parent_run_id = '{parent_run_id}'",
            "orderByKey": "metrics.`val_f1`",
            "orderByAsc": "false",
            "compareRunsMode": "CHART",
        },
        quote_via=urllib.parse.quote,
    )
    return f"{base}/#/experiments/{experiment_id}/runs?{query}"


def metric_history(client: mlflow.MlflowClient, run_id: str) -> list[Row]:
    """The epochs of a seed's run as rows of a history."""
    rows: dict[int, Row] = {}
    for column in seed_folder.HISTORY_COLUMNS[1:]:
        for metric in client.get_metric_history(run_id, METRIC_NAMES.get(column, column)):
            rows.setdefault(metric.step, {"epoch": metric.step})[column] = metric.value
    return [rows[step] for step in sorted(rows)]


def _search_versions(client: mlflow.MlflowClient, filter_string: str) -> list:
    found, token = [], None
    while True:
        page = client.search_model_versions(filter_string, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _get_run(client: mlflow.MlflowClient, run_id: str) -> Run | None:
    """The run, or None where it is deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _set_tags(client: mlflow.MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _param_text(value: Any) -> str:
    """A parameter as it is typed on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool | None) else str(value)
