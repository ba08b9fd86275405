"""Brings back from MLflow what finished seeds have lost here."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pose.display import Display
from pose.ensembling.members import RegisteredMember
from pose.errors import InputError, one_line
from pose.files import writing
from pose.member_key import MemberKey
from pose.seeds import folder as seed_folder
from pose.tracking import Tracker


def restore_results(
    run: str,
    parent_run_id: str,
    folders: Mapping[MemberKey, Path],
    tracker: Tracker,
    display: Display,
) -> None:
    """See to it that the folders of finished members are whole; one line for each that was not.

    Votes use the registered models, so what cannot be brought back is no reason to stop.

    Args:
        folders: of the finished members.
    """
    newest = _newest_versions(run, parent_run_id, tracker) if folders else {}
    _say_missing({key: newest[key] for key in folders if key in newest}, tracker, display)
    for key, folder in folders.items():
        problem = _problem_of(folder, newest.get(key))
        if not problem:
            continue
        try:
            uri = _restore(run, parent_run_id, key, folder, tracker)
        except InputError as error:
            display.say(f"warning: {key}: {problem}; not restored: {one_line(error, 300)}")
        else:
            display.say(f"warning: {key}: {problem}; restored from {uri}")


def _newest_versions(
    run: str, parent_run_id: str, tracker: Tracker
) -> dict[MemberKey, RegisteredMember]:
    """The newest registered model of each member; none where the store cannot be asked."""
    try:
        states = tracker.find_members(run, parent_run_id).states
    except InputError:
        # Said by the next lines that need it.
        return {}
    return {state.key: state.versions[-1] for state in states if state.versions}


def _problem_of(folder: Path, registered: RegisteredMember | None) -> str:
    """What is wrong with a finished member's folder; empty where nothing is."""
    if problem := seed_folder.problem_of(folder):
        return problem
    if registered is None or seed_folder.has_recorded_files(folder, registered.files_sha256):
        return ""
    files = f"{seed_folder.CONFIG} and {seed_folder.VAL_PREDICTIONS}"
    return f"{files} are not as they were recorded"


def _say_missing(
    newest: Mapping[MemberKey, RegisteredMember], tracker: Tracker, display: Display
) -> None:
    """One line for each finished member whose files MLflow has lost: no vote would find them."""
    try:
        for key, registered in newest.items():
            if missing := tracker.missing_files(registered):
                display.say(
                    f"warning: {key}: MLflow has lost {', '.join(missing)} of {registered.uri}, "
                    "and no vote can use it: bring back the artifacts, or train all seeds again "
                    "with --fresh"
                )
    except InputError:
        # A store that is away, or lacks what the next lines need, is said by them.
        return


def _restore(run: str, parent_run_id: str, key: MemberKey, folder: Path, tracker: Tracker) -> str:
    """Bring a member's files into its folder; returns the address of its model."""
    states = tracker.find_members(run, parent_run_id).states
    versions = [one for state in states if state.key == key for one in state.versions]
    if not versions:
        raise InputError("it is not registered yet")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(suffix=".partial", prefix=".", dir=folder) as staging:
            tracker.fetch_results(versions[-1], Path(staging))
            if problem := _problem_of(Path(staging), versions[-1]):
                raise InputError(problem)
            for path in Path(staging).iterdir():
                os.replace(path, folder / path.name)
    return versions[-1].uri
