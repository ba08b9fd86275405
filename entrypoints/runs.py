"""Lists the runs that there are, and says what to type next."""

import time

import click

from entrypoints.next_step import command_line, project_address
from entrypoints.options import run_command, take_mlflow_run_id
from pose.overview import RunOverview, runs_table


@click.command(context_settings={"max_content_width": 100})
def main() -> None:
    """Print a table of the runs in the tracking store, newest first, and the next command."""
    project = project_address(take_mlflow_run_id())
    # Imported here: --help need not wait for MLflow.
    from pose.tracking import Tracker

    runs = Tracker().list_runs()
    if runs:
        click.echo(runs_table(runs, time.time()))
    click.echo(f"next: {next_command(runs, project)}")


def next_command(runs: list[RunOverview], project: str | None) -> str:
    """What brings the newest run further: its own command, a vote, or the pages of MLflow."""
    if not runs:
        return command_line("train", project, run="demo", dataset="demo")
    newest = runs[0]
    if newest.state == "at work":
        return "mlflow ui"
    if newest.state == "complete":
        return (
            command_line("ensemble", project, run=newest.name)
            if newest.ensemble_f1 is None
            else "mlflow ui"
        )
    return newest.command or "the command that began it"


if __name__ == "__main__":
    run_command(main)
