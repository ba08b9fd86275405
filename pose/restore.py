"""Brings back from MLflow what finished seeds have lost here."""

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from pose.display import Display
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
    if folders:
        _say_missing(run, parent_run_id, folders, tracker, display)
    for key, folder in folders.items():
        problem = seed_folder.problem_of(folder)
        if not problem:
            continue
        try:
            uri = _restore(run, parent_run_id, key, folder, tracker)
        except InputError as error:
            display.say(f"warning: {key}: {problem}; not restored: {one_line(error, 300)}")
        else:
            display.say(f"warning: {key}: {problem}; restored from {uri}")


def _say_missing(
    run: str,
    parent_run_id: str,
    keys: Collection[MemberKey],
    tracker: Tracker,
    display: Display,
) -> None:
    """One line for each finished member whose files MLflow has lost: no vote would find them."""
    try:
        for state in tracker.find_members(run, parent_run_id).states:
            newest = state.versions[-1] if state.versions else None
            if newest is None or state.key not in keys:
                continue
            if missing := tracker.missing_files(newest):
                display.say(
                    f"warning: {state.key}: MLflow has lost {', '.join(missing)} of {newest.uri}, "
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
            if problem := seed_folder.problem_of(Path(staging)):
                raise InputError(problem)
            for path in Path(staging).iterdir():
                os.replace(path, folder / path.name)
    return versions[-1].uri
