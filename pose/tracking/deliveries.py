"""How each kind of record in a spool is brought to the store: once, however often it is tried.

A try may fail half-way, or arrive without an answer, or be made again by a later command; so each
delivery asks what is there and adds what is missing.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Run

from pose.errors import InputError
from pose.history import Row
from pose.member_key import MemberKey
from pose.model_card import ModelCard
from pose.seeds import folder as seed_folder
from pose.tracking import flavors, packaging, registry
from pose.tracking.spool import Record, Spool, file_digest
from pose.tracking.store import NOTE_TAG, PARENT_TAG, Store, StoreError, store_errors
from pose.tracking.tags import member_key
from pose_models import ImageClassifier

# History columns that MLflow groups under another name than the CSV's.
METRIC_NAMES = {
    "epoch_seconds": "time/epoch_seconds",
    "images_per_second": "time/images_per_second",
}
PROCESS_TAGS = ("host", "pid", "process")


class Deliveries:
    """Brings the records of one spool to a store.

    Args:
        say: tells a person what can no longer be delivered.
    """

    def __init__(self, store: Store, spool: Spool, say: Callable[[str], None]) -> None:
        self._store = store
        self._spool = spool
        self._say = say
        # By the member's folder, or why there is none.
        self._models: dict[str, tuple[ImageClassifier, ModelCard] | InputError] = {}
        self._run_ids: dict[str, str] = {
            record.values["member"]: spool.facts(record)["run_id"]
            for record in spool.records("seed")
            if "run_id" in spool.facts(record)
        }
        # The epochs that a run has, by its id; asked once.
        self._steps: dict[str, set[int]] = {}
        self._kinds: dict[str, Callable[[Record], dict[str, Any] | None]] = {
            "open": self._open,
            "seed": self._seed,
            "epochs": self._epochs,
            "metrics": self._metrics,
            "tags": self._tags,
            "files": self._files,
            "text": self._text,
            "results": self._results,
            "summary": self._summary,
            "end": self._end,
        }

    def __call__(self, record: Record) -> dict[str, Any]:
        """Deliver one; returns what is to be remembered of it.

        Raises:
            StoreError: it did not arrive, or not whole.
        """
        with store_errors(self._store.uri):
            if not self._knows_run(record):
                whose = record.values.get("member", "the run")
                return self._lost(record, [f"a record ({record.do}) of {whose}"])
            return self._kinds[record.do](record) or {}

    def _knows_run(self, record: Record) -> bool:
        """Whether there is a run to bring it to; none where what opened it was damaged."""
        member = record.values.get("member")
        if record.do in ("open", "seed") or member in self._run_ids:
            return True
        parent_id = self._parent_id(record)
        if member is None or parent_id is None:
            return parent_id is not None
        parent = self._store.client.get_run(parent_id)
        child = registry.children(self._store, parent).get(MemberKey.from_folder(member))
        if child is not None:
            self._run_ids[member] = child.info.run_id
        return child is not None

    def send_all(self) -> None:
        """Deliver all that waits, in this thread.

        Raises:
            StoreError: at the first that does not arrive.
        """
        for record in self._spool.waiting():
            self._spool.mark(record, **self(record))

    def load_models(self) -> None:
        """Build the models that are still to be registered, before anything is trained."""
        for record in self._spool.waiting():
            if record.do == "results":
                self.load_model(record.values["member"])

    def load_model(self, member: str) -> tuple[ImageClassifier, ModelCard] | InputError:
        """The model of a finished member, built once; why not, where that cannot be.

        For the thread that trains, between two seeds: to build a model draws from the random
        numbers that training draws from.
        """
        if member not in self._models:
            try:
                self._models[member] = seed_folder.read_model(self._spool.folder / member)
            except InputError as error:
                self._models[member] = error
        return self._models[member]

    def fetch(self, member: str, name: str, folder: Path) -> Path | None:
        """Bring an artifact of a member into `folder`; None if there is none, or no answer.

        Raises:
            StoreError: the store refuses.
        """
        run_id, client = self._run_ids[member], self._store.client
        try:
            if name not in {artifact.path for artifact in client.list_artifacts(run_id)}:
                return None
            return Path(client.download_artifacts(run_id, name, str(folder)))
        except StoreError as error:
            if not error.is_away:
                raise
            return None

    def _run_id(self, record: Record) -> str:
        """The run that a record is about: its member's, or the parent."""
        member = record.values.get("member")
        if member is not None:
            return self._run_ids[member]
        parent_id = self._parent_id(record)
        assert parent_id is not None
        return parent_id

    def _parent_id(self, record: Record) -> str | None:
        """The run of the spool: as it was opened before, later, or as its members name it."""
        opened = self._spool.records("open")
        for other in [*(own for own in reversed(opened) if own.seq < record.seq), *opened]:
            return str(other.values["run_id"])
        parents = [own.values["tags"][PARENT_TAG] for own in self._spool.records("seed")]
        return parents[0] if parents else None

    def _open(self, record: Record) -> None:
        reopen(self._store, record.values)

    def _seed(self, record: Record) -> dict[str, Any]:
        """The child run of a member: its unfinished one opened again, or a new one."""
        values, client = record.values, self._store.client
        parent_id = values["tags"][PARENT_TAG]
        found = registry.children(self._store, client.get_run(parent_id))
        child = found.get(MemberKey.from_folder(values["member"]))
        if child is None:
            child = client.create_run(
                values["experiment_id"],
                start_time=record.at,
                run_name=values["member"],
                tags=values["tags"],
            )
        else:
            client.update_run(child.info.run_id, status="RUNNING")
            self._store.set_tags(
                child.info.run_id, {name: values["tags"][name] for name in PROCESS_TAGS}
            )
        run_id: str = child.info.run_id
        missing = {k: v for k, v in values["params"].items() if k not in child.data.params}
        if missing:
            self._store.log_params(run_id, missing)
        for run in (child, client.get_run(parent_id)) if values["data"] else ():
            log_data(self._store, run, values["data"], "training and validation")
        self._run_ids[values["member"]] = run_id
        return {"run_id": run_id}

    def _epochs(self, record: Record) -> None:
        run_id = self._run_id(record)
        # Forgotten if a try fails: it may have arrived all the same.
        steps = self._steps.pop(run_id, None)
        if steps is None:
            recorded = self._store.client.get_metric_history(run_id, "val_f1")
            steps = {metric.step for metric in recorded}
        rows: list[Row] = record.values["rows"]
        for row in rows:
            step = int(row["epoch"])
            if step not in steps:
                metrics = {METRIC_NAMES.get(k, k): v for k, v in row.items() if k != "epoch"}
                self._store.log_metrics(run_id, metrics, step, at=record.at)
                steps.add(step)
        self._steps[run_id] = steps

    def _metrics(self, record: Record) -> None:
        values = record.values
        # MLflow keeps a value once that has the same name, step and time.
        self._store.log_metrics(
            self._run_id(record), values["metrics"], values["step"], at=record.at
        )

    def _tags(self, record: Record) -> None:
        self._store.set_tags(self._run_id(record), record.values["tags"])

    def _files(self, record: Record) -> dict[str, Any]:
        run_id = self._run_id(record)
        lost = []
        for name, digest in record.values["files"].items():
            path = self._spool.folder / name
            if path.exists() and file_digest(path) == digest:
                self._store.client.log_artifact(run_id, str(path))
            elif not self._is_superseded(record, name):
                lost.append(name)
        return self._lost(record, lost)

    def _is_superseded(self, record: Record, name: str) -> bool:
        """Whether a later record brings a newer version of a file, or is going to."""
        later = [r for r in self._spool.records() if r.seq > record.seq]
        member = record.values.get("member")
        return any(
            name in r.values.get("files", {}) or (r.do == "seed" and r.values["member"] == member)
            for r in later
        )

    def _lost(self, record: Record, names: list[str]) -> dict[str, Any]:
        if not names:
            return {}
        self._say(
            f"warning: {', '.join(names)} in {self._spool.folder} changed or went before it was "
            "recorded; MLflow does not have it"
        )
        return {"lost": names}

    def _text(self, record: Record) -> None:
        self._store.client.log_text(
            self._run_id(record), record.values["text"], record.values["name"]
        )

    def _results(self, record: Record) -> dict[str, Any]:
        """The files, scores and registered model of a finished seed."""
        run_id, values = self._run_id(record), record.values
        facts = self._files(record)
        run = self._store.client.get_run(run_id)
        best = {"best_val_f1": values["val_f1"], "best_epoch": float(values["best_epoch"])}
        missing = {key: value for key, value in best.items() if key not in run.data.metrics}
        if self._store.search_versions(f"run_id = '{run_id}'"):
            self._store.log_metrics(run_id, missing, at=record.at)
        else:
            found = self.load_model(values["member"])
            if isinstance(found, InputError):
                self._store.log_metrics(run_id, missing, at=record.at)
                self._say(f"warning: {found}; it is not registered")
                return {"lost": [seed_folder.WEIGHTS]}
            model_id = self._log_model(run, *found, record)
            self._store.log_model_metrics(run, model_id, missing, at=record.at)
            folder = self._spool.folder / values["member"]
            self._register(run, model_id, found[1], folder)
        self._models.pop(values["member"], None)
        return facts

    def _log_model(self, run: Run, model: ImageClassifier, card: ModelCard, record: Record) -> str:
        """Log the model, unless an earlier try has; its id."""
        folder = self._spool.folder / record.values["member"]
        return self._logged_model(run) or packaging.log_model(
            self._store,
            run.info.run_id,
            model,
            config=flavors.predictor_config([card]),
            extra_files=[folder / seed_folder.WEIGHTS, folder / seed_folder.CONFIG],
            model_format=record.values["model_format"],
        )

    def _register(self, run: Run, model_id: str, card: ModelCard, folder: Path) -> None:
        tags = run.data.tags
        packaging.register(
            self._store,
            tags.get(registry.NAME_TAG, registry.MODEL_NAME),
            run.info.run_id,
            model_id,
            {
                "run": tags["run"],
                **member_key(run).tags(),
                "model": tags["model"],
                "recipe": tags["recipe"],
                "val_f1": f"{card.val_f1:.6f}",
                "dataset_digest": card.dataset_digest,
                "weights_sha256": card.weights_sha256,
                "files_sha256": seed_folder.files_sha256(folder),
                "parent_run_id": tags[PARENT_TAG],
            },
        )

    def _logged_model(self, run: Run) -> str | None:
        """The model that an earlier try logged and did not register; a partial one is removed."""
        whole = None
        for found in self._store.client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        ):
            if str(found.status).rpartition(".")[2] == "READY":
                whole = found.model_id
            else:
                self._store.client.delete_logged_model(found.model_id)
        return whole

    def _summary(self, record: Record) -> None:
        run_id, values = self._run_id(record), record.values
        self._store.log_metrics(run_id, values["metrics"], at=record.at)
        self._store.set_tags(run_id, {**values["tags"], NOTE_TAG: values["note"]})

    def _end(self, record: Record) -> None:
        values = record.values
        for run_id in filter(None, (values.get("continuation_id"), self._run_id(record))):
            end_run(self._store, run_id, values["status"], values["tags"], record.at)


