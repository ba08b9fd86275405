"""A training: all seeds of a run, one after another, under one parent run."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pose import plots, seed_folder, tracking
from pose.augment import PRESETS
from pose.config import MIN_SEED_SECONDS, Recipe, Setup
from pose.console import Console
from pose.dataset import DEMO_MARKER, find_dataset
from pose.device import describe, keep_freed_memory, pick_device, pick_precision
from pose.errors import InputError, known
from pose.files import locked, write_text
from pose.models import build_model, check_model_name
from pose.runs import NAMED_RUNS, ResolvedRun
from pose.seed import LoadedData, SeedJob, SeedResult, load_data, train_seed, training_data
from pose.stop import StopRequest
from pose.training import DivergedError

# Says in a run's folder which training it belongs to.
TRAINING_FILE = "training.json"
# What saving and registering a seed takes, before the first one is measured.
SAVING_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        stop_reason: None if all seeds are finished, else why it stopped.
        seeds_page: address of the page that compares the seeds.
    """

    parent_run_id: str
    folder: Path
    seeds: list[SeedResult]
    stop_reason: str | None
    seeds_page: str


def train_run(
    resolved: ResolvedRun, setup: Setup, console: Console, stop: StopRequest
) -> TrainingResult:
    """Train the seeds of a run, or those that an unfinished training of it lacks.

    Raises:
        InputError: nothing to train on, a value that cannot be used, or a training of that name
            that is under way.
    """
    keep_freed_memory()
    recipe = resolved.recipe
    _check_model_name(recipe)
    if recipe.augmentation not in PRESETS:
        raise InputError(
            f"augmentation must be one of {known(PRESETS)}, got {recipe.augmentation!r}"
        )
    device = pick_device(setup.device)
    precision = pick_precision(setup.precision, device)
    folder = Path(setup.output_root) / resolved.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_root must be a folder that can be written: {error}") from None
    with _only_training_of(folder):
        dataset_folder = find_dataset(setup.dataset, setup.kaggle_handle, console.draw_progress)
        cache_root = Path(setup.cache_root) if setup.cache_root else None
        loaded = load_data(
            dataset_folder,
            recipe.image_size,
            cache_root,
            setup.num_workers,
            console.cache_progress,
        )
        console.show_data(loaded)
        console.say(f"device: {describe(device, precision)}")
        # Everything that can be wrong with the input is found before a run exists.
        _check_model(recipe, loaded.dataset.classes.labels)
        for seed in recipe.seeds:
            training_data(loaded, recipe, seed, device)
        client = tracking.connect()
        identity = tracking.TrainingIdentity(
            run=resolved.name, recipe_digest=recipe.digest(), dataset_digest=loaded.digest
        )
        training = tracking.open_training(
            client, identity, _training_tags(resolved, loaded), fresh=setup.fresh
        )
        with _ending(training):
            moved = _claim_folder(folder, training.run_id, training.is_continued)
            if moved:
                console.say(f"the earlier results of {resolved.name} are kept in {moved}")
            if training.is_continued:
                console.say(f"continuing the unfinished training {training.run_id}")
            _log_data_report(training, loaded)
            results = _train_seeds(training, resolved, setup, loaded, folder, console, stop)
            unfinished = [result for result in results if not result.is_finished]
            _log_summary(training, resolved, results, folder)
        is_complete = len(results) == len(recipe.seeds) and not unfinished
        training.finish("FINISHED" if is_complete else "KILLED")
    return TrainingResult(
        parent_run_id=training.run_id,
        folder=folder,
        seeds=results,
        stop_reason=None if is_complete else stop(),
        seeds_page=tracking.seeds_page(client, training.run_id),
    )


def _check_model_name(recipe: Recipe) -> None:
    try:
        check_model_name(recipe.model)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_model(recipe: Recipe, labels: tuple[str, ...]) -> None:
    """
    Raises:
        InputError: the model cannot be built, or cannot take images of the recipe's size.
    """
    try:
        # Without memory and arithmetic, unless there are weights to find.
        with torch.device("cpu" if recipe.pretrained else "meta"):
            model = build_model(
                recipe.model, labels, recipe.image_size, pretrained=recipe.pretrained
            )
            model(torch.zeros(2, 3, recipe.image_size, recipe.image_size))
    except NotImplementedError:
        # A few of torchvision's models cannot be built without memory (RegNet).
        return
    # torchvision's models refuse a size by any of these, asserts included.
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"{recipe.model} must accept image_size {recipe.image_size} and the other settings, "
            f"found: {reason}"
        ) from error


