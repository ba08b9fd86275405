"""Compares two runs or votes on the same held-out rows."""

from typing import TYPE_CHECKING, Any

import click

from entrypoints.next_step import command_line, project_address, with_more_seeds
from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import CompareSetup

if TYPE_CHECKING:
    from pose.results import Compared


@click.command(context_settings={"max_content_width": 100})
@field_options(CompareSetup)
def main(**arguments: Any) -> None:
    """Compare two runs or votes on the validation rows that no member of either trained on.

    Needs the tracking server that they are recorded with; the data only for the images on the page.
    """
    setup = CompareSetup(**fields_given(CompareSetup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.compare import compare_runs
    from pose.console import Console
    from pose.tracking import Tracker

    console = Console()
    given_run_id = take_mlflow_run_id()
    compared = compare_runs(setup, Tracker(given_run_id), console)
    console.show_compared(compared)
    console.say(f"next: {next_command(compared, project_address(given_run_id))}")


def next_command(compared: "Compared", project: str | None) -> str:
    """More seeds where they would settle it, a vote of the better run where it is settled."""
    if compared.further is not None:
        run, number = compared.further
        first = max(run.seeds) + 1
        seeds = ",".join(map(str, range(first, first + number)))
        return with_more_seeds(run.command, seeds) or command_line(
            "train", project, run=run.name, add_seeds=seeds
        )
    if compared.winner is not None:
        return command_line("ensemble", project, run=compared.winner)
    return "mlflow ui"


if __name__ == "__main__":
    run_command(main)
