"""The registered models: who can vote, and how a member is brought here."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pose.ensembling.lock import LOCK_FILE
from pose.ensembling.members import MemberState, RegisteredMember
from pose.errors import InputError, known, one_line
from pose.member_key import MemberKey
from pose.seeds import folder as seed_folder
from pose.tracking.store import PARENT_TAG, Store, StoreError, store_errors
from pose.tracking.tags import begun_of, folds_of, member_key, seeds_of

MODEL_NAME = "pose"
# On runs: the registered model that their members are versions of; older ones lack it.
NAME_TAG = "registry_name"
# What the pages of the registered models say at their head.
MEMBERS_DESCRIPTION = (
    "Members: one version per trained network. Its tags say the run, the seed, the validation "
    "macro F1 (best epoch, chosen on the same rows) and the data. Load it with "
    "`mlflow.pytorch.load_model` or `mlflow.pyfunc.load_model`."
)
VOTES_DESCRIPTION = (
    "Ensembles: one version per vote; it combines its members as the vote did. `val_f1` is macro "
    "F1 on rows that no member trained on. The alias `champion` is the best vote on its data, "
    "`champion-<run>` the best vote of a run."
)
CHAMPION = "champion"
# On the trials of a sweep: the sweep's run.
SWEEP_TAG = "sweep_run_id"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundMembers:
    """Who can vote for one run.

    Attributes:
        parent_run_id: of the run.
        states: each member that the run promised, or has all the same, sorted by seed and fold.
        left_out: finished members of other runs of the same name, by the run's id.
        dataset: the data folder that the run was trained on, as its machine called it.
    """

    parent_run_id: str
    states: tuple[MemberState, ...]
    left_out: dict[str, tuple[MemberKey, ...]]
    dataset: str | None


def is_complete(run: Run) -> bool:
    """Whether a training run has all that it promised, by its own record.

    Not by its status: `mlflow run` sets that on its run when the command ends, however it ended.
    Runs from before 0.2 have no such record; their status must do.
    """
    record = run.data.tags.get("is_complete")
    return run.info.status == "FINISHED" if record is None else record == "true"


def ensemble_name(registry_name: str) -> str:
    """The registered model that votes of such members are versions of."""
    return f"{registry_name}-ensemble"


def description_of(name: str) -> str:
    """What the page of a registered model says at its head."""
    return VOTES_DESCRIPTION if name.endswith("-ensemble") else MEMBERS_DESCRIPTION


def crown(store: Store, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Give a vote's version the aliases of a champion where none scores better on the same data.

    Args:
        name: of the registered model.
        tags: of the version; without `val_f1` it has no score and is no champion.
    """
    if "val_f1" not in tags:
        return
    # MLflow's aliases know no plus sign, which joins the names of runs.
    own = f"{CHAMPION}-{tags['run'].replace('+', '_')}"[:255]
    aliases = store.client.get_registered_model(name).aliases
    for alias in (CHAMPION, own):
        if alias in aliases:
            before = store.client.get_model_version(name, aliases[alias]).tags
            has_same_data = before.get("dataset_digest") == tags.get("dataset_digest")
            if has_same_data and float(before.get("val_f1", 0)) > float(tags["val_f1"]):
                continue
        store.client.set_registered_model_alias(name, alias, str(version))


def newest_run_name(store: Store, registry_name: str = MODEL_NAME) -> str:
    """The name of the newest finished training run that is no trial of a sweep.

    Raises:
        InputError: there is none.
    """
    parents = _parents(store, store.search_versions(f"name = '{registry_name}'"))
    finished = [run for run in parents if is_complete(run) and SWEEP_TAG not in run.data.tags]
    if not finished:
        raise InputError(
            f"run must be trained before it can vote, found no finished one below {registry_name} "
            "in this tracking store: mlflow run . -e train -P run=demo -P dataset=demo trains one"
        )
    return max(finished, key=begun_of).data.tags["run"]


