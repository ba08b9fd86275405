"""Tries other values of a recipe's settings; each trial is a run below the sweep's."""

from pathlib import Path
from typing import Any

import click

from entrypoints.options import (
    field_options,
    fields_given,
    given_or,
    option,
    run_command,
    take_mlflow_run_id,
)
from pose.config import Recipe, Setup, SweepSetup
from pose.named_runs import resolve_run


@click.command(context_settings={"max_content_width": 100})
@option("run", str | None, "named run to start from; without it a free run")
@field_options(SweepSetup)
@field_options(Recipe, without=("budget",))
@field_options(Setup, without=("fresh", "add_seeds"))
def main(run: Any, **arguments: Any) -> None:
    """Search for better values of a recipe's settings; more trials or time continue the search.

    stop.txt in this folder, Ctrl-C or SIGTERM stop after the current batch; the same command then
    continues the sweep.
    """
    setup = SweepSetup(**fields_given(SweepSetup, arguments))
    given = {k: v for k, v in fields_given(Recipe, arguments).items() if k != "budget"}
    run_setup = Setup(**fields_given(Setup, arguments))
    resolved = resolve_run(given_or(run, None), run_setup.run_name, given)
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.stop import StopRequest
    from pose.sweep import make_sweep_plan, sweep
    from pose.tracking import Tracker

    plan = make_sweep_plan(resolved, setup, run_setup)
    console = Console()
    given_run_id = take_mlflow_run_id()
    stop = StopRequest(Path.cwd())
    stop.listen(ends_with_parent=given_run_id is not None)
    result = sweep(plan, Tracker(given_run_id, say=console.say), console, stop)
    if result.stop_reason:
        console.say(f"stopped ({result.stop_reason}): the same command continues this sweep")
        return
    console.show_sweep(result)


if __name__ == "__main__":
    run_command(main)
