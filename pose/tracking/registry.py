"""The registered models: who can vote, and how a member is brought here."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pose.ensembling.members import RegisteredMember
from pose.errors import InputError, known, one_line
from pose.seeds import folder as seed_folder
from pose.tracking.store import Store, StoreError, store_errors

MODEL_NAME = "pose"
ENSEMBLE_NAME = "pose-ensemble"
# On the trials of a sweep: the sweep's run.
SWEEP_TAG = "sweep_run_id"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundMembers:
    """Who can vote for one run.

    Attributes:
        members: the newest version of each seed, sorted by seed.
        left_out: finished members of other runs of the same name, by the run's id.
        dataset: the data folder that the run was trained on, as its machine called it.
    """

    members: tuple[RegisteredMember, ...]
    left_out: dict[str, tuple[int, ...]]
    dataset: str | None


def is_complete(run: Run) -> bool:
    """Whether a training run has all that it promised, by its own record.

    Not by its status: `mlflow run` sets that on its run when the command ends, however it ended.
    Runs from before 0.2 have no such record; their status must do.
    """
    record = run.data.tags.get("is_complete")
    return run.info.status == "FINISHED" if record is None else record == "true"


def newest_run_name(store: Store) -> str:
    """The name of the newest finished training run that is no trial of a sweep.

    Raises:
        InputError: there is none.
    """
    parents = _finished_parents(store, store.search_versions(f"name = '{MODEL_NAME}'"))
    finished = [run for run in parents if SWEEP_TAG not in run.data.tags]
    if not finished:
        raise InputError(
            "run must be trained before it can vote, found no finished one in this tracking "
            "store: mlflow run . -e train -P run=demo -P dataset=demo trains one"
        )
    return max(finished, key=lambda run: run.info.start_time).data.tags["run"]


def find_members(store: Store, run: str, parent_run_id: str | None = None) -> FoundMembers:
    """The newest version per seed of the newest finished run named `run`.

    Args:
        parent_run_id: take this run instead, finished or not.

    Raises:
        InputError: nothing is registered under that name; the message lists the known names.
    """
    versions = [
        found
        for found in store.search_versions(f"name = '{MODEL_NAME}'")
        if found.tags.get("run") == run and "parent_run_id" in found.tags
    ]
    if not versions:
        names = {v.tags.get("run") for v in store.search_versions(f"name = '{MODEL_NAME}'")}
        raise InputError(
            f"run must have registered models, found none under {run!r}; there are: "
            f"{known(names - {None})}. Train it first: mlflow run . -e train -P run={run}"
        )
    parents = {found.tags["parent_run_id"] for found in versions}
    finished = {parent.info.run_id: parent for parent in _finished_parents(store, versions)}
    if parent_run_id is None:
        if not finished:
            raise InputError(
                f"run must be finished before it votes, found only unfinished ones named {run!r}: "
                f"continue it with the same train command, or name one: --parent {parents.pop()}"
            )
        newest = max(finished.values(), key=lambda found: found.info.start_time)
        parent_run_id = newest.info.run_id
    elif parent_run_id not in parents:
        raise InputError(
            f"parent must be a run named {run!r} with registered models ({known(parents)}), "
            f"got {parent_run_id!r}"
        )
    own = [found for found in versions if found.tags["parent_run_id"] == parent_run_id]
    members = {int(v.tags["seed"]): _member(v) for v in sorted(own, key=lambda v: int(v.version))}
    left_out: dict[str, set[int]] = {}
    for found in versions:
        parent = found.tags["parent_run_id"]
        if parent != parent_run_id and parent in finished:
            left_out.setdefault(parent, set()).add(int(found.tags["seed"]))
    parent_run = store.get_run(parent_run_id)
    return FoundMembers(
        members=tuple(members[seed] for seed in sorted(members)),
        left_out={parent: tuple(sorted(seeds)) for parent, seeds in left_out.items()},
        dataset=parent_run.data.tags.get("dataset") if parent_run else None,
    )


def _finished_parents(store: Store, versions: Sequence[ModelVersion]) -> list[Run]:
    parents = {found.tags["parent_run_id"] for found in versions if "parent_run_id" in found.tags}
    runs = (store.get_run(parent) for parent in parents)
    return [run for run in runs if run is not None and is_complete(run)]


def _member(found: ModelVersion) -> RegisteredMember:
    return RegisteredMember(
        run=found.tags["run"],
        seed=int(found.tags["seed"]),
        version=int(found.version),
        uri=f"models:/{MODEL_NAME}/{found.version}",
        parent_run_id=found.tags["parent_run_id"],
        run_id=found.run_id or "",
        recipe=found.tags.get("recipe", found.tags["run"]),
        weights_sha256=found.tags.get("weights_sha256", ""),
    )


def fetch_member(store: Store, member: RegisteredMember, folder: Path) -> None:
    """Bring a member's config, weights and validation predictions into `folder`.

    Raises:
        InputError: a file is not there; the message names the member and the file.
    """
    source = store.client.get_model_version_download_uri(MODEL_NAME, str(member.version))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with store_errors(store.uri):
            repository = get_artifact_repository(source)
            for name in (seed_folder.CONFIG, seed_folder.WEIGHTS):
                # Copied: with a store on this machine this is the path of the artifact itself.
                fetched = repository.download_artifacts(f"extra_files/{name}")
                shutil.copy(fetched, folder / name)
        name = seed_folder.VAL_PREDICTIONS
        store.client.download_artifacts(member.run_id, name, str(folder))
    except StoreError as error:
        raise InputError(
            f"{member.run} seed {member.seed} ({member.uri}) must have its files in MLflow, found "
            f"no {name} ({one_line(error.__cause__ or error)}): were they moved or removed? Train "
            "this seed again, or vote with another run"
        ) from error
