"""The record of a run: the parent of its seeds in MLflow."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from pose.config import typed
from pose.files import make_folder
from pose.member_key import MemberKey
from pose.results import FINISHED_REASONS, SeedResult
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob
from pose.tracking import pages, registry
from pose.tracking.courier import Courier
from pose.tracking.deliveries import Deliveries, end_run, rename_run, reopen
from pose.tracking.parents import MIRRORS_TAG, RunRequest, next_begun, unlike_text
from pose.tracking.seeds import (
    DataRecord,
    SeedRecord,
    data_entity,
    recorded_result,
    spooled_results,
)
from pose.tracking.spool import SPOOL, Record, Spool, digests
from pose.tracking.store import PARENT_TAG, Store, StoreError, process_tags, shown_uri
from pose.tracking.tags import BEGUN_TAG, seeds_of

# How long a command that was asked to stop waits for what it has still to record.
STOPPING_SECONDS = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """A run that is begun or continued, in plain values: a record `open` of its spool.

    Attributes:
        store: its address, without password.
        tags: what a continued run is marked with.
        mirrors: as in a `RunRequest`.
        continuation_id: the run that `mlflow run` made for a command that continues an older one.
    """

    store: str
    experiment_id: str
    run_id: str
    identity: dict[str, str]
    seeds: tuple[int, ...]
    tags: dict[str, str]
    continuation_id: str | None = None
    mirrors: str = ""


class RunRecord:
    """A run as a parent in MLflow; hands out a record for each of its seeds.

    What is recorded goes into a spool in the run's folder first, and a courier takes it to the
    store: work goes on while that is away.

    Attributes:
        seeds: those that the run promises, added ones included.
        unlike: how an unfinished run of the same name differs, where one exists and this is new.
    """

    def __init__(
        self,
        store: Store,
        opening: Opening,
        say: Callable[[str], None],
        *,
        is_continued: bool,
        is_offline: bool = False,
        unlike: str = "",
    ) -> None:
        self._store = store
        self._opening = opening
        self._say = say
        self._is_offline = is_offline
        self.run_id = opening.run_id
        self.seeds = opening.seeds
        self.is_continued = is_continued
        self.unlike = unlike
        self._courier: Courier | None = None
        self._is_watched = True

    def begin(self, folder: Path) -> None:
        """Record from now on, through the spool in the run's folder."""
        self._spool = Spool(folder / SPOOL)
        opened = self._spool.append("open", **dataclasses.asdict(self._opening))
        if not self._is_offline:
            self._spool.mark(opened)
        self._deliveries = Deliveries(self._store, self._spool, self._say)
        self._deliveries.load_models()
        self._courier = Courier(self._spool, self._deliveries, self._beat, self._say)

    def _beat(self) -> None:
        self._store.set_tags(self.run_id, {"heartbeat": str(int(time.time()))})

    def _add(self, do: str, **values: Any) -> None:
        assert self._courier is not None, "begin comes first"
        self._spool.append(do, **values)
        self._courier.wake()

    def settle(self) -> None:
        """See that the store takes what it has been given so far.

        Raises:
            StoreError: it refuses. One that is away is no reason not to begin.
        """
        assert self._courier is not None, "begin comes first"
        if not self._is_offline and not self._courier.flush(STOPPING_SECONDS):
            self._raise_refusal()

    def _raise_refusal(self) -> None:
        trouble = self._courier.trouble if self._courier else None
        if trouble is not None and not (isinstance(trouble, StoreError) and trouble.is_away):
            raise trouble

    def finished_members(self) -> dict[MemberKey, SeedResult]:
        """The members that have all they should: a reason to be finished and a registered model.

        While the store is away, what the spool says.
        """
        if self._is_offline:
            return spooled_results(self._spool)
        try:
            return self._recorded_members()
        except StoreError as error:
            if not error.is_away:
                raise
            return spooled_results(self._spool)

    def _recorded_members(self) -> dict[MemberKey, SeedResult]:
        registered = {
            version.run_id
            for version in self._store.search_versions(f"tags.parent_run_id = '{self.run_id}'")
        }
        return {
            key: recorded_result(self._store, child)
            for key, child in self._children().items()
            if child.data.tags.get("stop_reason") in FINISHED_REASONS
            and child.info.run_id in registered
        }

    def _children(self) -> dict[MemberKey, Run]:
        """The newest child run of each member."""
        return registry.children(self._store, self._store.client.get_run(self.run_id))

    def fetch_val_predictions(self, member: MemberKey, folder: Path) -> Path:
        """Bring a finished member's validation predictions into `folder`."""
        make_folder(folder)
        run_id = self._children()[member].info.run_id
        return Path(
            self._store.client.download_artifacts(run_id, seed_folder.VAL_PREDICTIONS, str(folder))
        )

    def open_seed(
        self,
        job: SeedJob,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        data: DataRecord | None,
    ) -> SeedRecord:
        """The record of a job: its unfinished child run opened again, or a new one.

        What a killed command had no time to record is recorded now.

        Args:
            data: what it is trained on; None where that is unknown.
        """
        own = {"kind": "seed", **job.key.tags(), "parent_run_id": self.run_id}
        self._add(
            "seed",
            member=job.key.folder,
            experiment_id=self._opening.experiment_id,
            tags={
                **self._store.context_tags(),
                **process_tags(),
                **tags,
                **own,
                PARENT_TAG: self.run_id,
            },
            params={name: typed(value) for name, value in params.items()},
            data=None if data is None else data_entity(data),
        )
        assert self._courier is not None
        record = SeedRecord(
            job.key,
            tags["model_format"],
            spool=self._spool,
            deliveries=self._deliveries,
            courier=self._courier,
        )
        # What one seed could not be watched with, the next cannot either; once is enough to say it.
        if self._is_watched:
            self._is_watched = record.watch_system(self._say)
        return record

    def log_text(self, text: str, name: str) -> None:
        """Record `text` as the artifact `name` of the parent."""
        self._add("text", text=text, name=name)

    def log_file(self, path: Path) -> None:
        """Record a file of the run's folder as an artifact of the parent."""
        self._add("files", files=digests(self._spool.folder, [path]))

    def log_summary(self, metrics: Mapping[str, float], tags: Mapping[str, str], note: str) -> None:
        """Record the seeds' summary: metrics, tags and the description shown on the run's page."""
        self._add("summary", metrics=dict(metrics), tags=dict(tags), note=note)

    def complete(self) -> None:
        """All seeds are finished and the summary is recorded.

        Raises:
            StoreError: the store refuses what it is to record.
        """
        self._end("FINISHED", {"is_complete": "true", "stop_reason": "complete"}, None)
        self._raise_refusal()

    def finish(self, status: str, stop_reason: str = "") -> None:
        """End the parent, and the run of the command that continued it, as `status`."""
        tags = {"stop_reason": stop_reason} if stop_reason else {}
        self._end(status, tags, STOPPING_SECONDS)

    def _end(self, status: str, tags: dict[str, str], seconds: float | None) -> None:
        """Record the end, and wait until it has arrived, cannot, or `seconds` have passed."""
        given = self._opening.continuation_id
        if self._courier is None:
            for run_id in filter(None, (given, self.run_id)):
                end_run(self._store, run_id, status, tags, int(time.time() * 1000))
            return
        self._add("end", status=status, tags=tags, continuation_id=given)
        if not self._courier.close(seconds):
            self._say(
                f"not in MLflow yet: {len(self._spool.waiting())} records, which wait in "
                f"{self._spool.path}: the next start sends them, or mlflow run . -e sync"
            )

    def seeds_page(self) -> str:
        """Address of the page that compares the seeds."""
        # A store that is silent would be waited for once more, by somebody who wants to stop.
        has_all = self._courier is None or not self._spool.waiting()
        return pages.seeds_page(
            self._store, self._opening.experiment_id, self.run_id, keeps_view=has_all
        )


