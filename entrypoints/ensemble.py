"""Lets the registered members of runs vote on the test images."""

from typing import Any

import click

from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import VoteSetup


@click.command(context_settings={"max_content_width": 100})
@field_options(VoteSetup)
def main(**arguments: Any) -> None:
    """Predict the test images with the registered models of runs and write predictions.csv."""
    setup = VoteSetup(**fields_given(VoteSetup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.tracking import Tracker
    from pose.vote import vote

    console = Console()
    console.show_vote(vote(setup, Tracker(take_mlflow_run_id()), console))


if __name__ == "__main__":
    run_command(main)
