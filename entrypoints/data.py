"""Looks at a data folder, draws the demo data, or scores predictions for it."""

from pathlib import Path
from typing import Any

import click

from entrypoints.next_step import command_line, project_address
from entrypoints.options import (
    field_options,
    fields_given,
    given_or,
    option,
    run_command,
    take_mlflow_run_id,
)
from pose.config import DataSetup, DemoSetup, ScoreSetup
from pose.display import Display
from pose.errors import InputError, known

COMMANDS = ("check", "demo", "score")


@click.command(context_settings={"max_content_width": 100})
@option("command", str, "check: what a folder holds and what is wrong with it; demo: draw the demo "
        "data; score: compare predictions with the demo's truth  [default: check]",
        default="check")  # fmt: skip
@field_options(DemoSetup)
@field_options(ScoreSetup)
@field_options(DataSetup)
def main(command: Any, **arguments: Any) -> None:
    """Check a data folder, draw the demo data, or score predictions for it."""
    setup = DataSetup(**fields_given(DataSetup, arguments))
    predictions = ScoreSetup(**fields_given(ScoreSetup, arguments)).predictions
    command = given_or(command, "check")
    if command not in COMMANDS:
        raise InputError(f"command must be one of {known(COMMANDS)}, got {command!r}")
    project = project_address(take_mlflow_run_id())
    from pose.console import Console

    if command == "demo":
        from pose.data.source import draw_demo

        folder = draw_demo(DemoSetup(**fields_given(DemoSetup, arguments)), Console())
        click.echo(f"the demo data is in {folder}; its figures are drawn")
        click.echo(f"next: {command_line('train', project, run='demo', dataset=folder)}")
    elif command == "check":
        folder = check(setup, Console())
        run = "demo" if (folder / "demo.json").exists() else "champion"
        click.echo(f"next: {command_line('train', project, run=run, dataset=folder)}")
    else:
        from pose.scoring import score_predictions

        click.echo(score_predictions(Path(predictions), Path(setup.dataset or "demo")))
        click.echo(f"next: {command_line('runs', project)}")


def check(setup: DataSetup, display: Display) -> Path:
    """Print what a data folder holds; decode every image to find the bad ones."""
    from pose.data.folder import read_dataset
    from pose.data.source import find_dataset
    from pose.data.twin_search import check_all

    dataset = read_dataset(find_dataset(setup, display))
    dataset = check_all(dataset, setup.num_workers, display.check_progress)
    click.echo(dataset.report(), nl=False)
    dataset.raise_if_fatal()
    return dataset.folder


if __name__ == "__main__":
    run_command(main)
