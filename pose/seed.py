"""Trains one seed, from a data folder to a seed's folder.

`train_seed` is a function of plain values, so that it can be called in another process or on
another machine. It reports to a tracker, which may be MLflow's or `NoTracking`.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pose import seed_folder
from pose.cache import Progress, open_cache
from pose.config import Recipe
from pose.dataset import Dataset, dataset_digest, read_dataset
from pose.device import pick_device, pick_precision
from pose.models import ImageClassifier, build_model
from pose.seed_folder import Predictions
from pose.split import split_indices
from pose.training import (
    BatchProgress,
    Row,
    StopRequest,
    TrainingData,
    TrainState,
    batches_of_images,
    predict_logits,
    probs_of,
    start_state,
    train,
)

# The high-pass channel's statistics come from this many training images at most: the mean of
# 4,096 images is known to a few per mille, and 50,000 would delay the first step by seconds.
MAX_STATISTICS_IMAGES = 4096
FINISHED_REASONS = ("epochs", "budget", "patience")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedJob:
    """One member to train.

    Attributes:
        run_name: of the training it belongs to.
        dataset: the data folder.
        output: the seed's own folder; a checkpoint in it is continued.
        time_limit: seconds for all of its epochs, instead of the recipe's number of epochs.
    """

    run_name: str
    recipe: Recipe
    seed: int
    dataset: Path
    output: Path
    cache_root: Path | None = None
    num_workers: int = 0
    device: str = "auto"
    precision: str = "auto"
    time_limit: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedResult:
    """How a seed's training ended.

    Attributes:
        stop_reason: `epochs`, `budget` and `patience` end it for good; with any other it can be
            continued.
        best_epoch: counted from 1; 0 where not one epoch is complete.
        val_f1: the best validation macro-F1.
        seconds: of all its epochs, interrupted ones not counted.
        session_seconds: of the epochs that this process trained.
    """

    seed: int
    stop_reason: str
    best_epoch: int
    val_f1: float
    num_epochs: int
    seconds: float
    session_seconds: float
    history: list[Row]

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing to continue."""
        return self.stop_reason in FINISHED_REASONS


class SeedTracker(Protocol):
    """Where a seed's training is recorded."""

    def log_epochs(self, history: list[Row]) -> None:
        """Record the epochs of `history` that are not recorded yet."""

    def log_results(self, folder: Path, model: ImageClassifier, config: dict[str, Any]) -> None:
        """Record the finished seed's folder and its best model."""

    def log_checkpoint(self, folder: Path) -> None:
        """Record the folder of a seed that will be continued."""


class NoTracking:
    """A tracker that records nothing: the folder on disk is all that is left."""

    def log_epochs(self, history: list[Row]) -> None:
        """Nothing."""

    def log_results(self, folder: Path, model: ImageClassifier, config: dict[str, Any]) -> None:
        """Nothing."""

    def log_checkpoint(self, folder: Path) -> None:
        """Nothing."""


class Display(Protocol):
    """What a person watches."""

    def cache_progress(self, done: int, total: int) -> None:
        """Images decoded."""

    def start_seed(
        self, seed: int, recipe: Recipe, num_epochs_done: int, time_limit: float | None
    ) -> BatchProgress:
        """A seed begins or goes on; returns what to call after each batch."""

    def show_epoch(self, seed: int, row: Row, best_epoch: int) -> None:
        """An epoch is complete."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedData:
    """A data folder with its decoded images, as all seeds share it.

    Attributes:
        dataset: the rows that can be used.
        images: `(N, 3, S, S)` uint8, memory-mapped, S the model's image size.
        rows: `(len(dataset.ids),)` int64, row of each id in `images`.
        digest: of ids, labels and contents.
    """

    dataset: Dataset
    images: torch.Tensor
    rows: np.ndarray
    digest: str


@functools.lru_cache(maxsize=1)
def load_data(
    folder: Path,
    image_size: int,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> LoadedData:
    """Read a data folder and decode its labelled images, or find them decoded.

    They are cached at the very size that the model sees. With room for crops (1.25 times that)
    training pictures were sharper, but each validation picture was resized twice: F1 was lower by
    0.03 in `benchmarks.quality`, the cache larger by half and slower to build.

    Raises:
        InputError: nothing to train on, or contradictions in the folder.
    """
    dataset = read_dataset(folder)
    dataset.raise_if_fatal()
    cache = open_cache(
        dataset.files,
        image_size,
        cache_root=cache_root,
        num_workers=num_workers,
        progress=progress,
    )
    rows = np.array([row for row in range(len(dataset.files)) if row not in cache.bad])
    usable = dataset.without(cache.bad)
    digest = dataset_digest(usable, tuple(cache.digests[row] for row in rows))
    return LoadedData(dataset=usable, images=cache.images, rows=rows, digest=digest)


def train_seed(
    job: SeedJob, tracker: SeedTracker, display: Display, stop: StopRequest
) -> SeedResult:
    """Train the seed of `job`, from its checkpoint where it has one.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    recipe = job.recipe
    device = pick_device(job.device)
    precision = pick_precision(job.precision, device)
    loaded = load_data(
        job.dataset, recipe.image_size, job.cache_root, job.num_workers, display.cache_progress
    )
    data = training_data(loaded, recipe, job.seed, device)
    data = dataclasses.replace(data, images=resident_images(data.images, device))
    classes = loaded.dataset.classes
    state = start_state(
        lambda: build_fitted(recipe, classes.labels, data), recipe, job.seed, device
    )
    checkpoint = job.output / seed_folder.CHECKPOINT
    if checkpoint.exists():
        state.load_state_dict(seed_folder.read_checkpoint(checkpoint))
    tracker.log_epochs(state.history)
    seconds_before = state.seconds

    def save_then_log(state: TrainState, row: Row) -> None:
        # In this order a kill in between loses nothing: what the checkpoint has and the tracker
        # lacks is recorded when the training goes on.
        seed_folder.write_checkpoint(job.output, state.state_dict())
        seed_folder.write_history(job.output, state.history)
        tracker.log_epochs(state.history)
        display.show_epoch(job.seed, row, state.best_epoch)

    stop_reason = train(
        state,
        data,
        recipe,
        precision=precision,
        callbacks=[save_then_log],
        stop=stop,
        progress=display.start_seed(job.seed, recipe, state.num_epochs_done, job.time_limit),
        time_limit=job.time_limit,
    )
    result = SeedResult(
        seed=job.seed,
        stop_reason=stop_reason,
        best_epoch=state.best_epoch,
        val_f1=state.best_val_f1,
        num_epochs=state.num_epochs_done,
        seconds=state.seconds,
        session_seconds=state.seconds - seconds_before,
        history=state.history,
    )
    if result.is_finished:
        _publish(job, result, state, data, loaded, precision, tracker)
    elif checkpoint.exists():
        tracker.log_checkpoint(job.output)
    return result


