"""Sends to MLflow what training recorded while the tracking server was away."""

from pathlib import Path
from typing import Any

import click

from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import Setup


@click.command(context_settings={"max_content_width": 100})
@field_options(Setup, only=("output_root",))
def main(**arguments: Any) -> None:
    """Send what waits in the folders of runs to the tracking store, at once."""
    setup = Setup(**fields_given(Setup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.sync import check_root, send_waiting
    from pose.tracking import Tracker

    console = Console()
    check_root(Path(setup.output_root))
    tracker = Tracker(take_mlflow_run_id(), say=console.say)
    num_sent = send_waiting(Path(setup.output_root), tracker, console)
    console.say(
        f"records sent: {num_sent}" if num_sent else f"nothing waits in {setup.output_root}"
    )


if __name__ == "__main__":
    run_command(main)
