"""How commands end that do not stop softly, and those whose `mlflow run` is gone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from entrypoints.caller import callers_folder
from pose.stop import Ending, StopRequest, becomes_orphan


def stop_files(is_started_by_mlflow: bool) -> StopRequest:
    """`stop.txt` in the project's folder, and where `mlflow run` was typed."""
    return StopRequest(Path.cwd(), *([callers_folder()] if is_started_by_mlflow else []))


@contextmanager
def ended_when_asked(*, is_endless: bool) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM, stop.txt and the end of `mlflow run` end the work in the block.

    What it has begun is cleared away or ended as KILLED, also the run that `mlflow run` made.

    Args:
        is_endless: the work has no other end; exit code 0.
    """
    given_run_id = os.environ.get("MLFLOW_RUN_ID")
    ending = Ending(stop_files(given_run_id is not None), is_endless=is_endless)
    try:
        ending.listen(ends_with_parent=given_run_id is not None)
        yield
    except SystemExit:
        if given_run_id and ending.is_asked and becomes_orphan():
            end_orphan(given_run_id)
        raise


def end_orphan(run_id: str) -> NoReturn:
    """Become a process that ends the run of a `mlflow run` that is gone.

    A new one: what a signal cut short while it was imported cannot be imported again.
    """
    sys.stdout.flush()
    code = "import sys; from pose.tracking import end_orphan; end_orphan(sys.argv[1])"
    os.execv(sys.executable, [sys.executable, "-c", code, run_id])