def find_members(
    store: Store,
    run: str,
    parent_run_id: str | None = None,
    *,
    registry_name: str = MODEL_NAME,
    may_be_unfinished: bool = False,
) -> FoundMembers:
    """The members of the newest finished run named `run`, found and missing.

    Args:
        parent_run_id: take this run instead, finished or not, whatever its members' registry name.
        registry_name: of the members of the runs among which to look.
        may_be_unfinished: where none is finished, take the newest.

    Raises:
        InputError: nothing is registered under that name; the message lists the known names.
    """
    everything = (
        f"tags.parent_run_id = '{parent_run_id}'" if parent_run_id else f"name = '{registry_name}'"
    )
    versions = [
        found
        for found in store.search_versions(everything)
        if found.tags.get("run") == run and "parent_run_id" in found.tags
    ]
    if not versions:
        names = {v.tags.get("run") for v in store.search_versions(f"name = '{registry_name}'")}
        raise InputError(
            f"run must have models registered as {registry_name}, found none of {run!r}"
            f"{f' below {parent_run_id}' if parent_run_id else ''}; there are: "
            f"{known(names - {None})}. Train it first: mlflow run . -e train -P run={run}"
        )
    parents = _parents(store, versions)
    finished = {parent.info.run_id: parent for parent in parents if is_complete(parent)}
    if parent_run_id is None:
        candidates = list(finished.values()) or (parents if may_be_unfinished else [])
        if not parents:
            _refuse_deleted(run, versions)
        if not candidates:
            raise InputError(
                f"run must be finished before it votes, found only unfinished ones named {run!r}: "
                "continue it with the same train command, or vote with what there is: "
                "--allow-missing"
            )
        parent_run_id = max(candidates, key=begun_of).info.run_id
    left_out: dict[str, set[MemberKey]] = {}
    for found in versions:
        parent = found.tags["parent_run_id"]
        if parent != parent_run_id and parent in finished:
            left_out.setdefault(parent, set()).add(member_key(found))
    parent_run = store.get_run(parent_run_id)
    own = [found for found in versions if found.tags["parent_run_id"] == parent_run_id]
    return FoundMembers(
        parent_run_id=parent_run_id,
        states=_states(store, parent_run, own),
        left_out={parent: tuple(sorted(keys)) for parent, keys in left_out.items()},
        dataset=parent_run.data.tags.get("dataset") if parent_run else None,
    )


def _refuse_deleted(run: str, versions: Sequence[ModelVersion]) -> NoReturn:
    newest = max(versions, key=lambda found: int(found.version)).tags["parent_run_id"]
    raise InputError(
        f"run must be in MLflow, found that {run!r} was deleted there: bring it back with mlflow "
        f"runs restore --run-id {newest} (or its experiment with mlflow experiments restore), or "
        "train it again"
    )


def _states(
    store: Store, parent: Run | None, versions: Sequence[ModelVersion]
) -> tuple[MemberState, ...]:
    """What is there of each member that `parent` promised or has; `versions` are its own."""
    promised = promised_members(parent) if parent is not None else frozenset()
    versions_of: dict[MemberKey, list[RegisteredMember]] = {}
    for found in sorted(versions, key=lambda version: int(version.version)):
        versions_of.setdefault(member_key(found), []).append(member_of(found))
    runs = children(store, parent) if parent is not None else {}
    return tuple(
        MemberState(
            key=key,
            # Runs from before 0.1 do not say what they promise.
            is_promised=key in promised or not promised,
            state=_state(store, runs.get(key), versions_of.get(key, [])),
            versions=tuple(versions_of.get(key, [])),
        )
        for key in sorted({*promised, *versions_of})
    )


def _state(store: Store, child: Run | None, versions: Sequence[RegisteredMember]) -> str:
    """How a member's own run stands, in words."""
    if child is None and versions:
        child = store.get_run(versions[-1].run_id)
        if child is None:
            return "deleted"
    if child is None:
        return "not begun"
    status: str = child.info.status.lower()
    reason = child.data.tags.get("stop_reason")
    return status if status in ("finished", "running") or not reason else f"{status} ({reason})"


def promised_members(parent: Run) -> frozenset[MemberKey]:
    """The members that a run is to train; none where it is too old to say."""
    num_folds = folds_of(parent)
    folds = range(1, num_folds + 1) if num_folds else (0,)
    return frozenset(MemberKey(seed, fold) for seed in seeds_of(parent) for fold in folds)


def children(store: Store, parent: Run) -> dict[MemberKey, Run]:
    """The newest run of each member below `parent`."""
    runs = store.client.search_runs(
        [parent.info.experiment_id],
        f"tags.`{PARENT_TAG}` = '{parent.info.run_id}' and tags.kind = 'seed'",
        order_by=["attributes.start_time ASC"],
    )
    return {member_key(run): run for run in runs}


