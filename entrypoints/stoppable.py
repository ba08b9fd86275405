"""Commands that train: stopped softly when asked, their run ended where nobody was left to."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from entrypoints.ending import end_orphan, stop_files
from entrypoints.options import take_mlflow_run_id
from pose.stop import StopRequest, becomes_orphan

if TYPE_CHECKING:
    from pose.config import Setup
    from pose.display import Display
    from pose.named_runs import ResolvedRun


def work_until_stopped(work: Callable[[StopRequest, str | None], object]) -> None:
    """Do work that can be asked to stop.

    Args:
        work: gets who asks, and the id of the run that `mlflow run` made for the command, if any.
            What takes seconds to import is imported by it.
    """
    given_run_id = take_mlflow_run_id()
    stop = stop_files(given_run_id is not None)
    # Before the imports, which take seconds: a killed `mlflow run` must not go unnoticed meanwhile.

    def leave(code: int) -> NoReturn:
        if given_run_id and becomes_orphan():
            end_orphan(given_run_id)
        os._exit(code)

    try:
        stop.listen(ends_with_parent=given_run_id is not None, leave=leave)
        work(stop, given_run_id)
    except SystemExit:
        if given_run_id and becomes_orphan():
            end_orphan(given_run_id)
        raise


def say_stale_stop(stop: StopRequest, display: "Display") -> None:
    """Say so where a `stop.txt` lies here that asks for nothing."""
    if stop.has_stale_file():
        display.say("stop.txt is left over from an earlier run; it asks for nothing now")


def bring_registered(resolved: "ResolvedRun", setup: "Setup") -> "ResolvedRun":
    """The same run; what it needs of models in the tracking store is on this machine then.

    That are the weights that it starts from, and the soft labels that it learns.

    Raises:
        InputError: they are not in the tracking store.
    """
    if (resolved.recipe.weights or "").startswith("models:/"):
        from pose.run import bring_weights
        from pose.tracking import Tracker

        resolved = bring_weights(resolved, setup, Tracker())
    if resolved.recipe.distil is not None:
        from pose.console import Console
        from pose.distil import bring_soft_labels
        from pose.tracking import Tracker

        resolved = bring_soft_labels(resolved, setup, Tracker(), Console())
    return resolved
