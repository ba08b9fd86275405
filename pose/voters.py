"""Who votes: the members of runs found, held against what the runs promised, and brought here."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from pose.config import VoteSetup
from pose.display import Display
from pose.ensembling.completeness import (
    Entry,
    compare_promises,
    compare_weights,
    refuse_wrong,
    table_of,
)
from pose.ensembling.lock import Lock, read_lock
from pose.ensembling.members import Member, RegisteredMember, check_classes
from pose.errors import InputError, first_few
from pose.predictions import read_predictions
from pose.seeds import folder as seed_folder
from pose.tracking import Tracker
from pose_models import ImageClassifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundVoters:
    """The members that may vote, before they are brought here.

    Attributes:
        dataset: the data folder that was named, else the one that the first run was trained on,
            where it is still there.
        allowed: what was not as promised and was allowed, in words.
    """

    registered: tuple[RegisteredMember, ...]
    dataset: str | None
    allowed: tuple[str, ...]


def find_voters(
    setup: VoteSetup, lock: Lock | None, tracker: Tracker, display: Display
) -> FoundVoters:
    """The members that the lock names, or those of all runs.

    Raises:
        InputError: there are none, or they are not those that the runs promised.
    """
    if lock is not None:
        return _locked_voters(lock, setup, tracker, display)
    if setup.parent:
        named = tracker.run_name_of(setup.parent)
        runs = setup.runs() or (named,)
    else:
        runs = setup.runs() or (tracker.newest_run_name(setup.registry_name),)
    states_of = {}
    dataset = setup.dataset
    for run in runs:
        found = tracker.find_members(
            run,
            setup.parent,
            registry_name=setup.registry_name,
            may_be_unfinished=setup.allow_missing,
        )
        states_of[run] = found.states
        num_found = sum(bool(state.versions) for state in found.states)
        num_promised = sum(state.is_promised for state in found.states)
        display.say(f"run: {run}, {found.parent_run_id}, {num_found} of {num_promised} members")
        for parent, keys in found.left_out.items():
            display.say(
                f"  left out: {len(keys)} members of the earlier run {parent} of that name "
                f"({first_few(map(str, keys))})"
            )
        if dataset is None and found.dataset and os.path.isdir(found.dataset):
            dataset = found.dataset
            display.say(f"data: {dataset}, where {run} was trained")
        elif dataset is None and found.dataset:
            display.say(
                f"warning: {found.dataset}, where {run} was trained, is not here: ./dataset or "
                "Kaggle's data are taken unless --dataset names others"
            )
    entries = compare_promises(states_of)
    allowed = _check(entries, setup, display)
    return FoundVoters(
        registered=tuple(entry.voter for entry in entries if entry.voter is not None),
        dataset=dataset,
        allowed=allowed,
    )


def fetch_lock(setup: VoteSetup, tracker: Tracker, folder: Path) -> Lock | None:
    """The lock that the vote is to repeat, if any: a file, or that of a vote's run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if setup.lock is None:
        return None
    path = Path(setup.lock)
    return read_lock(path if os.path.isfile(path) else tracker.fetch_lock(setup.lock, folder))


def _locked_voters(lock: Lock, setup: VoteSetup, tracker: Tracker, display: Display) -> FoundVoters:
    dataset = setup.dataset or tracker.dataset_of(lock.members[0].parent_run_id)
    if setup.dataset is None and dataset and os.path.isdir(dataset):
        display.say(f"data: {dataset}, where {lock.members[0].run} was trained")
    elif setup.dataset is None:
        dataset = None
    return FoundVoters(registered=lock.members, dataset=dataset, allowed=())


def _check(entries: Sequence[Entry], setup: VoteSetup, display: Display) -> tuple[str, ...]:
    """What is not as promised, shown as a table with the rest, and refused unless allowed."""
    wrong = tuple(str(entry) for entry in entries if not entry.is_right)
    if wrong:
        display.say(table_of(entries))
        if not setup.allow_missing:
            refuse_wrong(entries)
        display.say(f"warning: voting all the same, as allowed: {first_few(wrong)}")
    return wrong


def bring_voters(
    found: FoundVoters, setup: VoteSetup, tracker: Tracker, display: Display, staging: Path
) -> tuple[list[ImageClassifier], list[Member], tuple[str, ...]]:
    """The networks of the members, what each is, and what was allowed in words.

    Raises:
        InputError: a member is damaged, or they cannot vote together.
    """
    models, members = [], []
    for number, registered in enumerate(found.registered):
        model, member = bring_member(registered, tracker, staging / f"member_{number}")
        _show_member(member, display)
        models.append(model)
        members.append(member)
    check_classes(members)
    entries = compare_weights(members)
    allowed = _check(entries, setup, display)
    kept = [number for number, entry in enumerate(entries) if entry.voter is not None]
    return (
        [models[number] for number in kept],
        [members[number] for number in kept],
        (*found.allowed, *allowed),
    )


def bring_member(
    found: RegisteredMember, tracker: Tracker, folder: Path
) -> tuple[ImageClassifier, Member]:
    """A member's network and what it is, brought through `folder`.

    Raises:
        InputError: it is damaged, or not the one that was registered.
    """
    tracker.fetch_member(found, folder)
    model, card = seed_folder.read_model(folder, name=f"{found.name} ({found.uri})")
    weights_sha256 = card.weights_sha256 or seed_folder.weights_sha256(model.state_dict())
    if found.weights_sha256 and found.weights_sha256 != weights_sha256:
        raise InputError(
            f"{found.name} must be the model that was registered as {found.uri}, "
            f"found another one there: the SHA-256 of its weights is {weights_sha256[:12]}, not "
            f"{found.weights_sha256[:12]}"
        )
    seed_folder.check_files(folder, found.files_sha256, f"{found.name} ({found.uri})")
    name = f"{seed_folder.VAL_PREDICTIONS} of {found.name} ({found.uri})"
    val_predictions = read_predictions(folder / seed_folder.VAL_PREDICTIONS, name)
    if val_predictions.class_labels != card.labels:
        raise InputError(
            f"{name} must be of the classes {first_few(card.labels)}, found "
            f"{first_few(val_predictions.class_labels)}"
        )
    return model, Member(
        registered=found,
        card=card,
        val_predictions=val_predictions,
        weights_sha256=weights_sha256,
    )


def _show_member(member: Member, display: Display) -> None:
    display.say(
        f"member: {member.name}, {member.card.model}, val_f1 {member.card.val_f1:.4f}, "
        f"{member.registered.uri}"
    )
    if member.registered.recipe != member.registered.run:
        display.say(f"  trained as: {member.registered.recipe}")
