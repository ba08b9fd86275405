"""The training loop of one seed.

Knows tensors, not files or MLflow: whoever wants to save, log or show something passes a
callback.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose import metrics
from pose.augment import PRESETS, augment_batch, gather, mix_batch, sample_params
from pose.config import Recipe
from pose.models import ImageClassifier
from pose.optimization import build_optimizer, learning_rate_at

# One row of the history: the columns of training_history.csv.
Row = dict[str, float]
# Called after each epoch with the state and the epoch's row, which is also the history's last.
Callback = Callable[["TrainState", Row], None]
# Called after each batch with the number of batches done and in all.
BatchProgress = Callable[[int, int], None]
# Says why to stop, or None to go on.
StopRequest = Callable[[], str | None]


class DivergedError(Exception):
    """The training loss is no longer finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Images and labels of one split, on the device that trains.

    Attributes:
        images: `(N, 3, S, S)` uint8, on the device or memory-mapped.
        labels: `(N,)` int64, on the device.
        train_rows: `(num_train,)` int64 rows of `images` that train, on the CPU.
        val_rows: `(num_val,)` that validate.
        mirrors: `(num_classes,)` int64 class of each class's mirror image, -1: never flipped.
    """

    images: Tensor
    labels: Tensor
    train_rows: Tensor
    val_rows: Tensor
    mirrors: Tensor


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """Everything that changes while a seed trains; its `state_dict` continues it exactly."""

    model: ImageClassifier
    ema: ImageClassifier | None
    optimizer: torch.optim.Optimizer
    shuffle_generator: torch.Generator
    augment_generator: torch.Generator
    history: list[Row] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    best_val_f1: float = -1.0
    best_weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    validation_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time that the complete epochs took, validation included."""
        return sum(row["epoch_seconds"] for row in self.history)

    @property
    def num_epochs_done(self) -> int:
        """Complete epochs so far."""
        return len(self.history)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def scored_model(self) -> ImageClassifier:
        """The model that is validated and kept: the moving average where there is one."""
        return self.ema if self.ema is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts and containers of them: loads with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "shuffle_generator": self.shuffle_generator.get_state(),
            "augment_generator": self.augment_generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "device_generator": (
                torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
            ),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_val_f1": self.best_val_f1,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `saved`; also sets torch's global generator."""
        self.model.load_state_dict(saved["model"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.shuffle_generator.set_state(saved["shuffle_generator"])
        self.augment_generator.set_state(saved["augment_generator"])
        torch.set_rng_state(saved["global_generator"])
        if saved["device_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["device_generator"], self.device)
        self.history = saved["history"]
        self.best_epoch = saved["best_epoch"]
        self.best_val_f1 = saved["best_val_f1"]
        self.best_weights = saved["best_weights"]


def start_state(
    build: Callable[[], ImageClassifier], recipe: Recipe, seed: int, device
) -> TrainState:
    """The state before the first step: weights and all random streams follow from `seed`.

    Args:
        build: makes the model; called after the global generator is seeded. The global
            generator then draws nothing but dropout.
    """
    torch.manual_seed(seed)
    model = build().to(device=device, memory_format=torch.channels_last)
    ema = None
    if recipe.ema_decay > 0:
        ema = copy.deepcopy(model).requires_grad_(False)
    return TrainState(
        model=model,
        ema=ema,
        optimizer=build_optimizer(model, recipe),
        # Apart from each other, so that a change to one leaves the other as it was.
        shuffle_generator=torch.Generator().manual_seed(seed),
        augment_generator=torch.Generator(device).manual_seed(seed + 2**32),
    )


def train(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    *,
    precision: torch.dtype,
    callbacks: Sequence[Callback] = (),
    stop: StopRequest = lambda: None,
    progress: BatchProgress = lambda done, total: None,
    time_limit: float | None = None,
) -> str:
    """Train until the recipe or `stop` ends it; `state` then holds the best weights.

    A request to stop takes effect after the batch at work. The epoch it interrupts is dropped:
    the state to continue from is that of the last callback.

    Args:
        time_limit: seconds for all epochs together, those before a continuation included. It
            replaces the number of epochs: the schedule follows the clock, and the last epoch
            ends where the time does.

    Returns:
        Why it ended: `epochs`, `budget`, `patience`, or what `stop` said.

    Raises:
        DivergedError: a loss that is not finite; the message names epoch and step.
    """
    while True:
        pace = Pace(recipe, state, time_limit)
        if pace.is_over():
            return "epochs" if time_limit is None else "budget"
        if recipe.patience and state.num_epochs_done - state.best_epoch >= recipe.patience:
            return "patience"
        started = time.perf_counter()
        trained = train_one_epoch(state, data, recipe, precision, pace, stop, progress)
        if trained is None:
            return stop()
        train_seconds = time.perf_counter() - started
        num_images = trained.pop("num_images")
        logits = predict_logits(state.scored_model(), data.images, data.val_rows, precision)
        state.validation_seconds = time.perf_counter() - started - train_seconds
        row = {
            "epoch": state.num_epochs_done + 1,
            **trained,
            **score_logits(logits, data.labels[data.val_rows], "val"),
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": num_images / train_seconds,
        }
        state.history.append(row)
        if row["val_f1"] > state.best_val_f1:
            state.best_epoch, state.best_val_f1 = state.num_epochs_done, row["val_f1"]
            weights = state.scored_model().state_dict()
            state.best_weights = {
                name: value.detach().cpu().clone() for name, value in weights.items()
            }
        for callback in callbacks:
            callback(state, row)


class Pace:
    """How far the training is, from 0 to 1: by epochs, or by the clock where time is limited.

    Made anew for each epoch. The time for the epoch's validation is taken to be that of the last.
    """

    def __init__(self, recipe: Recipe, state: TrainState, time_limit: float | None) -> None:
        self._num_epochs = recipe.num_epochs
        self._num_epochs_done = state.num_epochs_done
        self._time_limit = time_limit
        self._seconds_before = state.seconds
        self._started = time.perf_counter()
        self._validation_seconds = state.validation_seconds

    def progress(self, part_of_epoch: float) -> float:
        """Part of the training that is done, after `part_of_epoch` of this epoch's batches."""
        if self._time_limit is None:
            return (self._num_epochs_done + part_of_epoch) / self._num_epochs
        elapsed = self._seconds_before + time.perf_counter() - self._started
        # Never zero or less, however short the limit is.
        available = max(self._time_limit - self._validation_seconds, 1e-9)
        return min(1.0, elapsed / available)

    def is_over(self) -> bool:
        """Whether there is nothing left to train before this epoch."""
        return self._num_epochs_done > 0 and self.progress(0.0) >= 1


def train_one_epoch(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    precision: torch.dtype,
    pace: Pace,
    stop: StopRequest,
    progress: BatchProgress,
) -> Row | None:
    """One pass over the training rows, or as far as `pace` allows; None if `stop` cut it short.

    Returns:
        `num_images` trained on; `train_loss`, `train_acc`, `train_f1`: running values over the
        epoch, in training mode on augmented images, as in the original.
    """
    state.model.train()
    device = state.device
    num_classes = len(data.mirrors)
    weight = class_weights(data.labels[data.train_rows], num_classes, recipe.class_weighting)
    order = data.train_rows[torch.randperm(len(data.train_rows), generator=state.shuffle_generator)]
    # Copied once, not in every step.
    batches = order.to(data.images.device).split(recipe.batch_size)
    steps_per_epoch = len(batches)
    losses = torch.zeros(len(batches), device=device)
    confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    for step, rows in enumerate(batches):
        if stop():
            return None
        done = pace.progress(step / len(batches))
        if done >= 1 and step > 0:
            batches, losses = batches[:step], losses[:step]
            break
        set_learning_rate(state, recipe, done)
        images, labels, targets = training_batch(data, rows, recipe, state.augment_generator)
        loss, logits = train_step(state, images, targets, recipe, precision, weight)
        if state.ema is not None:
            # Shorter at first, so that the average leaves the random weights behind.
            num_steps = state.num_epochs_done * steps_per_epoch + step
            decay = min(recipe.ema_decay, (1 + num_steps) / (10 + num_steps))
            update_ema(state.ema, state.model, decay)
        # Sums stay on the device until the epoch ends. Not bincount, which makes the host wait for
        # CUDA to know the largest value.
        losses[step] = loss
        pairs = labels * num_classes + logits.argmax(dim=1)
        confusion.scatter_add_(0, pairs, torch.ones_like(pairs))
        progress(step + 1, len(batches))
    check_finite(losses, state.num_epochs_done + 1)
    sizes = torch.tensor([len(rows) for rows in batches], device=device)
    matrix = confusion.view(num_classes, num_classes).cpu().numpy()
    return {
        "num_images": int(sizes.sum()),
        "train_loss": float((losses * sizes).sum() / sizes.sum()),
        "train_acc": metrics.accuracy(matrix),
        "train_f1": metrics.macro_f1(matrix),
    }


def train_step(
    state: TrainState,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    precision: torch.dtype,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on images and targets as `training_batch` makes them.

    Nothing waits for the device.

    Args:
        weight: of each class in the loss `(num_classes,)`.

    Returns:
        the loss `()` and the logits `(n, num_classes)` before the step, on the device.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = state.model(images)
    loss = F.cross_entropy(logits, targets, weight=weight, label_smoothing=recipe.label_smoothing)
    loss.backward()
    if recipe.clip_grad_norm:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return loss.detach(), logits.detach()


def training_batch(
    data: TrainingData, rows: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The augmented images of `rows` with their labels and targets.

    Returns:
        images `(n, 3, image_size, image_size)` float32 in 0..1; labels `(n,)` int64 after flips;
        targets: the labels, or `(n, num_classes)` float32 where images were mixed.
    """
    device = data.labels.device
    images, labels = gather(data.images, rows, device), data.labels[rows.to(device)]
    params = sample_params(PRESETS[recipe.augmentation], labels, data.mirrors, generator)
    images = augment_batch(images, params, recipe.image_size)
    labels = torch.where(params.is_flipped, data.mirrors[labels], labels)
    images, targets = mix_batch(images, labels, len(data.mirrors), recipe, generator)
    return images, labels, targets


def set_learning_rate(state: TrainState, recipe: Recipe, progress: float) -> None:
    """Set the rate of the next step, a pure function of how far the training is."""
    rate = learning_rate_at(recipe, progress)
    for group in state.optimizer.param_groups:
        group["lr"] = rate


def class_weights(labels: Tensor, num_classes: int, weighting: str) -> Tensor | None:
    """Loss weight `(num_classes,)` of each class, with mean 1 over the images; None: all alike.

    `balanced`: inverse to the class's frequency; `sqrt`: to its square root.
    """
    if weighting == "none":
        return None
    counts = torch.bincount(labels, minlength=num_classes).float().clamp(min=1)
    weight = 1 / (counts if weighting == "balanced" else counts.sqrt())
    return weight * counts.sum() / (weight * counts).sum()


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights and statistics towards the model's by `1 - decay`."""
    pairs = [
        (average, value)
        for average, value in zip(
            ema.state_dict().values(), model.state_dict().values(), strict=True
        )
    ]
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [v for _, v in floating], 1 - decay)
    for average, value in pairs:
        if not average.is_floating_point():
            average.copy_(value)


def check_finite(losses: Tensor, epoch: int) -> None:
    """
    Raises:
        DivergedError: one of the epoch's losses `(num_steps,)` is not finite.
    """
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        raise DivergedError(
            f"the loss must stay finite, got {float(losses[step - 1])} in epoch {epoch} at step "
            f"{step}: lower learning_rate, or train with precision float32"
        )


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: Tensor,
    rows: Tensor,
    precision: torch.dtype,
    *,
    batch_size: int = 128,
    progress: BatchProgress = lambda done, total: None,
) -> Tensor:
    """Logits of the images at `rows`, in their order.

    Args:
        images: `(N, 3, S, S)` uint8.
        rows: `(n,)` int64.

    Returns:
        `(n, num_classes)` float32 on the model's device.
    """
    model.eval()
    device = next(model.parameters()).device
    # Copied once, not in every batch.
    batches = rows.to(images.device).split(batch_size)
    logits = []
    for done, batch_rows in enumerate(batches, start=1):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits.append(model(gather(images, batch_rows, device)))
        progress(done, len(batches))
    return torch.cat(logits)


def score_logits(logits: Tensor, labels: Tensor, split: str) -> Row:
    """`<split>_loss`, `<split>_acc` and `<split>_f1` of logits `(n, C)` and labels `(n,)`."""
    num_classes = logits.shape[1]
    loss = float(F.cross_entropy(logits, labels))
    confusion = metrics.confusion_matrix(
        labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy(), num_classes
    )
    return {
        f"{split}_loss": loss,
        f"{split}_acc": metrics.accuracy(confusion),
        f"{split}_f1": metrics.macro_f1(confusion),
    }


def batches_of_images(
    images: Tensor, rows: Tensor, device: torch.device, batch_size: int = 256
) -> Iterator[Tensor]:
    """The images at `rows` in batches on `device`, `(n, 3, S, S)` uint8."""
    for batch_rows in rows.split(batch_size):
        yield gather(images, batch_rows, device)


def probs_of(logits: Tensor) -> np.ndarray:
    """Softmax of logits `(n, C)` as a float32 array."""
    return logits.softmax(dim=1).cpu().numpy()
