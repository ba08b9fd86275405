"""Predicts image files with a registered model."""

from typing import Any

import click

from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import PredictSetup


@click.command(context_settings={"max_content_width": 100})
@field_options(PredictSetup)
def main(**arguments: Any) -> None:
    """Predict images with a registered model and write a table of labels and probabilities.

    Needs the tracking server that the model is registered with, and nothing of its training. A
    command that was stopped goes on where it was.
    """
    setup = PredictSetup(**fields_given(PredictSetup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.predict import predict

    # Nothing is recorded in the run of `mlflow run`, beyond the parameters that it has.
    take_mlflow_run_id()
    console = Console()
    console.show_predicted(predict(setup, console))


if __name__ == "__main__":
    run_command(main)
