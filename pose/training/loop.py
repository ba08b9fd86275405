"""The training loop of one seed.

Knows tensors, not files or MLflow: whoever wants to save, log or show something passes a
callback.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pose import metrics
from pose.config import Recipe
from pose.display import BatchProgress
from pose.errors import DivergedError
from pose.history import Row
from pose.stop import Stop
from pose.training.optimization import ema_decay_at, learning_rate_at
from pose.training.order import epoch_order
from pose.training.predict import predict_logits, score_logits
from pose.training.state import TrainState
from pose.training.step import Step, split_batches

# Called after each epoch with the state and the epoch's row, which is also the history's last.
Callback = Callable[[TrainState, Row], None]


def train(
    step: Step,
    *,
    callbacks: Sequence[Callback] = (),
    stop: Stop = lambda: None,
    progress: BatchProgress = lambda done, total: None,
    time_limit: float | None = None,
) -> str:
    """Train by `step` until its recipe or `stop` ends it; its state then holds the best weights.

    A request to stop takes effect after the current batch. The epoch it interrupts is dropped:
    the state to continue from is that of the last callback.

    Args:
        time_limit: seconds for all epochs together, those before a continuation included. It
            replaces the number of epochs: the schedule follows the clock, and the last epoch
            ends where the time does.

    Returns:
        Why it ended: `epochs`, `budget`, `patience`, or what `stop` said.

    Raises:
        DivergedError: a loss, a weight or a validation logit that is not finite; the message names
            the epoch.
    """
    state, data, recipe = step.state, step.data, step.recipe
    while True:
        pace = Pace(recipe, state, time_limit)
        if pace.is_over():
            return "epochs" if time_limit is None else "budget"
        if recipe.patience and state.num_epochs_done - state.best_epoch >= recipe.patience:
            return "patience"
        started = time.perf_counter()
        trained = train_one_epoch(step, pace, stop, progress)
        if trained is None:
            return stop()
        train_seconds = time.perf_counter() - started
        num_images, learning_rate = trained.pop("num_images"), trained.pop("learning_rate")
        logits = predict_logits(state.scored_model(), data.images, data.val_rows, step.precision)
        state.val_logits = logits
        state.validation_seconds = time.perf_counter() - started - train_seconds
        scores = score_logits(logits, data.labels[data.val_rows], "val")
        check_validated(state, logits, scores["val_loss"])
        row = {
            "epoch": state.num_epochs_done + 1,
            **trained,
            **scores,
            "learning_rate": learning_rate,
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": num_images / train_seconds,
        }
        state.history.append(row)
        if row["val_f1"] > state.best_val_f1:
            state.best_epoch, state.best_val_f1 = state.num_epochs_done, row["val_f1"]
            state.best_logits = logits
            weights = state.scored_model().state_dict()
            state.best_weights = {
                name: value.detach().cpu().clone() for name, value in weights.items()
            }
        for callback in callbacks:
            callback(state, row)


def train_for(step: Step, seconds: float, *, of: float, stop: Stop = lambda: None) -> bool:
    """The first part of a training by the clock, or its next one, without validation.

    The history has an entry per epoch, of which only the seconds and the images are known.

    Args:
        seconds: of this part.
        of: seconds of the whole training, which the schedule follows.

    Returns:
        Whether the part is done; False: it was asked to stop.

    Raises:
        DivergedError: a loss that is not finite.
    """
    state = step.state
    until = state.seconds + seconds
    while True:
        pace = Pace(step.recipe, state, max(of, until), until)
        if pace.is_over():
            return True
        started = time.perf_counter()
        trained = train_one_epoch(step, pace, stop, lambda done, total: None)
        if trained is None:
            return False
        elapsed = time.perf_counter() - started
        state.history.append(
            {
                "epoch": state.num_epochs_done + 1,
                "epoch_seconds": elapsed,
                "images_per_second": trained["num_images"] / elapsed,
            }
        )


class Pace:
    """How far training has come, from 0 to 1: by epochs, or by the clock where time is limited.

    Made anew for each epoch. Its validation is assumed to take as long as the last one.

    Args:
        until: seconds at which to pause; None: at the limit.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: TrainState,
        time_limit: float | None,
        until: float | None = None,
    ) -> None:
        self._num_epochs = recipe.num_epochs
        self._num_epochs_done = state.num_epochs_done
        self._time_limit = time_limit
        self._head_start = state.head_start
        self._seconds_before = state.seconds
        self._started = time.perf_counter()
        self._validation_seconds = state.validation_seconds
        # The progress at which epochs end.
        self.end = 1.0 if until is None or time_limit is None else until / time_limit

    def progress(self, part_of_epoch: float) -> float:
        """Part of training that is done, after `part_of_epoch` of this epoch's batches."""
        if self._time_limit is None:
            return (self._num_epochs_done + part_of_epoch) / self._num_epochs
        elapsed = self._seconds_before + time.perf_counter() - self._started
        # Never zero or less, however short the limit is.
        available = max(self._time_limit - self._validation_seconds, 1e-9)
        return min(1.0, (self._head_start + elapsed) / (self._head_start + available))

    def is_over(self) -> bool:
        """Whether there is nothing left to train before this epoch."""
        return self._num_epochs_done > 0 and self.progress(0.0) >= self.end


