"""Sets up the tracking store, or mends one whose setting up was cut short."""

import click

from entrypoints.options import run_command, take_mlflow_run_id


@click.command(context_settings={"max_content_width": 100})
def main() -> None:
    """Set up the tracking store that MLFLOW_TRACKING_URI names, ./mlflow.db by default.

    Every command does so for itself. But where several `mlflow run` begin at once, MLflow opens
    the store before this project's code can: set it up once before them.
    """
    # Imported here: --help need not wait for MLflow.
    from pose.tracking import Tracker

    click.echo(f"the tracking store {Tracker(take_mlflow_run_id()).address} is ready")


if __name__ == "__main__":
    run_command(main)
