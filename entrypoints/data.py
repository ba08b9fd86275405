"""Looks at a data folder, or draws the demo data."""

from pathlib import Path
from typing import Any

import click

from entrypoints.options import field_options, fields_given, given_or, option, run_command
from pose.config import Setup
from pose.errors import InputError, known

COMMANDS = ("check", "demo", "score")


@click.command(context_settings={"max_content_width": 100})
@option("command", str, "check: what a folder holds and what is wrong with it; demo: draw the demo "
        "data; score: compare predictions with the demo's truth  [default: check]",
        default="check")  # fmt: skip
@option("out", str, "demo: folder to draw into  [default: demo]", default="demo")
@option("num_train", int, "demo: labelled images; 0: of all skeletons  [default: 3000]",
        default=3000)  # fmt: skip
@option("num_test", int, "demo: test images  [default: 600]", default=600)
@option("draw_seed", int, "demo: seed of the drawings  [default: 0]", default=0)
@option("predictions", str, "score: file to compare  [default: predictions.csv]",
        default="predictions.csv")  # fmt: skip
@field_options(Setup, only=("dataset", "kaggle_handle", "num_workers"))
def main(
    command: Any,
    out: Any,
    num_train: Any,
    num_test: Any,
    draw_seed: Any,
    predictions: Any,
    **arguments: Any,
) -> None:
    """Check a data folder, draw the demo data, or score predictions for it."""
    setup = Setup(**fields_given(Setup, arguments))
    command = given_or(command, "check")
    if command not in COMMANDS:
        raise InputError(f"command must be one of {known(COMMANDS)}, got {command!r}")
    from pose.console import Console

    console = Console()
    if command == "demo":
        from pose.dataset import draw_demo

        folder = draw_demo(
            Path(given_or(out, "demo")),
            num_train=given_or(num_train, 3000) or None,
            num_test=given_or(num_test, 600),
            seed=given_or(draw_seed, 0),
            progress=console.draw_progress,
        )
        click.echo(f"the demo data is in {folder}; its figures are drawn")
    elif command == "check":
        check(setup, console)
    else:
        from pose.scoring import score_predictions

        click.echo(score_predictions(Path(given_or(predictions, "predictions.csv")),
                                     Path(setup.dataset or "demo")))  # fmt: skip


def check(setup: Setup, console: Any) -> None:
    """Print what a data folder holds; decode every image to find the bad ones."""
    from pose.dataset import check_images, find_dataset, read_dataset

    folder = find_dataset(setup.dataset, setup.kaggle_handle, console.draw_progress)
    dataset = check_images(read_dataset(folder), setup.num_workers, console.check_progress)
    click.echo(dataset.report(), nl=False)
    dataset.raise_if_fatal()


if __name__ == "__main__":
    run_command(main)