def begin_run(
    store: Store,
    experiment_id: str,
    request: RunRequest,
    given: str | None,
    say: Callable[[str], None],
) -> RunRecord:
    """A new run as a parent: `given`, which `mlflow run` made, or one of its own."""
    unlike = ""
    if not request.fresh:
        unlike = unlike_text(store, experiment_id, request) or lost_text(store, request)
    tags = {
        **process_tags(),
        **request.identity(),
        **request.tags,
        "seeds": ",".join(map(str, request.seeds)),
        **({MIRRORS_TAG: request.mirrors} if request.mirrors else {}),
        "kind": request.kind,
        "is_complete": "false",
        "heartbeat": str(int(time.time())),
        BEGUN_TAG: str(next_begun(store, experiment_id)),
        "folder": str(request.folder.absolute()),
    }
    if given is None:
        tags = {**store.context_tags(), **tags}
        run = store.client.create_run(experiment_id, run_name=request.name, tags=tags)
        given = run.info.run_id
    else:
        rename_run(store, given, request.name)
        store.set_tags(given, tags)
    _log_settings(store, given, request)
    opening = Opening(
        store=shown_uri(store.uri),
        experiment_id=experiment_id,
        run_id=given,
        identity=request.identity(),
        seeds=request.seeds,
        tags=process_tags(),
        mirrors=request.mirrors,
    )
    return RunRecord(store, opening, say, is_continued=False, unlike=unlike)


