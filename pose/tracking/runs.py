"""The records of runs, seeds and votes."""

import dataclasses
import hashlib
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import mlflow.data
import pandas as pd
from mlflow.entities import DatasetInput, InputTag, Run

from pose.ensembling.members import RegisteredMember
from pose.errors import InputError
from pose.files import locked
from pose.history import COLUMNS, Row
from pose.results import FINISHED_REASONS, SeedResult
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob
from pose.tracking import packaging, pages, registry
from pose.tracking.store import (
    NOTE_TAG,
    PARENT_TAG,
    Store,
    connect,
    is_dead,
    param_text,
    process_tags,
)
from pose_models import SeedEnsemble

# History columns that MLflow groups under another name than the CSV's.
METRIC_NAMES = {
    "epoch_seconds": "time/epoch_seconds",
    "images_per_second": "time/images_per_second",
}
# How often a run says that it is at work, and after what silence another machine's is dead.
HEARTBEAT_SECONDS = 30
SILENCE_SECONDS = 600


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to begin, to continue, or to add seeds to.

    Attributes:
        name, recipe_digest, dataset_digest: what two commands must share to mean one run.
        seeds: that the run promises.
        add_seeds: add these to the newest finished run instead; none: do not.
        fresh: begin anew even if an unfinished one could be continued.
        settings: the recipe's by name; says how an unfinished run differs.
        tags: of the parent, besides those that say what it is.
    """

    name: str
    recipe_digest: str
    dataset_digest: str
    seeds: tuple[int, ...]
    add_seeds: tuple[int, ...] = ()
    fresh: bool = False
    settings: Mapping[str, Any]
    tags: Mapping[str, str]

    def identity(self) -> dict[str, str]:
        """As tags of the parent run."""
        return {
            "run": self.name,
            "recipe_digest": self.recipe_digest,
            "dataset_digest": self.dataset_digest,
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


class Tracker:
    """Where a command records what it does: the store that the environment names.

    Args:
        given_run_id: the run that `mlflow run` made for this command, if any. The first run or
            vote that is opened takes it.

    Raises:
        InputError: the store cannot be reached.
    """

    def __init__(self, given_run_id: str | None = None) -> None:
        self._store = connect()
        self._given = given_run_id

    def _take_given(self) -> tuple[str | None, str]:
        """The run that `mlflow run` made, once, and the experiment to record in."""
        given, self._given = self._given, None
        if given is None:
            return None, self._store.current_experiment_id()
        return given, self._store.client.get_run(given).info.experiment_id

    def open_run(self, request: RunRequest) -> "RunRecord":
        """The parent run of `request`: its unfinished one, or a new one.

        `mlflow run` has made a run already. It becomes the parent of a new run; where an
        unfinished one goes on, that keeps its parent, and the new one is nested below it.

        Raises:
            InputError: the same run is at work elsewhere, or there is none to add seeds to.
        """
        given, experiment_id = self._take_given()
        # Two commands at once must not both find that there is none.
        key = "\n".join((self._store.uri, experiment_id, *request.identity().values()))
        name = f"pose-{os.getuid()}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.lock"
        with locked(Path(tempfile.gettempdir()) / name):
            close_dead_runs(self._store, experiment_id)
            parent = _find_parent(self._store, experiment_id, request)
            if parent is None:
                return _begin(self._store, experiment_id, request, given)
            _refuse_living(parent)
            return _continue(self._store, parent, request, given)

    def open_vote(self, name: str, tags: Mapping[str, str]) -> "VoteRecord":
        """The run of a vote: the one that `mlflow run` made, or a new one."""
        given, experiment_id = self._take_given()
        tags = {**process_tags(), **tags, "kind": "ensemble"}
        if given is None:
            run = self._store.client.create_run(experiment_id, run_name=name, tags=tags)
            return VoteRecord(self._store, run.info.run_id)
        self._store.client.update_run(given, name=name)
        self._store.set_tags(given, tags)
        return VoteRecord(self._store, given)

    def newest_run_name(self) -> str:
        """As `registry.newest_run_name`."""
        return registry.newest_run_name(self._store)

    def find_members(self, run: str, parent_run_id: str | None = None) -> registry.FoundMembers:
        """As `registry.find_members`."""
        return registry.find_members(self._store, run, parent_run_id)

    def fetch_member(self, member: RegisteredMember, folder: Path) -> None:
        """As `registry.fetch_member`."""
        registry.fetch_member(self._store, member, folder)


class RunRecord:
    """A run as a parent in MLflow; hands out a record for each of its seeds.

    Attributes:
        seeds: that the run promises, added ones included.
        unlike: how an unfinished run of the same name differs, where one exists and this is new.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        seeds: tuple[int, ...],
        *,
        is_continued: bool,
        continuation_id: str | None = None,
        unlike: str = "",
    ) -> None:
        self._store = store
        self.run_id = run_id
        self.seeds = seeds
        self.is_continued = is_continued
        self.unlike = unlike
        # The run that `mlflow run` made for a command that continues an older run.
        self._continuation_id = continuation_id
        self._experiment_id = store.client.get_run(run_id).info.experiment_id
        self._is_over = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._is_over.wait(HEARTBEAT_SECONDS):
            # A store that is away for a moment is the business of the records, not of this.
            try:
                self._store.set_tags(self.run_id, {"heartbeat": str(int(time.time()))})
            except Exception:
                continue

    def finished_seeds(self) -> dict[int, SeedResult]:
        """The seeds that have all they should: a reason to be finished and a registered model."""
        registered = {
            version.run_id
            for version in self._store.search_versions(f"name = '{registry.MODEL_NAME}'")
            if version.tags.get("parent_run_id") == self.run_id
        }
        return {
            seed: _recorded_result(self._store, child, seed)
            for seed, child in self._children().items()
            if child.data.tags.get("stop_reason") in FINISHED_REASONS
            and child.info.run_id in registered
        }

    def _children(self) -> dict[int, Run]:
        """The newest child run of each seed."""
        runs = self._store.client.search_runs(
            [self._experiment_id],
            f"tags.`{PARENT_TAG}` = '{self.run_id}' and tags.kind = 'seed'",
            order_by=["attributes.start_time ASC"],
        )
        return {int(run.data.tags["seed"]): run for run in runs}

    def open_seed(
        self, job: SeedJob, tags: Mapping[str, str], params: Mapping[str, Any], data: DataRecord
    ) -> "SeedRecord":
        """The record of a job: its unfinished child run opened again, or a new one.

        What a killed command had no time to record is recorded now.
        """
        client = self._store.client
        child = self._children().get(job.seed)
        if child is None:
            child = client.create_run(
                self._experiment_id,
                run_name=f"seed_{job.seed}",
                tags={
                    **process_tags(),
                    **tags,
                    "kind": "seed",
                    "seed": str(job.seed),
                    "parent_run_id": self.run_id,
                    PARENT_TAG: self.run_id,
                },
            )
        else:
            client.update_run(child.info.run_id, status="RUNNING")
            self._store.set_tags(child.info.run_id, process_tags())
        run_id = child.info.run_id
        missing = {key: value for key, value in params.items() if key not in child.data.params}
        if missing:
            self._store.log_params(run_id, missing)
        if not (child.inputs and child.inputs.dataset_inputs):
            _log_data(self._store, run_id, data)
        return SeedRecord(run_id, store_uri=self._store.uri, model_format=tags["model_format"])

    def log_text(self, text: str, name: str) -> None:
        """Record `text` as the artifact `name` of the parent."""
        self._store.client.log_text(self.run_id, text, name)

    def log_file(self, path: Path) -> None:
        """Record a file as an artifact of the parent."""
        self._store.client.log_artifact(self.run_id, str(path))

    def log_summary(self, metrics: Mapping[str, float], tags: Mapping[str, str], note: str) -> None:
        """Record the seeds' summary: metrics, tags and the description shown on the run's page."""
        self._store.log_metrics(self.run_id, metrics)
        self._store.set_tags(self.run_id, {**tags, NOTE_TAG: note})

    def complete(self) -> None:
        """All seeds are finished and the summary is recorded."""
        self._store.set_tags(self.run_id, {"is_complete": "true"})
        self.finish("FINISHED", "complete")

    def finish(self, status: str, stop_reason: str = "") -> None:
        """End the parent, and the run of the command that continued it, as `status`."""
        self._is_over.set()
        for run_id in filter(None, (self._continuation_id, self.run_id)):
            if stop_reason:
                self._store.set_tags(run_id, {"stop_reason": stop_reason})
            self._store.client.set_terminated(run_id, status)

    def seeds_page(self) -> str:
        """Address of the page that compares the seeds."""
        return pages.seeds_page(self._store, self.run_id)


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
        # Under its name it would replace the one that it may have to stand in for, half written.
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
            num_classes=len(card.labels),
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
        """The model that a killed command logged and did not register; half a one is removed."""
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


