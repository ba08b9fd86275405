"""Where a command records what it does."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import mlflow

from pose.ensembling.members import RegisteredMember
from pose.errors import InputError, first_few
from pose.files import locked
from pose.overview import RunOverview
from pose.predictions import Predictions
from pose.tracking import contestants, overview, parents, registry
from pose.tracking.deliveries import Deliveries, rename_run
from pose.tracking.parents import RunRequest, close_dead_runs, find_parent, refuse_living
from pose.tracking.runs import (
    RunRecord,
    arrived_run,
    begin_run,
    continue_offline,
    continue_run,
    is_of,
    unfinished_opening,
)
from pose.tracking.spool import SPOOL, Spool
from pose.tracking.store import PARENT_TAG, Store, StoreError, connect, process_tags, shown_uri
from pose.tracking.tasks import TaskRecord
from pose.tracking.votes import VoteRecord


class Tracker:
    """Where a command records what it does: the store that the environment names.

    Args:
        given_run_id: the run that `mlflow run` made for this command, if any. The first run or
            vote that is opened takes it.
        sweep_run_id: the sweep that the runs opened here are trials of, if any.
        folder: of a run that may go on while the store is away; without it, or if no unfinished
            run is there, the store must be reachable.
        say: tells a person, in one line, when the store goes away and when it is back.
        command: what the user can type to continue a run that this command begins.

    Raises:
        InputError: the store cannot be reached.
    """

    def __init__(
        self,
        given_run_id: str | None = None,
        sweep_run_id: str | None = None,
        *,
        folder: Path | None = None,
        say: Callable[[str], None] = print,
        command: str = "",
    ) -> None:
        self._given = given_run_id
        self._sweep_run_id = sweep_run_id
        self._say = say
        self._command = command[:5000]
        self._away: StoreError | None = None
        self._is_copy_said = False
        try:
            self._store = connect()
        except StoreError as error:
            if not error.is_away or folder is None:
                raise
            self._store = Store(mlflow.get_tracking_uri())
            if not self._has_unfinished(folder):
                raise
            self._away = error

    def _has_unfinished(self, folder: Path) -> bool:
        return unfinished_opening(self._store, Spool(folder / SPOOL)) is not None

    @property
    def address(self) -> str:
        """Of the store, without a password."""
        return shown_uri(self._store.uri)

    def _take_given(self) -> tuple[str | None, str]:
        """The run that `mlflow run` made, once, and the experiment to record in."""
        given, self._given = self._given, None
        return given, self._check_experiment_of(given)

    def check_place(self) -> None:
        """See, before any work, that what comes of it can be recorded.

        Raises:
            InputError: the experiment to record in is not there, or cannot be used.
        """
        self._check_experiment_of(self._given)

    def _check_experiment_of(self, given: str | None) -> str:
        """The experiment to record in, checked."""
        if given is None:
            experiment_id = self._store.current_experiment_id()
        else:
            experiment_id = self._store.client.get_run(given).info.experiment_id
        self._store.check_experiment(experiment_id)
        first = self._store.first_of_copies(experiment_id)
        if first is not None and not self._is_copy_said:
            self._is_copy_said = True
            self._say(
                f"warning: this tracking store is a copy of {first}, and its artifacts lie and are "
                f"put beside that one: keep {first.parent}, or begin a new store "
                "(MLFLOW_TRACKING_URI=sqlite:///new.db)"
            )
        return experiment_id

    def open_run(self, request: RunRequest) -> "RunRecord":
        """The parent run of `request`: its unfinished one, or a new one.

        `mlflow run` has made a run already. It becomes the parent of a new run; where an
        unfinished one goes on, that keeps its parent, and the new one is nested below it.

        Raises:
            InputError: the same run is at work elsewhere, there is none to add seeds to, or the
                store is away and this is not the unfinished run of its folder.
        """
        given = self._given
        try:
            if self._away is not None:
                raise self._away
            return self._find_or_begin(request)
        except StoreError as error:
            if not error.is_away:
                raise
            spool = Spool(request.folder / SPOOL)
            record = continue_offline(self._store, spool, request, given, self._say)
            if record is None:
                raise
            return record

    def _find_or_begin(self, request: RunRequest) -> RunRecord:
        # What is decided from here on is decided by what is recorded.
        has_sent = self.send(request.folder) > 0
        given, experiment_id = self._take_given()
        if self._sweep_run_id:
            nested = {registry.SWEEP_TAG: self._sweep_run_id, PARENT_TAG: self._sweep_run_id}
            request = dataclasses.replace(request, tags={**request.tags, **nested})
        if self._command:
            tags = {**request.tags, "command": self._command}
            request = dataclasses.replace(request, tags=tags)
        # Two commands at once must not both find that there is none.
        key = "\n".join((self._store.uri, experiment_id, *request.identity().values()))
        name = f"pose-{os.getuid()}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.lock"
        with locked(Path(tempfile.gettempdir()) / name):
            close_dead_runs(self._store, experiment_id)
            parent = find_parent(self._store, experiment_id, request)
            if parent is None and has_sent:
                parent = arrived_run(self._store, Spool(request.folder / SPOOL), request)
            if parent is None:
                return begin_run(self._store, experiment_id, request, given, self._say)
            refuse_living(parent)
            return continue_run(self._store, parent, request, given, self._say)

    def send(self, folder: Path) -> int:
        """Deliver what an earlier command left in the spool of a run's folder.

        What the store refuses is said, and stays in the spool.

        Returns:
            How many records arrived.

        Raises:
            StoreError: the store is away.
        """
        spool = Spool(folder / SPOOL)
        num_waiting = len(spool.waiting())
        self._tell_lost(spool)
        if not num_waiting:
            return 0
        if not spool.records("open"):
            self._say(
                f"warning: {num_waiting} records in {spool.path} cannot be sent: the one that says "
                "of which run they are is damaged; the files of the seeds lie beside it"
            )
            return 0
        if not is_of(spool, self._store):
            self._say(f"warning: {num_waiting} records wait in {spool.path} for another store")
            return 0
        try:
            Deliveries(self._store, spool, self._say).send_all()
            self._say(f"sent to MLflow: {num_waiting} records that waited in {spool.path}")
        except StoreError as error:
            if error.is_away:
                raise
            self._say(f"warning: {error}; {len(spool.waiting())} records wait in {spool.path}")
        return num_waiting - len(spool.waiting())

    def _tell_lost(self, spool: Spool) -> None:
        """Say once which records are damaged."""
        lost = spool.lost()
        if lost:
            self._say(
                f"warning: {len(lost)} records of the run {spool.folder.name} were damaged in "
                f"{spool.path} before they were sent, MLflow does not have them: numbers "
                f"{first_few(lost)}"
            )
            spool.forget_lost()

    def for_trials(self, sweep_run_id: str) -> "Tracker":
        """A tracker whose runs are trials of a sweep."""
        return Tracker(sweep_run_id=sweep_run_id, say=self._say)

    def open_vote(self, name: str, tags: Mapping[str, str]) -> "VoteRecord":
        """The run of a vote: the one that `mlflow run` made, or a new one."""
        return VoteRecord(self._store, self._take_or_create("ensemble", name, tags))

    def open_task(
        self, kind: str, name: str, tags: Mapping[str, str], *, below: str | None = None
    ) -> TaskRecord:
        """The run of a comparison or an export, likewise; `kind` is a tag of it.

        Args:
            below: the id of a run that it is nested in.
        """
        nested = {} if below is None else {PARENT_TAG: below}
        return TaskRecord(self._store, self._take_or_create(kind, name, {**tags, **nested}))

    def end_given(self, status: str, stop_reason: str) -> None:
        """End the run that `mlflow run` made for a command that came to none of its own."""
        given, _ = self._take_given()
        if given is not None:
            TaskRecord(self._store, given).finish(status, stop_reason)

    def open_task_again(self, run_id: str, kind: str, name: str) -> TaskRecord:
        """The run of a task that was stopped; a new one where that is gone."""
        if self._store.get_run(run_id) is None:
            return self.open_task(kind, name, {})
        self._store.client.update_run(run_id, status="RUNNING")
        self._store.set_tags(run_id, process_tags())
        return TaskRecord(self._store, run_id)

    def _take_or_create(self, kind: str, name: str, tags: Mapping[str, str]) -> str:
        """The id of the run that `mlflow run` made, or of a new one."""
        given, experiment_id = self._take_given()
        tags = {**process_tags(), **tags, "kind": kind}
        if given is None:
            tags = {**self._store.context_tags(), **tags}
            run = self._store.client.create_run(experiment_id, run_name=name, tags=tags)
            return str(run.info.run_id)
        rename_run(self._store, given, name)
        self._store.set_tags(given, tags)
        return given

    def list_runs(self) -> list[RunOverview]:
        """As `overview.list_runs`."""
        return overview.list_runs(self._store)

    def fetch_weights(self, uri: str, folder: Path) -> Path:
        """As `registry.fetch_weights`."""
        return registry.fetch_weights(self._store, uri, folder)

    def newest_run_name(self, registry_name: str) -> str:
        """As `registry.newest_run_name`."""
        return registry.newest_run_name(self._store, registry_name)

    def run_name_of(self, run_id: str) -> str:
        """The name of a training run.

        Raises:
            InputError: there is no such run.
        """
        run = self._store.get_run(run_id)
        if run is None or "run" not in run.data.tags:
            raise InputError(f"parent must be the id of a training run, got {run_id!r}")
        return str(run.data.tags["run"])

    def find_members(
        self,
        run: str,
        parent_run_id: str | None = None,
        *,
        registry_name: str = registry.MODEL_NAME,
        may_be_unfinished: bool = False,
    ) -> registry.FoundMembers:
        """As `registry.find_members`."""
        return registry.find_members(
            self._store,
            run,
            parent_run_id,
            registry_name=registry_name,
            may_be_unfinished=may_be_unfinished,
        )

    def find_side(
        self, text: str, registry_name: str, folder: Path, option: str = "runs"
    ) -> contestants.FoundSide:
        """As `contestants.find_side`."""
        return contestants.find_side(self._store, text, registry_name, folder, option)

    def find_trained(self, uri: str, folder: Path) -> contestants.FoundSide:
        """As `contestants.find_trained`."""
        return contestants.find_trained(self._store, uri, folder)

    def fetch_val_predictions(self, member: RegisteredMember, folder: Path) -> Predictions:
        """As `contestants.fetch_val_predictions`."""
        return contestants.fetch_val_predictions(self._store, member, folder)

    def fetch_lock(self, run_id: str, folder: Path) -> Path:
        """As `registry.fetch_lock`."""
        return registry.fetch_lock(self._store, run_id, folder)

    def dataset_of(self, run_id: str) -> str | None:
        """The data folder that a run was trained on, as its machine called it."""
        run = self._store.get_run(run_id)
        return run.data.tags.get("dataset") if run else None

    def fetch_member(self, member: RegisteredMember, folder: Path) -> None:
        """As `registry.fetch_member`."""
        registry.fetch_member(self._store, member, folder)

    def missing_files(self, member: RegisteredMember) -> list[str]:
        """As `registry.missing_files`."""
        return registry.missing_files(self._store, member)

    def excluded_before(
        self, run: str, own: tuple[str, str], staging: Path
    ) -> tuple[str, set[str]] | None:
        """As `parents.excluded_before`."""
        return parents.excluded_before(self._store, run, own, staging)

    def fetch_results(self, member: RegisteredMember, folder: Path) -> None:
        """As `registry.fetch_results`."""
        registry.fetch_results(self._store, member, folder)


def end_orphan(run_id: str) -> None:
    """End as KILLED the run of a `mlflow run` that is gone, and cannot do it any more.

    Raises:
        InputError: the store cannot be reached.
    """
    store = Store(mlflow.get_tracking_uri())
    store.set_tags(run_id, {"stop_reason": "killed"})
    store.client.set_terminated(run_id, "KILLED")