def training_data(
    loaded: LoadedData, recipe: Recipe, seed: int, device: torch.device
) -> TrainingData:
    """The split of `seed` on `device`: the shared one, or its own if `split_seed` is None."""
    split_seed = seed if recipe.split_seed is None else recipe.split_seed
    train_rows, val_rows = split_indices(
        loaded.dataset.labels, val_fraction=recipe.val_fraction, split_seed=split_seed
    )
    labels = torch.zeros(len(loaded.images), dtype=torch.int64)
    labels[torch.from_numpy(loaded.rows)] = torch.from_numpy(loaded.dataset.labels)
    return TrainingData(
        images=loaded.images,
        labels=labels.to(device),
        train_rows=torch.from_numpy(loaded.rows[train_rows]),
        val_rows=torch.from_numpy(loaded.rows[val_rows]),
        mirrors=torch.tensor(loaded.dataset.classes.mirrors, device=device),
    )


@functools.lru_cache(maxsize=1)
def resident_images(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`images` in the memory of a CUDA device where they fit, for all seeds; else as they are."""
    if device.type != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info(device)
    # What stays free is for the network's activations.
    return images.to(device) if images.nbytes < 0.6 * free else images


def build_fitted(recipe: Recipe, labels: tuple[str, ...], data: TrainingData) -> ImageClassifier:
    """The recipe's model before its first step; its preprocessing fits the training images."""
    model = build_model(recipe.model, labels, recipe.image_size, pretrained=recipe.pretrained)
    if model.preprocess.has_high_pass:
        # From the training rows alone, spread evenly over them.
        step = -(-len(data.train_rows) // MAX_STATISTICS_IMAGES)
        cpu = torch.device("cpu")
        model.preprocess.fit_high_pass(batches_of_images(data.images, data.train_rows[::step], cpu))
    return model


def _publish(
    job: SeedJob,
    result: SeedResult,
    state: TrainState,
    data: TrainingData,
    loaded: LoadedData,
    precision: torch.dtype,
    tracker: SeedTracker,
) -> None:
    """Write and record what a finished seed leaves behind."""
    model = state.scored_model()
    model.load_state_dict(state.best_weights)
    classes = loaded.dataset.classes
    ids_of_rows = dict(zip(loaded.rows.tolist(), loaded.dataset.ids, strict=True))
    val_predictions = Predictions(
        ids=tuple(ids_of_rows[row] for row in data.val_rows.tolist()),
        probs=probs_of(predict_logits(model, data.images, data.val_rows, precision)),
        class_labels=classes.labels,
        labels=data.labels[data.val_rows].cpu().numpy(),
    )
    config = seed_folder.model_config(
        model=job.recipe.model,
        image_size=job.recipe.image_size,
        classes=classes,
        facts={
            "run": job.run_name,
            "seed": job.seed,
            "val_f1": result.val_f1,
            "best_epoch": result.best_epoch,
            "dataset_digest": loaded.digest,
            "recipe": dataclasses.asdict(job.recipe),
        },
    )
    seed_folder.write_results(
        job.output,
        title=f"{job.run_name}, seed {job.seed}",
        history=state.history,
        best_epoch=state.best_epoch,
        weights=state.best_weights,
        config=config,
        val_predictions=val_predictions,
        class_names=classes.names,
    )
    # A copy that is plain: on the CPU, in evaluation mode, in the default memory order.
    copy, _ = seed_folder.read_model(job.output)
    tracker.log_results(job.output, copy, config)
