"""A run: all its seeds under one parent, begun or continued, and their summary."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pose.data.loaded import LoadedData, load_data
from pose.data.source import DEMO_MARKER, find_dataset
from pose.data.tensors import framing_of
from pose.device import describe, keep_freed_memory
from pose.display import Display
from pose.errors import InputError, one_line
from pose.files import locked, write_text
from pose.plan import Plan
from pose.reports import plots
from pose.reports.notes import describe_seeds
from pose.results import RunResult, SeedResult, spread
from pose.seeds.engines import Budget, train_here
from pose.seeds.job import SeedJob
from pose.stop import Stop, ending
from pose.tracking import DataRecord, RunRecord, RunRequest, SeedRecord, Tracker

# Says in a run's folder which run it belongs to.
OWNER_FILE = "training.json"


def train_run(plan: Plan, tracker: Tracker, display: Display, stop: Stop) -> RunResult:
    """Train the seeds of a run, or those that an unfinished run of the same identity lacks.

    Raises:
        InputError: nothing to train on, a value that cannot be used, or a run of that name that
            is at work already.
    """
    keep_freed_memory()
    with _only_run_in(plan.folder):
        loaded = load_planned_data(plan, display)
        record = tracker.open_run(_request(plan, loaded))
        with ending(record.finish):
            if record.unlike:
                display.say(f"beginning anew: the unfinished run {record.unlike}")
            moved = _claim_folder(plan.folder, record.run_id, record.is_continued)
            if moved:
                display.say(f"the earlier results of {plan.run.name} are kept in {moved}")
            if record.is_continued:
                display.say(f"continuing the unfinished training {record.run_id}")
            record.begin(plan.folder)
            record.log_text(loaded.dataset.report(), "data_report.txt")
            # A store that refuses is found before training; one that is away is waited for.
            record.settle()
            results = _train_seeds(plan, loaded, record, display, stop)
            finished = [result for result in results if result.is_finished]
            if finished:
                _log_summary(plan, record, finished)
        is_complete = len(finished) == len(record.seeds)
        if is_complete:
            record.complete()
        else:
            record.finish("KILLED", stop() or "")
    return RunResult(
        run_id=record.run_id,
        folder=plan.folder,
        seeds=results,
        stop_reason=None if is_complete else stop(),
        seeds_page=record.seeds_page(),
    )


def load_planned_data(plan: Plan, display: Display) -> LoadedData:
    """The data, checked: what can be wrong with the input is found before a run exists.

    Raises:
        InputError: there is none, or the plan cannot be carried out on it.
    """
    loaded = load_data(
        find_dataset(plan.setup, display),
        framing_of(plan.recipe),
        plan.cache_root,
        plan.setup.num_workers,
        display.cache_progress,
        plan.recipe.exif == "obey",
    )
    for line in loaded.lines():
        display.say(line)
    display.say(f"device: {describe(plan.device, plan.precision)}")
    plan.check_data(loaded.dataset)
    for line in plan.warnings(loaded.dataset):
        display.say(f"warning: {line}")
    return loaded


def _request(plan: Plan, loaded: LoadedData) -> RunRequest:
    return RunRequest(
        name=plan.run.name,
        recipe_digest=plan.recipe.digest(),
        dataset_digest=loaded.digest,
        seeds=plan.recipe.seeds,
        add_seeds=plan.setup.add_seeds,
        fresh=plan.setup.fresh,
        settings=plan.params(seed=0) | {"seed": None},
        folder=plan.folder,
        tags={
            **_tags(plan, loaded),
            "dataset": str(loaded.dataset.folder.absolute()),
        },
    )


def _tags(plan: Plan, loaded: LoadedData) -> dict[str, str]:
    is_drawn = (loaded.dataset.folder / DEMO_MARKER).exists()
    return {**plan.tags(), **({"data": "demo: the figures are drawn"} if is_drawn else {})}


def _params(plan: Plan, loaded: LoadedData, seed: int) -> dict[str, Any]:
    return {
        **plan.params(seed),
        "num_classes": len(loaded.dataset.classes),
        "num_images": len(loaded.dataset.ids),
        "dataset": loaded.dataset.folder.absolute(),
        "dataset_digest": loaded.digest,
    }


def _train_seeds(
    plan: Plan, loaded: LoadedData, record: RunRecord, display: Display, stop: Stop
) -> list[SeedResult]:
    """The results of the seeds in their order, up to the first that was asked to stop."""
    finished = record.finished_seeds()
    for seed in record.seeds:
        if seed in finished:
            display.say(f"seed {seed}: finished before, val_f1 {finished[seed].val_f1:.4f}")
    labels_of = loaded.dataset.classes.labels
    data = DataRecord(
        ids=loaded.dataset.ids,
        labels=[labels_of[index] for index in loaded.dataset.labels],
        folder=loaded.dataset.folder,
        digest=loaded.digest,
    )

    def open_tracker(job: SeedJob) -> SeedRecord:
        params = _params(plan, loaded, job.seed)
        return record.open_seed(job, _tags(plan, loaded), params, data)

    results = dict(finished)
    jobs = [_job(plan, loaded, seed) for seed in record.seeds if seed not in finished]
    budget = _budget(plan, record, finished)
    for result in train_here(jobs, open_tracker, display, stop, loaded=loaded, budget=budget):
        results[result.seed] = result
        if result.is_finished:
            display.say(
                f"seed {result.seed}: val_f1 {result.val_f1:.4f} at epoch {result.best_epoch} of "
                f"{result.num_epochs} ({result.stop_reason}), {result.seconds:.0f} s"
            )
    return [results[seed] for seed in record.seeds if seed in results]


def _job(plan: Plan, loaded: LoadedData, seed: int) -> SeedJob:
    return SeedJob(
        run=plan.run.name,
        recipe=plan.recipe,
        seed=seed,
        dataset=loaded.dataset.folder,
        output=plan.folder / f"seed_{seed}",
        cache_root=plan.cache_root,
        num_workers=plan.setup.num_workers,
        device=plan.setup.device,
        precision=plan.setup.precision,
    )


def _budget(plan: Plan, record: RunRecord, finished: dict[int, SeedResult]) -> Budget | None:
    """The time that the recipe's budget has for the seeds to come.

    An added seed has as much as each of the first had.
    """
    share = plan.recipe.seed_seconds()
    if share is None:
        return None
    budget = Budget(share * len(record.seeds), len(record.seeds))
    for result in finished.values():
        budget.spend(result.seconds)
    return budget


def _log_summary(plan: Plan, record: RunRecord, finished: list[SeedResult]) -> None:
    """The seeds together: mean, spread, table, bands."""
    val_f1 = spread([result.val_f1 for result in finished])
    best = max(finished, key=lambda result: result.val_f1)
    path = plan.folder / "seeds.png"
    histories = {result.seed: result.history for result in finished}
    title = f"{plan.run.name}: {len(finished)} seeds"
    plots.write_figure(lambda: plots.plot_seeds(histories, title), path)
    record.log_file(path)
    record.log_summary(
        metrics={
            "val_f1_mean": val_f1.mean,
            "val_f1_std": val_f1.std,
            "val_f1_best": best.val_f1,
        },
        tags={"best_seed": str(best.seed)},
        note=describe_seeds(plan.run, finished, len(record.seeds)),
    )


@contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock", wait=False):
            yield
    except BlockingIOError:
        raise InputError(
            f"run_name must not be in training already, but {folder} is at work in another "
            "process: wait for it, or give another --run-name"
        ) from None
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"output_root must be a folder that can be written to, found: {one_line(error)}"
        ) from error


def _claim_folder(folder: Path, run_id: str, is_continued: bool) -> Path | None:
    """Make `folder` that of the run; results of another one are moved aside.

    Returns:
        Where they were moved to, or None if there were none.
    """
    moved = None
    owner = _owner(folder)
    if owner != run_id and folder.exists() and any(folder.iterdir()):
        moved = _aside(folder, owner or time.strftime("%Y%m%d-%H%M%S"))
        folder.rename(moved)
    set_aside = _aside(folder, run_id)
    if is_continued and set_aside.exists() and not folder.exists():
        set_aside.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / OWNER_FILE, json.dumps({"parent_run_id": run_id}) + "\n")
    return moved


def _owner(folder: Path) -> str | None:
    try:
        text = (folder / OWNER_FILE).read_text(encoding="utf-8")
        return str(json.loads(text)["parent_run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        # Missing, or only half written: the folder is somebody else's, and is moved aside.
        return None


def _aside(folder: Path, owner: str) -> Path:
    return folder.with_name(f"{folder.name}.{owner[:15]}")