def train_one_epoch(step: Step, pace: Pace, stop: Stop, progress: BatchProgress) -> Row | None:
    """One pass over the training rows, or as far as `pace` allows; None if `stop` cut it short.

    Returns:
        `num_images` trained on; `learning_rate` of the last step; `train_loss`, `train_acc`,
        `train_f1`: running values over the epoch, in training mode on augmented images, as in the
        original.
    """
    state, data, num_classes = step.state, step.data, step.num_classes
    device = state.device
    order = epoch_order(data, state.shuffle_generator)
    # Copied once, not in every step.
    step_size = step.recipe.batch_size * step.recipe.accumulate
    batches = split_batches(order.to(data.images.device), step_size)
    num_steps_before = state.num_epochs_done * len(batches)
    losses = torch.zeros(len(batches), device=device)
    confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    learning_rate = 0.0
    for number, rows in enumerate(step.epoch(state.num_epochs_done, batches)):
        if stop():
            return None
        done = pace.progress(number / len(batches))
        if done >= pace.end and number > 0:
            batches, losses = batches[:number], losses[:number]
            break
        learning_rate = learning_rate_at(step.recipe, done)
        step.set_learning_rate(learning_rate)
        step.set_ema_decay(ema_decay_at(step.recipe, num_steps_before + number))
        losses[number], labels, logits = step(rows)
        # Sums stay on the device until the epoch ends. Not bincount, which makes the host wait for
        # CUDA to know the largest value.
        pairs = labels * num_classes + logits.argmax(dim=1)
        confusion.scatter_add_(0, pairs, torch.ones_like(pairs))
        progress(number + 1, len(batches))
    check_losses(losses, state.num_epochs_done + 1)
    sizes = torch.tensor([len(rows) for rows in batches], device=device)
    matrix = confusion.view(num_classes, num_classes).cpu().numpy()
    return {
        "num_images": int(sizes.sum()),
        "learning_rate": learning_rate,
        "train_loss": float((losses * sizes).sum() / sizes.sum()),
        "train_acc": metrics.accuracy(matrix),
        "train_f1": metrics.macro_f1(matrix),
    }


def check_losses(losses: Tensor, epoch: int) -> None:
    """Refuse to go on from a loss that is not finite.

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


def check_validated(state: TrainState, logits: Tensor, val_loss: float) -> None:
    """Refuse an epoch whose validation is not finite, before it is part of the history.

    Args:
        logits: of the validation images `(num_val, num_classes)`.

    Raises:
        DivergedError: a weight or statistic of the scored model, a logit, or the loss is not
            finite.
    """
    values = state.scored_model().state_dict().values()
    checks = {
        "weights": torch.stack([value.isfinite().all() for value in values]).all(),
        "validation logits": logits.isfinite().all(),
        "validation loss": math.isfinite(val_loss),
    }
    for name, is_finite in checks.items():
        if not bool(is_finite):
            raise DivergedError(
                f"the {name} must stay finite, got NaN or infinity after epoch "
                f"{state.num_epochs_done + 1}: lower learning_rate, or train with precision float32"
            )
