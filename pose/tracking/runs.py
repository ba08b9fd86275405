"""The record of a run: the parent of its seeds in MLflow."""

import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from pose.results import FINISHED_REASONS, SeedResult
from pose.seeds.job import SeedJob
from pose.tracking import pages, registry
from pose.tracking.parents import RunRequest, seeds_of, unlike_text
from pose.tracking.seeds import DataRecord, SeedRecord, log_data, recorded_result
from pose.tracking.store import NOTE_TAG, PARENT_TAG, Store, process_tags

# How often a run says that it is at work.
HEARTBEAT_SECONDS = 30


class RunRecord:
    """A run as a parent in MLflow; hands out a record for each of its seeds.

    Attributes:
        seeds: those that the run promises, added ones included.
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
            seed: recorded_result(self._store, child, seed)
            for seed, child in self._children().items()
            if child.data.tags.get("stop_reason") in FINISHED_REASONS
            and child.info.run_id in registered
        }

    def _children(self) -> dict[int, Run]:
        """The newest child run of each seed."""
        runs = registry.children(self._store, self._store.client.get_run(self.run_id))
        return {key.seed: run for key, run in runs.items()}

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
                    **self._store.context_tags(),
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
            log_data(self._store, run_id, data)
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


def begin_run(
    store: Store, experiment_id: str, request: RunRequest, given: str | None
) -> RunRecord:
    """A new run as a parent: `given`, which `mlflow run` made, or one of its own."""
    unlike = "" if request.fresh else unlike_text(store, experiment_id, request)
    tags = {
        **process_tags(),
        **request.identity(),
        **request.tags,
        "seeds": ",".join(map(str, request.seeds)),
        "kind": request.kind,
        "is_complete": "false",
        "heartbeat": str(int(time.time())),
    }
    if given is None:
        tags = {**store.context_tags(), **tags}
        run = store.client.create_run(experiment_id, run_name=request.name, tags=tags)
        given = run.info.run_id
    else:
        rename_run(store, given, request.name)
        store.set_tags(given, tags)
    # What runs are compared by in MLflow's tables and charts.
    recorded = store.client.get_run(given).data.params
    settings = {k: v for k, v in request.settings.items() if v is not None and k not in recorded}
    store.log_params(given, settings)
    return RunRecord(store, given, request.seeds, is_continued=False, unlike=unlike)


def continue_run(store: Store, parent: Run, request: RunRequest, given: str | None) -> RunRecord:
    """`parent` goes on, with the seeds that `request` adds; `given` is nested below it."""
    parent_id = parent.info.run_id
    seeds = tuple(dict.fromkeys((*seeds_of(parent), *request.add_seeds)))
    tags = {"is_complete": "false", "heartbeat": str(int(time.time())), **process_tags()}
    if request.add_seeds:
        tags["seeds"] = ",".join(map(str, seeds))
        tags["added_seeds"] = ",".join(map(str, request.add_seeds))
    store.client.update_run(parent_id, status="RUNNING")
    store.set_tags(parent_id, tags)
    if given:
        rename_run(store, given, f"{request.name}_continued")
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


def rename_run(store: Store, run_id: str, name: str) -> None:
    """Name the run that `mlflow run` made, unless the user did (`--run-name`)."""
    own = store.client.get_run(run_id).info.run_name or ""
    # MLflow's own: an adjective, a noun and a number.
    if not own or re.fullmatch(r"[a-z]+-[a-z]+-\d+", own):
        store.client.update_run(run_id, name=name)
