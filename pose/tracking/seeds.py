"""The record of one seed: a child run, and the registered model that comes of it."""

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import mlflow.data
import pandas as pd
from mlflow.entities import Run

from pose.errors import InputError
from pose.files import make_folder, writing
from pose.history import COLUMNS, Row
from pose.member_key import MemberKey
from pose.results import FINISHED_REASONS, SeedResult
from pose.seeds import folder as seed_folder
from pose.tracking.courier import Courier
from pose.tracking.deliveries import METRIC_NAMES, Deliveries
from pose.tracking.spool import Record, Spool, digests
from pose.tracking.store import Store
from pose.tracking.system import SystemMetrics, watch_system
from pose.tracking.tags import member_key

# How long training waits for a finished seed to be registered, before it begins the next.
PUBLISHING_SECONDS = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The images as the data that a run works on.

    Attributes:
        ids, labels: `(N,)`; test images have no labels.
        digest: of ids, labels and contents.
    """

    ids: Sequence[str]
    labels: Sequence[str] | None
    folder: Path
    digest: str


class SeedRecord:
    """The record of one seed; a `pose.seeds.job.SeedTracker`.

    Everything goes into the run's spool, and from there to the store.
    """

    def __init__(
        self,
        member: MemberKey,
        model_format: str,
        *,
        spool: Spool,
        deliveries: Deliveries,
        courier: Courier,
    ) -> None:
        self._member = member
        self._model_format = model_format
        self._spool = spool
        self._deliveries = deliveries
        self._courier = courier
        self._num_logged = 0
        self._system: SystemMetrics | None = None
        self._num_samples = sum(
            record.values["member"] == member.folder for record in spool.records("metrics")
        )

    def watch_system(self, say: Callable[[str], None]) -> bool:
        """Record the machine's load until the seed ends, if the environment asks for it.

        Returns:
            Whether it is recorded.
        """
        self._system = watch_system(self._log_sample, say)
        return self._system is not None

    def _log_sample(self, metrics: dict[str, float]) -> None:
        self._add("metrics", metrics=metrics, step=self._num_samples)
        self._num_samples += 1

    def _add(self, do: str, **values: Any) -> None:
        self._spool.append(do, member=self._member.folder, **values)
        self._courier.wake()

    def log_epochs(self, history: list[Row]) -> None:
        """Record the epochs of `history` that this object has not seen.

        The first time that is all of them: delivery leaves out what the run has.
        """
        rows = history[self._num_logged :]
        if rows:
            self._add("epochs", rows=rows)
            self._num_logged = len(history)

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """Bring the recorded checkpoint into `folder`; None if there is none, or no answer."""
        # The child run is there when all before has arrived; while the store is away it cannot be
        # asked, and the seed goes on from what is here.
        if self._courier.trouble or not self._courier.flush(PUBLISHING_SECONDS):
            return None
        make_folder(folder)
        # Under its own name, half written, it would replace the one that it may stand in for.
        with (
            writing(folder),
            tempfile.TemporaryDirectory(
                prefix=".fetched-", suffix=".partial", dir=folder
            ) as staging,
        ):
            fetched = self._deliveries.fetch(
                self._member.folder, seed_folder.CHECKPOINT, Path(staging)
            )
            if fetched is None:
                return None
            os.replace(fetched, folder / seed_folder.CHECKPOINT)
        return folder / seed_folder.CHECKPOINT

    def log_tags(self, tags: dict[str, str]) -> None:
        """Record what became of a setting."""
        self._add("tags", tags=tags)

    def log_checkpoint(self, folder: Path) -> None:
        """Record what an unfinished seed has so far."""
        names = (seed_folder.CHECKPOINT, seed_folder.HISTORY)
        self._add("files", files=digests(self._spool.folder, [folder / name for name in names]))

    def log_results(self, folder: Path) -> None:
        """Record the seed's files and its best model, and register the model.

        Raises:
            InputError: the folder does not hold the model that it should.
        """
        found = self._deliveries.load_model(self._member.folder)
        if isinstance(found, InputError):
            raise found
        _, card = found
        paths = [folder / name for name in seed_folder.RESULTS if (folder / name).exists()]
        self._add(
            "results",
            files=digests(self._spool.folder, paths),
            val_f1=card.val_f1,
            best_epoch=card.best_epoch,
            model_format=self._model_format,
        )
        # While the store is away there is nothing to wait for.
        if self._courier.trouble is None:
            self._courier.flush(PUBLISHING_SECONDS)

    def finish(self, status: str, stop_reason: str) -> None:
        """End the child run with the reason in its tags."""
        if self._system is not None:
            self._system.finish()
        self._add("end", status=status, tags={"stop_reason": stop_reason})


def data_entity(data: DataRecord) -> dict[str, Any]:
    """The images as MLflow describes data, in plain values."""
    columns = {"id": data.ids, **({} if data.labels is None else {"label": data.labels})}
    with warnings.catch_warnings():
        # MLflow knows two kinds of source for a local path, of the same name and meaning.
        warnings.filterwarnings("ignore", message="The specified dataset source can be")
        # MLflow makes this function while it is imported.
        dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
            pd.DataFrame(columns),
            source=str(data.folder.absolute()),
            targets=None if data.labels is None else "label",
            name=data.folder.absolute().name[:500],
            digest=data.digest,
        )
    return dict(dataset._to_mlflow_entity())


def recorded_result(store: Store, child: Run) -> SeedResult:
    """What the store says of a finished member."""
    history = recorded_history(store, child.info.run_id)
    return _result(
        member_key(child),
        history,
        stop_reason=child.data.tags["stop_reason"],
        best_epoch=int(child.data.metrics["best_epoch"]),
        val_f1=child.data.metrics["best_val_f1"],
    )


def spooled_results(spool: Spool) -> dict[MemberKey, SeedResult]:
    """What the spool says of the members that are finished."""
    found: dict[MemberKey, SeedResult] = {}
    results: dict[str, Record] = {}
    for record in spool.records("results", "end"):
        member = record.values.get("member")
        if member is None:
            continue
        if record.do == "results":
            results[member] = record
        elif member in results and record.values["tags"]["stop_reason"] in FINISHED_REASONS:
            rows = {
                row["epoch"]: row
                for other in spool.records("epochs")
                if other.values["member"] == member
                for row in other.values["rows"]
            }
            values = results[member].values
            key = MemberKey.from_folder(member)
            found[key] = _result(
                key,
                [rows[epoch] for epoch in sorted(rows)],
                stop_reason=record.values["tags"]["stop_reason"],
                best_epoch=values["best_epoch"],
                val_f1=values["val_f1"],
            )
    return found


def _result(
    key: MemberKey, history: list[Row], *, stop_reason: str, best_epoch: int, val_f1: float
) -> SeedResult:
    return SeedResult(
        seed=key.seed,
        fold=key.fold,
        stop_reason=stop_reason,
        best_epoch=best_epoch,
        val_f1=val_f1,
        num_epochs=len(history),
        # Imported histories may lack the time.
        seconds=sum(row.get("epoch_seconds", 0.0) for row in history),
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
