"""Tries other values of a recipe's settings; each trial is a run below the sweep's."""

import sys
from typing import Any

import click

from entrypoints.next_step import from_words, project_address
from entrypoints.options import (
    field_options,
    fields_given,
    given_or,
    option,
    run_command,
)
from entrypoints.stoppable import bring_registered, say_stale_stop, work_until_stopped
from pose.config import Recipe, Setup, SweepSetup
from pose.named_runs import ResolvedRun, resolve_run
from pose.stop import StopRequest


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
    work_until_stopped(
        lambda stop, given_run_id: _sweep(resolved, setup, run_setup, stop, given_run_id)
    )


def _sweep(
    resolved: ResolvedRun,
    setup: SweepSetup,
    run_setup: Setup,
    stop: StopRequest,
    given_run_id: str | None,
) -> None:
    # Imported here: --help need not wait for torch and MLflow.
    from pose.console import Console
    from pose.sweep import make_sweep_plan, sweep
    from pose.tracking import Tracker

    project = project_address(given_run_id)
    brought = bring_registered(resolved, run_setup)
    plan = make_sweep_plan(brought, setup, run_setup, project or ".")
    console = Console()
    say_stale_stop(stop, console)
    result = sweep(plan, Tracker(given_run_id, say=console.say), console, stop)
    if result.stop_reason:
        again = from_words("sweep", project, sys.argv[1:])
        console.say(
            f"stopped ({result.stop_reason}): the same command continues this sweep\nnext: {again}"
        )
        return
    console.show_sweep(result)


if __name__ == "__main__":
    run_command(main, stops_softly=True)
