"""Lets the registered members of runs vote on the test images."""

import os
from typing import Any

import click

from entrypoints.next_step import command_line, project_address
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
    given_run_id = take_mlflow_run_id()
    console.show_vote(vote(setup, Tracker(given_run_id), console))
    console.say(f"next: {next_command(setup, project_address(given_run_id))}")


def next_command(setup: VoteSetup, project: str | None) -> str:
    """Scoring where the truth is known, else what there is by now."""
    truth = os.path.join(setup.dataset or "", "test_solution.csv")
    if setup.dataset is None or not os.path.exists(truth):
        return command_line("runs", project)
    options = {"command": "score", "dataset": setup.dataset, "predictions": setup.out_path}
    return command_line("data", project, **options)


if __name__ == "__main__":
    run_command(main)
