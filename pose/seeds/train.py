"""Trains one seed, from its job to its folder."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pose.config import Recipe
from pose.data.cache import default_cache_root
from pose.data.loaded import LoadedData
from pose.data.tensors import TrainingData, load_recipe_data, training_data
from pose.device import pick_device, pick_precision
from pose.display import Display
from pose.errors import InputError
from pose.history import Row
from pose.results import SeedResult
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob, SeedTracker
from pose.seeds.output import write_results
from pose.soft_labels import read_soft_labels, soft_labels_path
from pose.stop import Stop, ending
from pose.training.followers import leading
from pose.training.loop import train
from pose.training.model import build_for_training
from pose.training.predict import batches_of_images
from pose.training.state import TrainState, start_state
from pose.training.step import Step
from pose.weights import match, read_weights, start_from
from pose_models import ImageClassifier

# The high-pass channel's statistics come from this many training images at most: the mean of
# 4,096 images is known to a few per mille, and 50,000 would delay the first step by seconds.
MAX_STATISTICS_IMAGES = 4096


def load_job_data(job: SeedJob, display: Display) -> LoadedData:
    """The data of `job`, decoded.

    Raises:
        InputError: nothing to train on, or contradictions in the folder.
    """
    return load_recipe_data(
        job.dataset,
        job.recipe,
        job.cache_root,
        job.num_workers,
        display.cache_progress,
        job.cache,
    )


def load_same_data(job: SeedJob, dataset_digest: str, display: Display) -> LoadedData:
    """The data of `job`, decoded, where it began in another process.

    Raises:
        InputError: it is not what that process found.
    """
    loaded = load_job_data(job, display)
    if loaded.digest != dataset_digest:
        raise InputError(f"{job.dataset} must stay as it is while it is trained on")
    return loaded


def train_seed(
    job: SeedJob,
    loaded: LoadedData,
    tracker: SeedTracker,
    display: Display,
    stop: Stop,
    followers: Sequence[Connection] = (),
) -> SeedResult:
    """Train the seed of `job` on its data, from its checkpoint where it has one.

    Whatever happens, the tracker hears how it ended.

    Args:
        followers: connections to the job's other processes, where `follow_seed` is at work.

    Raises:
        DivergedError: a loss, weight or logit is no longer finite.
        PeerLostError: another of the job's processes is gone.
    """
    with ending(tracker.finish):
        result = _train(job, loaded, tracker, display, stop, followers)
    tracker.finish("FINISHED" if result.is_finished else "KILLED", result.stop_reason)
    return result


def begin(job: SeedJob, loaded: LoadedData) -> tuple[TrainState, TrainingData, torch.dtype]:
    """The state of `job` before its first step, its data and its arithmetic, in this process."""
    recipe = job.recipe
    if job.threads and job.threads != torch.get_num_threads():
        torch.set_num_threads(job.threads)
    device = pick_device(job.device)
    data = training_data(loaded, recipe, job.key, device)
    labels = loaded.dataset.classes.labels
    if recipe.distil_sha256 is not None:
        data = _with_soft_labels(data, job, loaded, recipe.distil_sha256)
    state = start_state(lambda: build_started(job, labels, data), recipe, job.seed, device)
    return state, data, pick_precision(job.precision, device)


def write_head_start(job: SeedJob, loaded: LoadedData, source: Path) -> float:
    """Leave a checkpoint in the member's folder that begins where a trial of its recipe ended.

    What the trial knows of its own validation is left behind: the member's history begins anew.

    Args:
        source: file of the trial's state, as `checkpoint_bytes` has it.

    Returns:
        The seconds that the trial had trained for.

    Raises:
        InputError: `source` is damaged, or the checkpoint cannot be written.
    """
    state = seed_folder.read_checkpoint(source)
    seconds = sum(row["epoch_seconds"] for row in state["history"])
    checkpoint = {
        **state,
        "history": [],
        "head_start": seconds,
        "identity": _identity(job, loaded),
        "processes": job.processes,
    }
    job.output.mkdir(parents=True, exist_ok=True)
    seed_folder.write_checkpoint(job.output, checkpoint)
    return float(seconds)


def _identity(job: SeedJob, loaded: LoadedData) -> dict[str, Any]:
    """What a checkpoint must belong to if it is to be continued."""
    return {
        "recipe": job.recipe.digest(),
        "seed": job.seed,
        "dataset_digest": loaded.digest,
        **({"fold": job.fold} if job.fold else {}),
    }


def _train(
    job: SeedJob,
    loaded: LoadedData,
    tracker: SeedTracker,
    display: Display,
    stop: Stop,
    followers: Sequence[Connection],
) -> SeedResult:
    recipe = job.recipe
    state, data, precision = begin(job, loaded)
    identity = _identity(job, loaded)
    saved = _find_checkpoint(job, identity, tracker, display)
    if saved is not None:
        state.load_state_dict(saved)
        for line in _differences(job, state, saved, precision):
            display.say(f"{job.key}: {line}")
    tracker.log_epochs(state.history)
    if state.head_start:
        tracker.log_tags({"head_start_seconds": f"{state.head_start:.0f}"})
    seconds_before = state.seconds

    def save_then_log(state: TrainState, row: Row) -> None:
        # In this order a kill in between loses nothing: what the checkpoint has and the tracker
        # lacks is recorded when the seed goes on.
        checkpoint = {
            **state.state_dict(),
            "identity": identity,
            "precision": str(precision),
            "threads": torch.get_num_threads(),
            "processes": job.processes,
        }
        seed_folder.write_checkpoint(job.output, checkpoint)
        seed_folder.write_history(job.output, state.history)
        tracker.log_epochs(state.history)
        display.show_epoch(job.key, row, state.best_epoch)

    stepping: AbstractContextManager[Step]
    if followers:
        stepping = leading(followers, state, data, recipe, precision)
    else:
        tell_smaller = _tell_smaller(job, tracker, display)
        stepping = nullcontext(Step(state, data, recipe, precision, tell_smaller))
    with stepping as step:
        stop_reason = train(
            step,
            callbacks=[save_then_log],
            stop=stop,
            progress=display.start_seed(job.key, recipe, state.num_epochs_done, job.time_limit),
            time_limit=job.time_limit,
        )
    result = SeedResult(
        seed=job.seed,
        fold=job.fold,
        stop_reason=stop_reason,
        best_epoch=state.best_epoch,
        val_f1=state.best_val_f1,
        num_epochs=state.num_epochs_done,
        seconds=state.seconds,
        session_seconds=state.seconds - seconds_before,
        history=state.history,
    )
    if result.is_finished:
        write_results(job, state, data, loaded, precision, display)
        tracker.log_results(job.output)
    elif (job.output / seed_folder.CHECKPOINT).exists():
        tracker.log_checkpoint(job.output)
    return result


def _differences(
    job: SeedJob, state: TrainState, saved: dict[str, Any], precision: torch.dtype
) -> Iterator[str]:
    """What is not as it was when the checkpoint `saved` was written."""
    if saved["precision"] != str(precision):
        yield f"begun in {saved['precision']}, goes on in {precision}"
    # Checkpoints of earlier versions have neither.
    threads, processes = saved.get("threads", torch.get_num_threads()), saved.get("processes", 1)
    if processes != job.processes:
        yield (
            f"begun in {processes} processes, goes on in {job.processes}: its weights depend on "
            "them within rounding"
        )
    elif state.device.type == "cpu" and threads != torch.get_num_threads():
        yield (
            f"begun with {threads} threads, goes on with {torch.get_num_threads()}: its weights "
            "depend on them"
        )


def _with_soft_labels(
    data: TrainingData, job: SeedJob, loaded: LoadedData, teachers: str
) -> TrainingData:
    """The data with what the teachers say of it."""
    path = soft_labels_path(job.cache_root or default_cache_root(), teachers, job.dataset)
    dataset = loaded.dataset
    soft = torch.from_numpy(read_soft_labels(path, dataset.ids, dataset.classes.labels))
    return dataclasses.replace(data, soft_labels=soft.to(data.labels.device))


def _tell_smaller(job: SeedJob, tracker: SeedTracker, display: Display) -> Callable[[int], None]:
    """Says and records that memory is not enough for the recipe's batches."""
    step_size = job.recipe.batch_size * job.recipe.accumulate

    def tell(batch_size: int) -> None:
        accumulate = -(-step_size // batch_size)
        display.say(
            f"{job.key}: out of memory, goes on with batch_size {batch_size} and accumulate "
            f"{accumulate}: a step still learns from {step_size} images, of which batch norm sees "
            f"{batch_size} at a time"
        )
        tracker.log_tags(
            {"batch_size_in_memory": str(batch_size), "accumulate_in_memory": str(accumulate)}
        )

    return tell


def _find_checkpoint(
    job: SeedJob, identity: dict[str, Any], tracker: SeedTracker, display: Display
) -> dict[str, Any] | None:
    """The newest whole checkpoint of this very seed; None if the seed begins anew.

    The last, the one before and the tracker's are tried. One line says what cannot be used.
    """
    problems = []
    for path, words in _checkpoints(job.output, tracker):
        try:
            saved = seed_folder.read_checkpoint(path)
            found = saved.get("identity")
            if found != identity:
                raise InputError(f"{path} must be of {identity}, found one of {found}")
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            display.say(f"warning: {problems[0]}; {job.key} goes on from {words}")
        return saved
    if problems:
        display.say(f"warning: {problems[0]}; {job.key} begins anew")
    return None


def _checkpoints(folder: Path, tracker: SeedTracker) -> Iterator[tuple[Path, str]]:
    """Where a checkpoint may be, and in words; the newest first, the tracker is asked last."""
    for name in (seed_folder.CHECKPOINT, seed_folder.PREVIOUS_CHECKPOINT):
        if (folder / name).exists():
            yield folder / name, str(folder / name)
    fetched = tracker.fetch_checkpoint(folder)
    if fetched is not None:
        yield fetched, "the one that was recorded in MLflow"


def build_started(job: SeedJob, labels: tuple[str, ...], data: TrainingData) -> ImageClassifier:
    """The model of `job` before its first step, with the weights that it starts from.

    Raises:
        InputError: they are not there any more, or are others.
    """
    model = build_fitted(job.recipe, labels, data)
    if job.recipe.weights is not None:
        weights, _ = read_weights(job.recipe, job.cache_root or default_cache_root())
        start_from(model.network, match(model.network, weights))
    return model


def build_fitted(recipe: Recipe, labels: tuple[str, ...], data: TrainingData) -> ImageClassifier:
    """The recipe's model before its first step; its preprocessing fits the training images."""
    model = build_for_training(recipe, labels)
    if model.preprocess.has_high_pass:
        # From the training rows alone, spread evenly over them.
        step = -(-len(data.train_rows) // MAX_STATISTICS_IMAGES)
        cpu = torch.device("cpu")
        model.preprocess.fit_high_pass(batches_of_images(data.images, data.train_rows[::step], cpu))
    return model
