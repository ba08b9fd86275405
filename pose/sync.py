"""Sends to MLflow what waits in the folders of runs, since their store was away."""

from pathlib import Path

from pose.display import Display
from pose.errors import InputError, first_few
from pose.files import locked
from pose.tracking import Tracker, waiting_in


def send_waiting(output_root: Path, tracker: Tracker, display: Display) -> int:
    """Send what waits in the folders of all runs that are not at work.

    A run that is at work sends for itself.

    Returns:
        How many records arrived.

    Raises:
        InputError: the store is away, or refuses some of them.
    """
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


def lock_of(folder: Path) -> Path:
    """The file that whoever works in a run's folder holds."""
    return folder.parent / f".{folder.name}.lock"
