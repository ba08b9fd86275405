"""Trains a named run, or a free one: each seed a nested MLflow run."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from entrypoints.next_step import command_line, from_words, project_address
from entrypoints.options import (
    NOT_GIVEN,
    field_options,
    fields_given,
    given_or,
    option,
    run_command,
)
from entrypoints.stoppable import bring_registered, say_stale_stop, work_until_stopped
from pose.config import Recipe, Setup
from pose.errors import InputError
from pose.named_runs import AUTO, NAMED_RUNS, ResolvedRun, resolve_auto, resolve_run
from pose.stop import StopRequest

if TYPE_CHECKING:
    from pose.auto import Chosen


@click.command(context_settings={"max_content_width": 100})
@option("run", str | None, "named run (see --list); without it a free run named after its model")
@field_options(Recipe)
@option("seed", int, "a single seed, instead of seeds")
@field_options(Setup)
@option("dry_run", bool, "check and print what would be trained, and stop", default=False)
@option("list", bool, "print the named runs and stop", default=False)
@option(
    "list_models",
    str,
    "print the models whose name has this in it, or matches it, and stop",
    default=None,
    lone="*",
)
def main(run: Any, seed: Any, dry_run: bool, list: bool, **arguments: Any) -> None:
    """Train the seeds of a run. Every setting of a named run can be overridden.

    stop.txt in this folder, Ctrl-C or SIGTERM stop after the current batch; the same command then
    continues the run.
    """
    if list:
        click.echo(list_runs())
        return
    pattern = arguments.pop("list_models")
    if pattern is not None:
        click.echo(list_models_like(pattern))
        return
    if seed is not NOT_GIVEN:
        if arguments["seeds"] is not NOT_GIVEN:
            raise InputError("seed and seeds must not both be given")
        arguments["seeds"] = (seed,)
    setup = Setup(**fields_given(Setup, arguments))
    given = fields_given(Recipe, arguments)
    if given_or(run, None) == AUTO:
        planned = resolve_auto(setup.run_name, given)
        work_until_stopped(
            lambda stop, given_run_id: _train_auto(
                planned, tuple(given), setup, stop, given_run_id=given_run_id, dry_run=dry_run
            )
        )
        return
    resolved = resolve_run(given_or(run, None), setup.run_name, given)
    work_until_stopped(
        lambda stop, given_run_id: _train(
            resolved, setup, stop, given_run_id=given_run_id, dry_run=dry_run
        )
    )


def _train_auto(  # noqa: PLR0913 - what was typed, and who asks
    planned: ResolvedRun,
    given: tuple[str, ...],
    setup: Setup,
    stop: StopRequest,
    *,
    given_run_id: str | None,
    dry_run: bool,
) -> None:
    """Plan from the data, and train what comes of it."""
    # Imported here as in `_train`.
    from pose.auto import Auto
    from pose.console import Console
    from pose.seeds.engines import engine_ready
    from pose.tracking import Tracker

    console = Console()
    auto = Auto(planned, given, setup, console, stop)
    if dry_run:
        click.echo(auto.text())
        return
    say_stale_stop(stop, console)
    # One cluster for the trials and the members.
    with engine_ready(setup):
        chosen = auto.choose(Tracker(say=console.say))
        if chosen.run is None:
            again = from_words("train", project_address(given_run_id), sys.argv[1:])
            if given_run_id:
                Tracker(given_run_id).end_given("KILLED", chosen.stop_reason or "")
            console.say(
                f"stopped ({chosen.stop_reason}): the same command continues this plan\n"
                f"next: {again}"
            )
            return
        console.say(chosen.text)
        is_whole = _train(
            chosen.run,
            setup,
            stop,
            given_run_id=given_run_id,
            dry_run=False,
            chosen=chosen,
        )
        if is_whole:
            auto.complete()


def _train(
    resolved: ResolvedRun,
    setup: Setup,
    stop: StopRequest,
    *,
    given_run_id: str | None,
    dry_run: bool,
    chosen: "Chosen | None" = None,
) -> bool:
    """Train a run; whether all its members are finished.

    Args:
        chosen: the plan from the data that it follows, if there was one.
    """
    # Imported here: --help and --list need not wait for torch and MLflow.
    resolved = bring_registered(resolved, setup)
    from pose.plan import check_located_data, make_plan

    plan = make_plan(resolved, setup)
    if dry_run:
        click.echo(f"{plan.text()}\n{check_located_data(plan)}")
        return False
    if chosen is not None:
        plan = dataclasses.replace(plan, texts=chosen.texts, head_start=chosen.head_start)
    from pose.console import Console
    from pose.run import train_run
    from pose.tracking import Tracker

    console = Console()
    say_stale_stop(stop, console)
    console.say(f"run: {resolved.name} ({resolved.title()}), seeds {resolved.recipe.seeds_text()}")
    project = project_address(given_run_id)
    again = from_words("train", project, sys.argv[1:])
    tracker = Tracker(given_run_id, folder=plan.folder, say=console.say, command=again)
    result = train_run(plan, tracker, console, stop)
    if result.stop_reason:
        console.say(
            f"stopped ({result.stop_reason}): the same command continues this run\nnext: {again}"
        )
        return False
    console.show_summary(result)
    vote = {"run": resolved.name, **({"dataset": setup.dataset} if setup.dataset else {})}
    console.say(f"next: {command_line('ensemble', project, **vote)}")
    return True


def list_runs() -> str:
    """The named runs with models, presets, seeds and the original's scores."""
    lines = []
    for name, run in NAMED_RUNS.items():
        recipe = run.recipe
        lines += [
            f"{name}: {run.about}",
            f"  model {recipe.model}, augmentation {recipe.augmentation}, "
            f"image_size {recipe.image_size}, at most {recipe.num_epochs} epochs, "
            f"patience {recipe.patience}, seeds {recipe.seeds_text()}",
        ]
        if run.val_f1:
            scores = ", ".join(f"{seed}: {score:.6f}" for seed, score in run.val_f1.items())
            lines.append(f"  the original's validation macro F1: {scores}")
        if run.leaderboard:
            lines.append(f"  the original's leaderboard F1: {run.leaderboard}")
    lines.append(f"{AUTO}: planned from the data in a part of the budget, which it must have")
    return "\n".join(lines)


def list_models_like(pattern: str) -> str:
    """The names of the models that match `pattern`, a line each.

    Raises:
        InputError: none does.
    """
    # Imported here: torchvision takes a second, timm several.
    from pose_models import list_models

    names = list_models(pattern)
    if not names:
        raise InputError(
            f"list_models must match the name of a model, got {pattern!r}, which matches none "
            "(timm's are there after pip install -r requirements-timm.txt)"
        )
    return "\n".join(names)


if __name__ == "__main__":
    run_command(main, stops_softly=True)