def _train_seeds(
    training: tracking.TrainingTracker,
    resolved: ResolvedRun,
    setup: Setup,
    loaded: LoadedData,
    folder: Path,
    console: Console,
    stop: StopRequest,
) -> list[SeedResult]:
    """The results of the seeds in their order, up to the first that was asked to stop."""
    recipe = resolved.recipe
    results: list[SeedResult] = []
    children = training.children()
    overheads: list[float] = []
    for seed in recipe.seeds:
        child = children.get(seed)
        if child is not None and child.info.status == "FINISHED":
            results.append(_finished_result(training, child, seed))
            overheads.append(SAVING_SECONDS)
            console.say(f"seed {seed}: finished before, val_f1 {results[-1].val_f1:.4f}")
            continue
        if stop():
            break
        job = SeedJob(
            run_name=resolved.name,
            recipe=recipe,
            seed=seed,
            dataset=loaded.dataset.folder,
            output=folder / f"seed_{seed}",
            cache_root=Path(setup.cache_root) if setup.cache_root else None,
            num_workers=setup.num_workers,
            device=setup.device,
            precision=setup.precision,
            time_limit=_time_limit(recipe, results, overheads),
        )
        tracker = training.seed_tracker(
            seed,
            tags=_seed_tags(resolved, loaded),
            params=_seed_params(resolved, setup, loaded, seed),
            model_format=setup.model_format,
        )
        if child is None:
            frame = pd.DataFrame(
                {
                    "id": loaded.dataset.ids,
                    "label": [loaded.dataset.classes.labels[i] for i in loaded.dataset.labels],
                }
            )
            tracker.log_dataset(frame, loaded.dataset.folder, loaded.digest)
        else:
            _fetch_checkpoint(tracker, job.output)
        started = time.monotonic()
        results.append(_train_one(job, tracker, console, stop))
        overheads.append(time.monotonic() - started - results[-1].session_seconds)
        if not results[-1].is_finished:
            break
        console.show_seed(results[-1])
    return results


def _time_limit(recipe: Recipe, results: list[SeedResult], overheads: list[float]) -> float | None:
    """Seconds for the next seed's epochs: an equal share of what the budget has left.

    Args:
        results: of the seeds before it.
        overheads: seconds that each of them took besides its epochs, for saving and logging.
    """
    if recipe.budget is None:
        return None
    expected = sum(overheads) / len(overheads) if overheads else SAVING_SECONDS
    used = sum(result.seconds for result in results) + sum(overheads)
    share = (recipe.budget_seconds() - used) / (len(recipe.seeds) - len(results)) - expected
    return max(share, MIN_SEED_SECONDS / 2)


def _train_one(
    job: SeedJob, tracker: tracking.SeedRun, console: Console, stop: StopRequest
) -> SeedResult:
    """Train a seed; its run ends with the status and the reason that it deserves."""
    try:
        result = train_seed(job, tracker, console, stop)
    except DivergedError as error:
        tracker.finish("FAILED", "diverged")
        raise InputError(f"seed {job.seed}: {error}") from error
    except Exception:
        tracker.finish("FAILED", "error")
        raise
    except BaseException:
        tracker.finish("KILLED", "signal")
        raise
    tracker.finish("FINISHED" if result.is_finished else "KILLED", result.stop_reason)
    return result


def _fetch_checkpoint(tracker: tracking.SeedRun, output: Path) -> None:
    """Bring a continued seed's checkpoint from its run where the folder has lost it."""
    if not (output / seed_folder.CHECKPOINT).exists():
        tracker.fetch_checkpoint(output)


def _finished_result(training: tracking.TrainingTracker, child, seed: int) -> SeedResult:
    history = tracking.metric_history(training.client, child.info.run_id)
    return SeedResult(
        seed=seed,
        stop_reason=child.data.tags["stop_reason"],
        best_epoch=int(child.data.metrics["best_epoch"]),
        val_f1=child.data.metrics["best_val_f1"],
        num_epochs=len(history),
        seconds=sum(row["epoch_seconds"] for row in history),
        session_seconds=0.0,
        history=history,
    )


