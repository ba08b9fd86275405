"""Brings a folder of the original's layout into MLflow, as a finished run whose seeds can vote."""

from typing import Any

import click

from entrypoints.next_step import command_line, project_address
from entrypoints.options import field_options, fields_given, run_command, take_mlflow_run_id
from pose.config import ImportSetup


@click.command(context_settings={"max_content_width": 100})
@field_options(ImportSetup)
def main(**arguments: Any) -> None:
    """Record an archive (folders seed_<n> with weights and histories) and register its models.

    Nothing in the files is run. A command that was cut short goes on when it is repeated.
    """
    setup = ImportSetup(**fields_given(ImportSetup, arguments))
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.importing import import_archive, plan_import
    from pose.tracking import Tracker

    given_run_id = take_mlflow_run_id()
    console = Console()
    plan = plan_import(setup)
    console.say(
        f"archive: {plan.archive.folder}, {len(plan.archive.seeds)} seeds of {plan.archive.model}, "
        f"classes {', '.join(plan.archive.classes.labels)}"
    )
    result = import_archive(
        plan, Tracker(given_run_id, folder=plan.folder, say=console.say), console
    )
    console.say(
        f"\nval_f1 of {len(result.members)} seeds, as the archive has it: {result.val_f1()}"
        f"\nfiles: {result.folder}\ncompare the seeds: mlflow ui, then {result.seeds_page}"
    )
    vote = {"run": plan.name, **({"dataset": setup.dataset} if setup.dataset else {})}
    console.say(f"next: {command_line('ensemble', project_address(given_run_id), **vote)}")


if __name__ == "__main__":
    run_command(main)