class VoteRecord:
    """The run of a vote."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self.run_id = run_id

    def log(
        self,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        note: str,
        files: Sequence[Path],
    ) -> None:
        """Record scores, members, description, and files as artifacts."""
        self._store.log_metrics(self.run_id, metrics)
        self._store.set_tags(self.run_id, {**tags, NOTE_TAG: note})
        for path in files:
            self._store.client.log_artifact(self.run_id, str(path))

    def log_model(
        self, model: SeedEnsemble, extra_files: Sequence[Path], tags: Mapping[str, str]
    ) -> int:
        """Log the ensemble and register it; returns the version."""
        model_id = packaging.log_model(
            self._store,
            self.run_id,
            model,
            num_classes=len(model.labels),
            extra_files=extra_files,
        )
        return packaging.register(self._store, registry.ENSEMBLE_NAME, self.run_id, model_id, tags)

    def artifact(self, name: str) -> str:
        """Where an artifact lies; a path where the store is on this machine."""
        return pages.artifact_uri(self._store, self.run_id, name)

    def finish(self, status: str, stop_reason: str = "") -> None:
        """End the run as `status`."""
        if stop_reason:
            self._store.set_tags(self.run_id, {"stop_reason": stop_reason})
        self._store.client.set_terminated(self.run_id, status)


def _find_parent(store: Store, experiment_id: str, request: RunRequest) -> Run | None:
    """The run that `request` goes on with, or None for a new one.

    Raises:
        InputError: seeds are to be added, and there is no finished run to add them to.
    """
    wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in request.identity().items())
    found = store.client.search_runs(
        [experiment_id],
        f"tags.kind = 'train' and {wanted}",
        order_by=["attributes.start_time DESC"],
    )
    if request.add_seeds:
        return _find_grown(found, request)
    if request.fresh:
        return None
    same_seeds = [run for run in found if _seeds_of(run) == request.seeds]
    newest = same_seeds[0] if same_seeds else None
    return None if newest is None or registry.is_complete(newest) else newest


def _find_grown(found: Sequence[Run], request: RunRequest) -> Run:
    """The newest run that is finished, or was and lacks seeds that were added."""
    for run in found:
        has_added = "added_seeds" in run.data.tags
        if registry.is_complete(run) or has_added:
            if registry.is_complete(run) and set(request.add_seeds) <= set(_seeds_of(run)):
                raise InputError(
                    f"add_seeds must name seeds that run {run.info.run_id} lacks, it has "
                    f"{run.data.tags['seeds']}"
                )
            return run
    raise InputError(
        f"add_seeds must find a finished run of {request.name} with the same recipe and data, "
        "found none: train it first, without add_seeds"
    )


def _seeds_of(run: Run) -> tuple[int, ...]:
    return tuple(int(seed) for seed in run.data.tags.get("seeds", "").split(",") if seed)


def _refuse_living(parent: Run) -> None:
    """Refuse to go on with a run that somebody else works on.

    Raises:
        InputError: a process is at work on `parent`, here or elsewhere.
    """
    tags = parent.data.tags
    if parent.info.status != "RUNNING" or is_dead(tags):
        return
    age = time.time() - float(tags.get("heartbeat", parent.info.start_time / 1000))
    is_here = tags.get("host") == process_tags()["host"]
    if is_here or age < SILENCE_SECONDS:
        raise InputError(
            f"run must not be at work already, but {tags['run']} is, as {parent.info.run_id} in "
            f"process {tags.get('pid')} on {tags.get('host')} (last heard of {age:.0f} s ago): "
            "wait for it, or give another --run-name"
        )


def _begin(store: Store, experiment_id: str, request: RunRequest, given: str | None) -> RunRecord:
    unlike = "" if request.fresh else _unlike(store, experiment_id, request)
    tags = {
        **process_tags(),
        **request.identity(),
        **request.tags,
        "seeds": ",".join(map(str, request.seeds)),
        "kind": "train",
        "is_complete": "false",
        "heartbeat": str(int(time.time())),
    }
    if given is None:
        run = store.client.create_run(experiment_id, run_name=request.name, tags=tags)
        given = run.info.run_id
    else:
        store.client.update_run(given, name=request.name)
        store.set_tags(given, tags)
    return RunRecord(store, given, request.seeds, is_continued=False, unlike=unlike)


def _continue(store: Store, parent: Run, request: RunRequest, given: str | None) -> RunRecord:
    parent_id = parent.info.run_id
    seeds = tuple(dict.fromkeys((*_seeds_of(parent), *request.add_seeds)))
    tags = {"is_complete": "false", "heartbeat": str(int(time.time())), **process_tags()}
    if request.add_seeds:
        tags["seeds"] = ",".join(map(str, seeds))
        tags["added_seeds"] = ",".join(map(str, request.add_seeds))
    store.client.update_run(parent_id, status="RUNNING")
    store.set_tags(parent_id, tags)
    if given:
        store.client.update_run(given, name=f"{request.name}_continued")
        store.set_tags(
            given,
            {
                **process_tags(),
                "run": request.name,
                "kind": "continuation",
                PARENT_TAG: parent_id,
                NOTE_TAG: f"Continued the run {request.name}, `{parent_id}`.",
            },
        )
    return RunRecord(store, parent_id, seeds, is_continued=True, continuation_id=given)


def _unlike(store: Store, experiment_id: str, request: RunRequest) -> str:
    """How the newest run of this name differs, if it is unfinished.

    A new one begins then, and whoever expected the old one to go on should know why it does not.
    """
    found = store.client.search_runs(
        [experiment_id],
        f"tags.kind = 'train' and tags.run = '{request.name}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found or registry.is_complete(found[0]):
        return ""
    other = found[0]
    differences = []
    if other.data.tags.get("dataset_digest") != request.dataset_digest:
        differences.append("data")
    if _seeds_of(other) != request.seeds:
        now = ",".join(map(str, request.seeds))
        differences.append(f"seeds ({other.data.tags.get('seeds')}, now {now})")
    children = store.client.search_runs(
        [experiment_id], f"tags.`{PARENT_TAG}` = '{other.info.run_id}'", max_results=1
    )
    params = children[0].data.params if children else {}
    for name, value in request.settings.items():
        if name in params and params[name] != param_text(value):
            differences.append(f"{name} ({params[name]}, now {param_text(value)})")
    return f"{other.info.run_id} differs in {', '.join(differences) or 'its recipe'}"


def close_dead_runs(store: Store, experiment_id: str) -> None:
    """End as KILLED the runs of this machine whose process is gone."""
    running = store.client.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.host = '{process_tags()['host']}'",
    )
    for run in running:
        if is_dead(run.data.tags):
            is_finished = run.data.tags.get("stop_reason") in FINISHED_REASONS
            if not is_finished:
                store.set_tags(run.info.run_id, {"stop_reason": "killed"})
            store.client.set_terminated(run.info.run_id, "FINISHED" if is_finished else "KILLED")


def _log_data(store: Store, run_id: str, data: DataRecord) -> None:
    with warnings.catch_warnings():
        # MLflow knows two kinds of source for a local path, of the same name and meaning.
        warnings.filterwarnings("ignore", message="The specified dataset source can be")
        # MLflow makes this function while it is imported.
        dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
            pd.DataFrame({"id": data.ids, "label": data.labels}),
            source=str(data.folder.absolute()),
            targets="label",
            name=data.folder.name[:500],
            digest=data.digest,
        )
    entity = dataset._to_mlflow_entity()
    context = InputTag(key="mlflow.data.context", value="training and validation")
    store.client.log_inputs(run_id, [DatasetInput(dataset=entity, tags=[context])])


def _recorded_result(store: Store, child: Run, seed: int) -> SeedResult:
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
