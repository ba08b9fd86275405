"""Serves a page that shows what a registered model says of an image."""

from typing import Any

import click

from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import ServeSetup


@click.command(context_settings={"max_content_width": 100})
@field_options(ServeSetup)
def main(**arguments: Any) -> None:
    """Serve a page in the browser: drop an image, see its name and the probabilities.

    For programs there is mlflow models serve. Ends with Ctrl-C, SIGTERM or stop.txt.
    """
    setup = ServeSetup(**fields_given(ServeSetup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.serving.app import serve

    take_mlflow_run_id()
    serve(setup, Console())


if __name__ == "__main__":
    run_command(main, is_endless=True)