def _parents(store: Store, versions: Sequence[ModelVersion]) -> list[Run]:
    """The runs that trained `versions`, without those that were deleted."""
    parents = {found.tags["parent_run_id"] for found in versions if "parent_run_id" in found.tags}
    runs = (store.get_run(parent) for parent in parents)
    return [run for run in runs if run is not None]


def member_of(found: ModelVersion) -> RegisteredMember:
    """A member from its registered version."""
    key = member_key(found)
    return RegisteredMember(
        run=found.tags["run"],
        seed=key.seed,
        fold=key.fold,
        version=int(found.version),
        uri=f"models:/{found.name}/{found.version}",
        parent_run_id=found.tags["parent_run_id"],
        run_id=found.run_id or "",
        recipe=found.tags.get("recipe", found.tags["run"]),
        weights_sha256=found.tags.get("weights_sha256", ""),
        dataset_digest=found.tags.get("dataset_digest", ""),
        files_sha256=found.tags.get("files_sha256", ""),
    )


def fetch_lock(store: Store, run_id: str, folder: Path) -> Path:
    """Bring the lock of a vote into `folder`.

    Raises:
        InputError: there is no such vote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Path(store.client.download_artifacts(run_id, LOCK_FILE, str(folder)))
    except StoreError as error:
        raise InputError(
            f"lock must be a file, or the id of a vote that has an {LOCK_FILE}, got {run_id!r} "
            f"({one_line(error.__cause__ or error)})"
        ) from error


def fetch_member(store: Store, member: RegisteredMember, folder: Path) -> None:
    """Bring a member's config, weights and validation predictions into `folder`.

    Raises:
        InputError: a file is not there; the message names the member and the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "registered model"
    registry_name = member.uri.split("/")[1]
    try:
        source = store.client.get_model_version_download_uri(registry_name, str(member.version))
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
            f"{member.name} ({member.uri}) must have its files in MLflow, found "
            f"no {name} ({one_line(error.__cause__ or error)}): were they moved or removed? Train "
            "this seed again, or vote with another run"
        ) from error


def missing_files(store: Store, member: RegisteredMember) -> list[str]:
    """Those of the files that a vote reads of a member which MLflow no longer has."""
    name, version = member.uri.removeprefix("models:/").rsplit("/", 1)
    source = store.client.get_model_version_download_uri(name, version)
    with store_errors(store.uri):
        there = get_artifact_repository(source).list_artifacts("extra_files")
    found = {Path(file.path).name for file in there}
    found |= {file.path for file in store.client.list_artifacts(member.run_id)}
    return [
        file
        for file in (seed_folder.CONFIG, seed_folder.WEIGHTS, seed_folder.VAL_PREDICTIONS)
        if file not in found
    ]


def fetch_results(store: Store, member: RegisteredMember, folder: Path) -> None:
    """Bring all that a finished seed left into `folder`: its model from the registry, and the rest.

    Raises:
        InputError: a file of the model is not there.
    """
    fetch_member(store, member, folder)
    recorded = {artifact.path for artifact in store.client.list_artifacts(member.run_id)}
    for name in seed_folder.RESULTS:
        if name in recorded and not (folder / name).exists():
            store.client.download_artifacts(member.run_id, name, str(folder))


def fetch_weights(store: Store, uri: str, folder: Path) -> Path:
    """Bring the weights of one registered member into `folder`; returns the file.

    Args:
        uri: `models:/<name>/<version>`, or `models:/<name>@<alias>`.

    Raises:
        InputError: there is no such model, it is none of ours that was trained, or its weights are
            not those that were registered.
    """
    name, _, version = uri.removeprefix("models:/").partition("/")
    try:
        if "@" in name:
            name, _, alias = name.partition("@")
            version = store.client.get_model_version_by_alias(name, alias).version
        sha256 = store.client.get_model_version(name, version).tags.get("weights_sha256", "")
        source = store.client.get_model_version_download_uri(name, version)
        with store_errors(store.uri):
            repository = get_artifact_repository(source)
            fetched = repository.download_artifacts(f"extra_files/{seed_folder.WEIGHTS}")
            path = Path(shutil.copy(fetched, folder / seed_folder.WEIGHTS))
    except StoreError as error:
        raise InputError(
            f"weights must be of a trained model in this tracking store, got {uri} "
            f"({one_line(error.__cause__ or error)})"
        ) from error
    seed_folder.check_weights(path, sha256, uri)
    return path
