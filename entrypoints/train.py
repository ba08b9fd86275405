"""Trains a named run, or a free one: each seed a nested MLflow run."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from entrypoints.options import (
    NOT_GIVEN,
    field_options,
    fields_given,
    given_or,
    option,
    run_command,
)
from pose.config import Recipe, Setup
from pose.errors import InputError
from pose.runs import NAMED_RUNS, ResolvedRun, resolve_run


@click.command(context_settings={"max_content_width": 100})
@option("run", str, "named run (see --list); without it a free run named after its model")
@field_options(Recipe)
@option("seed", int, "a single seed, instead of seeds")
@field_options(Setup)
@option("dry_run", bool, "print the resolved configuration and stop", default=False)
@option("list", bool, "print the named runs and stop", default=False)
def main(run: Any, seed: Any, dry_run: bool, list: bool, **arguments: Any) -> None:
    """Train the seeds of a run. Every setting of a named run can be overridden.

    stop.txt in this folder, Ctrl-C or SIGTERM stop after the batch at work; the same command then
    continues the training.
    """
    if list:
        click.echo(list_runs())
        return
    if seed is not NOT_GIVEN:
        if arguments["seeds"] is not NOT_GIVEN:
            raise InputError("seed and seeds must not both be given")
        arguments["seeds"] = (seed,)
    setup = Setup(**fields_given(Setup, arguments))
    resolved = resolve_run(given_or(run, None), setup.run_name, fields_given(Recipe, arguments))
    if dry_run:
        click.echo(describe_run(resolved, setup))
        return
    # Imported here: --help, --list and --dry-run need not wait for torch and MLflow.
    from pose.console import Console
    from pose.experiment import train_run
    from pose.stop import StopRequest

    console = Console()
    stop = StopRequest(Path.cwd())
    stop.listen()
    if stop.has_stale_file():
        console.say("stop.txt is left over from an earlier training; it asks for nothing now")
    console.say(f"run: {resolved.name} ({resolved.title()}), seeds {resolved.recipe.seeds_text()}")
    result = train_run(resolved, setup, console, stop)
    if result.stop_reason:
        console.say(f"stopped ({result.stop_reason}): the same command continues this training")
        return
    console.show_summary(result)


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
    return "\n".join(lines)


def describe_run(resolved: ResolvedRun, setup: Setup) -> str:
    """The resolved configuration, a setting a line; overridden ones are marked."""
    lines = [f"run: {resolved.name} ({resolved.title()})"]
    for part in (resolved.recipe, setup):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            mark = "  (changed)" if field.name in resolved.changes else ""
            lines.append(f"  {field.name}: {text}{mark}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
