"""The two sides of a comparison: trainings or votes by name or id, and what they predicted."""

import dataclasses
import re
from pathlib import Path

from mlflow.entities import Run

from pose.ensembling.lock import read_lock
from pose.ensembling.members import RegisteredMember
from pose.errors import InputError, known, one_line
from pose.predictions import Predictions, read_predictions
from pose.seeds import folder as seed_folder
from pose.tracking import registry
from pose.tracking.store import Store, StoreError
from pose_models.combination import SOFT, Combination


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundSide:
    """A training or a vote that is compared.

    Attributes:
        run_id: of the training's parent run, or of the vote.
        is_vote: whether it is a vote.
        num_promised: members that it should have.
        how: the vote's combination; soft for a training.
        dataset: the data folder that it was trained on, as its machine called it.
        command: continues the training, where its run has it.
        seeds: of the training; none for a vote.
    """

    name: str
    run_id: str
    is_vote: bool
    members: tuple[RegisteredMember, ...]
    num_promised: int
    how: Combination = SOFT
    dataset: str | None = None
    command: str = ""
    seeds: tuple[int, ...] = ()


def find_side(
    store: Store, text: str, registry_name: str, folder: Path, option: str = "runs"
) -> FoundSide:
    """What `text` names: a run's id, a training's name, or a vote's name in MLflow.

    Args:
        folder: for what must be fetched to know.
        option: where it was typed, for messages.

    Raises:
        InputError: there is no such run, or it has no finished member.
    """
    run = store.get_run(text) if re.fullmatch(r"[0-9a-f]{32}", text) else None
    kind = run.data.tags.get("kind") if run is not None else None
    if run is not None and kind == "train":
        return _training(store, run.data.tags["run"], run.info.run_id, registry_name)
    if run is not None and kind == "ensemble":
        return _vote(store, run, folder)
    if run is not None:
        raise InputError(
            f"{option} must name trainings or votes, but {text} is {_kind_text(kind)}: take the "
            "run above it"
        )
    names = {v.tags.get("run") for v in store.search_versions(f"name = '{registry_name}'")}
    if text in names:
        return _training(store, text, None, registry_name)
    votes = {own.info.run_name: own for own in reversed(_finished_votes(store))}
    if text in votes:
        return _vote(store, votes[text], folder)
    raise InputError(
        f"{option} must be names or ids of trainings and votes in this tracking store, found none "
        f"of {text!r}; there are: {known((names | set(votes)) - {None})}"
    )


def _kind_text(kind: str | None) -> str:
    return f"of the kind {kind}" if kind else "no run of this project"


def _finished_votes(store: Store) -> list[Run]:
    """The votes that are complete, newest first."""
    return store.search_runs("tags.kind = 'ensemble' and attributes.status = 'FINISHED'")


def _training(store: Store, name: str, run_id: str | None, registry_name: str) -> FoundSide:
    found = registry.find_members(store, name, run_id, registry_name=registry_name)
    members = tuple(
        state.versions[-1]
        for state in found.states
        if state.versions and state.state in ("finished", "deleted")
    )
    if not members:
        raise InputError(
            f"runs must have finished members, {name} ({found.parent_run_id}) has none: continue "
            "it with its train command"
        )
    parent = store.get_run(found.parent_run_id)
    tags = parent.data.tags if parent is not None else {}
    return FoundSide(
        name=name,
        run_id=found.parent_run_id,
        is_vote=False,
        members=members,
        num_promised=len(found.states),
        dataset=found.dataset,
        command=tags.get("command", ""),
        seeds=tuple(sorted({state.key.seed for state in found.states})),
    )


def _vote(store: Store, run: Run, folder: Path) -> FoundSide:
    lock = read_lock(registry.fetch_lock(store, run.info.run_id, folder))
    try:
        how = Combination.from_dict(lock.combination)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the vote {run.info.run_id} must hold a combination, found: {one_line(error)}"
        ) from error
    trained = store.get_run(lock.members[0].parent_run_id)
    return FoundSide(
        name=run.info.run_name or run.info.run_id,
        run_id=run.info.run_id,
        is_vote=True,
        members=lock.members,
        num_promised=len(lock.members),
        how=how,
        dataset=trained.data.tags.get("dataset") if trained is not None else None,
    )


def find_trained(store: Store, uri: str, folder: Path) -> FoundSide:
    """The members of a registered model, `models:/<name>/<version>` or `models:/<name>@<alias>`.

    Raises:
        InputError: it is not registered in this store.
    """
    name, _, version = uri.removeprefix("models:/").partition("/")
    try:
        if "@" in name:
            name, _, alias = name.partition("@")
            found = store.client.get_model_version_by_alias(name, alias)
        else:
            found = store.client.get_model_version(name, version)
    except StoreError as error:
        raise InputError(
            "model must be registered in this tracking store, such as models:/pose-ensemble/1, "
            f"got {uri!r} ({one_line(error.__cause__ or error)})"
        ) from error
    run = store.get_run(found.run_id) if found.run_id else None
    if run is not None and run.data.tags.get("kind") == "ensemble":
        return _vote(store, run, folder)
    if "parent_run_id" not in found.tags:
        raise InputError(f"model must be a member or a vote of this project, got {uri!r}")
    parent = store.get_run(found.tags["parent_run_id"])
    member = registry.member_of(found)
    return FoundSide(
        name=member.name.replace(" ", "_"),
        run_id=member.run_id,
        is_vote=False,
        members=(member,),
        num_promised=1,
        dataset=parent.data.tags.get("dataset") if parent is not None else None,
    )


def fetch_val_predictions(store: Store, member: RegisteredMember, folder: Path) -> Predictions:
    """A member's predictions of the rows that validated it, brought through `folder`.

    Raises:
        InputError: they are not there, or not those that were recorded with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = seed_folder.VAL_PREDICTIONS
    try:
        path = Path(store.client.download_artifacts(member.run_id, name, str(folder)))
        if member.files_sha256:
            # Their checksum is that of the card and them.
            name = seed_folder.CONFIG
            store.client.download_artifacts(member.run_id, name, str(folder))
    except StoreError as error:
        raise InputError(
            f"{member.name} must have its {name} in MLflow, found none "
            f"({one_line(error.__cause__ or error)}): were its artifacts removed?"
        ) from error
    seed_folder.check_files(folder, member.files_sha256, f"{member.name} ({member.uri})")
    return read_predictions(path, f"{path.name} of {member.name} ({member.uri})")
