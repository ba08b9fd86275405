"""Lets the registered members of runs vote on the test images."""

from pathlib import Path
from typing import Any

import click

from entrypoints.options import field_options, fields_given, given_or, option, run_command
from pose.config import Setup

# A vote needs to know where the data is and what to compute on, nothing else of a training.
SETUP_OPTIONS = ("dataset", "kaggle_handle", "device", "precision", "num_workers", "cache_root")


@click.command(context_settings={"max_content_width": 100})
@option("run", str, "run, or several joined by commas  [default: simple_cnn_v2]",
        default="simple_cnn_v2")  # fmt: skip
@option("voting", str, "soft (mean probability) or hard (majority)  [default: soft]",
        default="soft")  # fmt: skip
@option("out_path", str, "file to write  [default: predictions.csv]", default="predictions.csv")
@option("parent", str, "run id of the training to take; default: the newest finished one")
@option("skip_bad_images", bool, "leave out unreadable test images instead of refusing",
        default=False)  # fmt: skip
@field_options(Setup, only=SETUP_OPTIONS)
def main(
    run: Any, voting: Any, out_path: Any, parent: Any, skip_bad_images: bool, **arguments: Any
) -> None:
    """Predict the test images by the registered models of a run and write predictions.csv."""
    setup = Setup(**fields_given(Setup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.ensemble import vote

    console = Console()
    names = [name.strip() for name in given_or(run, "simple_cnn_v2").split(",") if name.strip()]
    result = vote(
        list(dict.fromkeys(names)),
        voting_rule=given_or(voting, "soft"),
        out_path=Path(given_or(out_path, "predictions.csv")),
        parent=given_or(parent, None),
        dataset=setup.dataset,
        kaggle_handle=setup.kaggle_handle,
        skip_bad_images=skip_bad_images,
        device=setup.device,
        precision=setup.precision,
        num_workers=setup.num_workers,
        cache_root=Path(setup.cache_root) if setup.cache_root else None,
        console=console,
    )
    console.show_vote(result)


if __name__ == "__main__":
    run_command(main)
