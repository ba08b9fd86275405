"""Sends to MLflow what waits in the folders of runs, since their store was away."""

import os
from pathlib import Path

from pose.display import Display
from pose.errors import InputError, first_few
from pose.files import locked
from pose.tracking import SPOOL, Tracker, waiting_in


def send_waiting(output_root: Path, tracker: Tracker, display: Display) -> int:
    """Send what waits in the folders of all runs that are not at work.

    A run that is at work sends for itself.

    Returns:
        How many records arrived.

    Raises:
        InputError: there is no such folder, the store is away, or refuses some of them.
    """
    check_root(output_root)
    num_sent, left = 0, []
    for folder in waiting_in(output_root):
        try:
            with locked(lock_of(folder), wait=False):
                num_sent += tracker.send(folder)
        except BlockingIOError:
            display.say(f"{folder}: at work, and sends for itself")
            continue
        if list(waiting_in(output_root, folder.name)):
            left.append(folder)
    if left:
        raise InputError(
            f"the tracking store must take all that waits, found records of {len(left)} runs that "
            f"it did not take ({first_few(left)}): see the warnings above"
        )
    return num_sent


def check_root(output_root: Path) -> None:
    """Refuse what holds no runs: nothing waits in a folder whose name is a slip.

    Raises:
        InputError: it is no folder, or that of a single run.
    """
    if not os.path.isdir(output_root):
        raise InputError(
            "output_root must be the folder that holds those of the runs, found none at "
            f"{output_root.absolute()}: give the --output-root that training had"
        )
    if os.path.lexists(output_root / SPOOL):
        raise InputError(
            f"output_root must be the folder that holds those of the runs, got {output_root}, "
            f"which is a run's: give {output_root.absolute().parent}"
        )


def lock_of(folder: Path) -> Path:
    """The file that whoever works in a run's folder holds."""
    return folder.parent / f".{folder.name}.lock"