def continue_run(
    store: Store,
    parent: Run,
    request: RunRequest,
    given: str | None,
    say: Callable[[str], None],
) -> RunRecord:
    """`parent` goes on, with the seeds that `request` adds; `given` is nested below it."""
    seeds = tuple(dict.fromkeys((*seeds_of(parent), *request.add_seeds)))
    tags = {**_continued_tags(), "folder": str(request.folder.absolute())}
    before = Path(parent.data.tags.get("folder", tags["folder"]))
    if str(before) != tags["folder"] and before.is_dir():
        say(
            f"warning: this run was in {before}, what only lies there is not used: to go on from "
            f"it, give --output-root {before.parent}"
        )
    if "command" in request.tags:
        tags["command"] = request.tags["command"]
    if request.add_seeds:
        tags["seeds"] = ",".join(map(str, seeds))
        tags["added_seeds"] = ",".join(map(str, request.add_seeds))
    opening = Opening(
        store=shown_uri(store.uri),
        experiment_id=parent.info.experiment_id,
        run_id=parent.info.run_id,
        identity=request.identity(),
        seeds=seeds,
        tags=tags,
        continuation_id=given,
        mirrors=request.mirrors,
    )
    reopen(store, dataclasses.asdict(opening))
    _log_settings(store, parent.info.run_id, request)
    return RunRecord(store, opening, say, is_continued=True)


def _log_settings(store: Store, run_id: str, request: RunRequest) -> None:
    """Record what runs are compared by in MLflow's tables and charts, where it is not yet."""
    recorded = store.client.get_run(run_id).data.params
    settings = {k: v for k, v in request.settings.items() if v is not None and k not in recorded}
    store.log_params(run_id, settings)


def continue_offline(
    store: Store,
    spool: Spool,
    request: RunRequest,
    given: str | None,
    say: Callable[[str], None],
) -> RunRecord | None:
    """The unfinished run of a spool goes on while its store is away; None if it is another run."""
    last = unfinished_opening(store, spool)
    if last is None or not _is_meant(last, request):
        return None
    opening = dataclasses.replace(last, tags=_continued_tags(), continuation_id=given)
    return RunRecord(store, opening, say, is_continued=True, is_offline=True)


def arrived_run(store: Store, spool: Spool, request: RunRequest) -> Run | None:
    """The run of a spool, all of which has arrived just now, if `request` means it; else None.

    Its own command could not say that the run is recorded, so the same command ends it.
    """
    opened = spool.records("open")
    if spool.waiting() or not opened:
        return None
    last = _opening_of(opened[-1])
    return store.get_run(last.run_id) if _is_meant(last, request) else None


def _is_meant(opening: Opening, request: RunRequest) -> bool:
    """Whether `request` means the run that was opened so, should that go on."""
    return (
        opening.identity == request.identity()
        and opening.seeds == request.seeds
        and request.has_mirrors(opening.mirrors)
        and not request.fresh
        and not request.add_seeds
    )


def _opening_of(record: Record) -> Opening:
    return Opening(**{**record.values, "seeds": tuple(record.values["seeds"])})


def is_of(spool: Spool, store: Store) -> bool:
    """Whether a spool's run lies in `store`."""
    opened = spool.records("open")
    return bool(opened) and opened[-1].values["store"] == shown_uri(store.uri)


def unfinished_opening(store: Store, spool: Spool) -> Opening | None:
    """How the run of a spool was opened last; None if it is complete, or of another store."""
    return _left_unfinished(spool) if is_of(spool, store) else None


def _left_unfinished(spool: Spool) -> Opening | None:
    opened = spool.records("open")
    if not opened:
        return None
    ends = [record for record in spool.records("end") if "member" not in record.values]
    if ends and ends[-1].seq > opened[-1].seq and ends[-1].values["tags"].get("is_complete"):
        return None
    return _opening_of(opened[-1])


def lost_text(store: Store, request: RunRequest) -> str:
    """What became in MLflow of the unfinished run that the folder of `request` is of.

    Empty where there is none, or where it is another one. Whoever deleted it or edited its tags
    should know that nothing goes on with it.
    """
    spool = Spool(request.folder / SPOOL)
    opening = _left_unfinished(spool)
    if opening is None or opening.identity != request.identity():
        return ""
    if not is_of(spool, store):
        return f"{opening.run_id} is recorded in another store, {opening.store}"
    run = store.get_run(opening.run_id)
    if run is None:
        return f"{opening.run_id} is gone from MLflow"
    expected = {"kind": request.kind, **opening.identity}
    edited = [
        f"{key} ({run.data.tags.get(key, 'none')}, was {value})"
        for key, value in expected.items()
        if run.data.tags.get(key) != value
    ]
    return f"{opening.run_id} has edited tags in MLflow: {', '.join(edited)}" if edited else ""


def _continued_tags() -> dict[str, str]:
    return {"is_complete": "false", "heartbeat": str(int(time.time())), **process_tags()}
