"""Exports a registered model to ONNX and torch.export's format."""

from typing import Any

import click

from entrypoints.next_step import command_line, project_address
from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import ExportSetup


@click.command(context_settings={"max_content_width": 100})
@field_options(ExportSetup, without=("device",))
def main(**arguments: Any) -> None:
    """Export a registered model, checked against torch on real images before it is recorded."""
    setup = ExportSetup(**fields_given(ExportSetup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.export_command import export_model
    from pose.tracking import Tracker

    console = Console()
    given_run_id = take_mlflow_run_id()
    project = project_address(given_run_id)
    for name, address in export_model(setup, Tracker(given_run_id), console).items():
        flavor = "pytorch" if name == "pt2" else "onnx"
        console.say(f'{name}: mlflow.{flavor}.load_model("{address}")')
    console.say(f"next: {command_line('serve', project, model=setup.model)}")


if __name__ == "__main__":
    run_command(main)