@contextmanager
def _only_training_of(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder."""
    try:
        with locked(folder.parent / f".{folder.name}.lock", wait=False):
            yield
    except BlockingIOError:
        raise InputError(
            f"run_name must not be in training already, but {folder} is at work in another "
            "process: wait for it, or give another --run-name"
        ) from None


@contextmanager
def _ending(training: tracking.TrainingTracker) -> Iterator[None]:
    """End the parent run as FAILED or KILLED if the block does not end by itself."""
    try:
        yield
    except Exception:
        training.finish("FAILED")
        raise
    except BaseException:
        training.finish("KILLED")
        raise


def _claim_folder(folder: Path, parent_run_id: str, is_continued: bool) -> Path | None:
    """Make `folder` that of the training; results of another one are moved aside.

    Returns:
        Where they were moved to, or None if there were none.
    """
    moved = None
    owner = _owner(folder)
    if owner != parent_run_id and folder.exists() and any(folder.iterdir()):
        moved = _aside(folder, owner or time.strftime("%Y%m%d-%H%M%S"))
        folder.rename(moved)
    set_aside = _aside(folder, parent_run_id)
    if is_continued and set_aside.exists() and not folder.exists():
        set_aside.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TRAINING_FILE, json.dumps({"parent_run_id": parent_run_id}) + "\n")
    return moved


def _owner(folder: Path) -> str | None:
    path = folder / TRAINING_FILE
    return json.loads(path.read_text(encoding="utf-8"))["parent_run_id"] if path.exists() else None


def _aside(folder: Path, owner: str) -> Path:
    return folder.with_name(f"{folder.name}.{owner[:15]}")


def _training_tags(resolved: ResolvedRun, loaded: LoadedData) -> dict[str, str]:
    recipe = resolved.recipe
    return {
        **_seed_tags(resolved, loaded),
        "seeds": recipe.seeds_text(),
    }


def _seed_tags(resolved: ResolvedRun, loaded: LoadedData) -> dict[str, str]:
    tags = {
        "run": resolved.name,
        "model": resolved.recipe.model,
        "recipe": resolved.title(),
        "is_changed": str(bool(resolved.changes)).lower(),
    }
    if (loaded.dataset.folder / DEMO_MARKER).exists():
        tags["data"] = "demo: the figures are drawn"
    return tags


def _seed_params(
    resolved: ResolvedRun, setup: Setup, loaded: LoadedData, seed: int
) -> dict[str, object]:
    params = dataclasses.asdict(resolved.recipe)
    del params["seeds"]
    device = pick_device(setup.device)
    return {
        "seed": seed,
        **params,
        "recipe": resolved.title(),
        "num_classes": len(loaded.dataset.classes),
        "num_images": len(loaded.dataset.ids),
        "dataset": loaded.dataset.folder.absolute(),
        "dataset_digest": loaded.digest,
        "device": device,
        "precision": str(pick_precision(setup.precision, device)).removeprefix("torch."),
    }


def _log_data_report(training: tracking.TrainingTracker, loaded: LoadedData) -> None:
    training.log_text(loaded.dataset.report(), "data_report.txt")


def _log_summary(
    training: tracking.TrainingTracker,
    resolved: ResolvedRun,
    results: list[SeedResult],
    folder: Path,
) -> None:
    """The seeds together: mean, spread, table, bands."""
    scored = [result for result in results if result.is_finished]
    if not scored:
        return
    scores = np.array([result.val_f1 for result in scored])
    best = max(scored, key=lambda result: result.val_f1)
    metrics = {
        "val_f1_mean": float(scores.mean()),
        # Of the sample: seeds are a sample of what the recipe can give.
        "val_f1_std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        "val_f1_best": best.val_f1,
    }
    path = folder / "seeds.png"
    histories = {result.seed: result.history for result in scored}
    plots.plot_seeds(histories, f"{resolved.name}: {len(scored)} seeds", path)
    training.log_file(path)
    training.log_summary(metrics, {"best_seed": str(best.seed)}, describe_seeds(resolved, scored))


def describe_seeds(resolved: ResolvedRun, results: list[SeedResult]) -> str:
    """A Markdown description of a training: its recipe and a table of its seeds."""
    published = NAMED_RUNS[resolved.base].val_f1 if resolved.base else {}
    scores = np.array([result.val_f1 for result in results])
    spread = f" ± {scores.std(ddof=1):.4f}" if len(scores) > 1 else ""
    budget = resolved.recipe.budget
    bought = ""
    if budget:
        seconds = sum(result.seconds for result in results)
        epochs = sum(result.num_epochs for result in results) / len(results)
        bought = (
            f" The budget of {budget} bought {epochs:.1f} epochs a seed, {seconds / 60:.1f} "
            "minutes of training in all; the last epoch of a seed ends where its time does."
        )
    lines = [
        f"### {resolved.name}: {resolved.title()}",
        "",
        f"Validation macro F1 of {len(results)} of {len(resolved.recipe.seeds)} seeds: "
        f"**{scores.mean():.4f}**{spread} (mean ± standard deviation). Each seed's best epoch "
        "was chosen on the same validation images, so new images score a little lower." + bought,
        "",
        "| seed | val_f1 | best epoch | epochs | ended by | minutes |"
        + (" original's val_f1 |" if published else ""),
        "|---|---|---|---|---|---|" + ("---|" if published else ""),
    ]
    for result in results:
        line = (
            f"| {result.seed} | {result.val_f1:.4f} | {result.best_epoch} | {result.num_epochs} "
            f"| {result.stop_reason} | {result.seconds / 60:.1f} |"
        )
        if published:
            original = published.get(result.seed)
            line += f" {original:.6f} |" if original else " |"
        lines.append(line)
    return "\n".join(lines) + "\n"