def log_data(store: Store, run: Run, entity: dict[str, Any], context: str) -> None:
    """Record the data of a run that has none yet.

    Args:
        entity: as MLflow describes data, in plain values.
        context: what the run does with it.
    """
    if not (run.inputs and run.inputs.dataset_inputs):
        tag = InputTag(key="mlflow.data.context", value=context)
        inputs = [DatasetInput(Dataset(**entity), [tag])]
        store.client.log_inputs(run.info.run_id, inputs)


def reopen(store: Store, values: dict[str, Any]) -> None:
    """A run goes on: `values` of a record `open`."""
    run_id = values["run_id"]
    store.client.update_run(run_id, status="RUNNING")
    store.set_tags(run_id, values["tags"])
    given = values["continuation_id"]
    if given is not None:
        name, process = values["identity"]["run"], {k: values["tags"][k] for k in PROCESS_TAGS}
        rename_run(store, given, f"{name}_continued")
        own = {"run": name, "kind": "continuation", PARENT_TAG: run_id}
        note = {NOTE_TAG: f"Continued the run {name}, `{run_id}`."}
        store.set_tags(given, {**process, **own, **note})


def rename_run(store: Store, run_id: str, name: str) -> None:
    """Name the run that `mlflow run` made, unless the user did (`--run-name`)."""
    own = store.client.get_run(run_id).info.run_name or ""
    # MLflow's own: an adjective, a noun and a number.
    if not own or re.fullmatch(r"[a-z]+-[a-z]+-\d+", own):
        store.client.update_run(run_id, name=name)


def end_run(store: Store, run_id: str, status: str, tags: dict[str, str], at: int) -> None:
    """End a run; its status comes last."""
    if tags:
        store.set_tags(run_id, tags)
    store.client.set_terminated(run_id, status, at)
