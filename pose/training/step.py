"""One training step: rows to an augmented batch, forward, backward, optimizer, average."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose.config import Recipe
from pose.data.streamed import decoding_ahead
from pose.data.tensors import TrainingData, framing_of
from pose.errors import InputError, one_line
from pose.training import optimization
from pose.training.augment import (
    PRESETS,
    AugmentParams,
    augment_batch,
    gather,
    sample_params,
    take_windows,
)
from pose.training.mixing import Mixing, sample_mixing
from pose.training.state import TrainState


class Step:
    """One training step of one seed, called with the rows to train on.

    What changes from step to step lies in tensors on the device; the host sets it, reads none of
    it, and waits for nothing. So a call with rows on the device, and images in its memory, can be
    captured in a CUDA graph, to be replayed with other rows, rates and draws. A graph holds one
    number of rows; another, such as that of an epoch's last batch, is called without a graph.
    """

    def __init__(
        self,
        state: TrainState,
        data: TrainingData,
        recipe: Recipe,
        precision: torch.dtype,
        tell_smaller: Callable[[int], None] = lambda batch_size: None,
    ) -> None:
        """Takes over the optimizer's learning rate: a checkpoint is loaded before, not after.

        Args:
            tell_smaller: hears how many images at a time memory is enough for, if not for the
                recipe's.
        """
        self.state, self.data, self.recipe, self.precision = state, data, recipe, precision
        self.tell_smaller = tell_smaller
        self.num_classes = len(data.mirrors)
        self.class_weights = class_weights(
            data.labels[data.train_rows], self.num_classes, recipe.class_weighting
        )
        optimization.hold_learning_rate(state.optimizer, state.device)
        self.set_learning_rate(recipe.learning_rate)
        self.average = None
        if state.ema is not None:
            self.average = MovingAverage(state.ema, state.model)

    def epoch(self, num_epochs_done: int, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The epoch's batches of rows, each to be trained on before the next is asked for.

        The model trains as far as it does after so many epochs.
        """
        self.state.model.train()
        if self.recipe.freeze_epochs:
            # A head start has trained the head.
            is_frozen = num_epochs_done < self.recipe.freeze_epochs and not self.state.head_start
            optimization.freeze_all_but_head(self.state.model, is_frozen)
        gathered = [self.gathered(rows) for rows in batches]
        for rows, _ in zip(batches, decoding_ahead(self.data.images, gathered), strict=False):
            yield rows

    def gathered(self, rows: Tensor) -> Tensor:
        """Those of `rows` whose images a step on them asks for, in its order."""
        return rows

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        optimization.set_learning_rate(self.state.optimizer, rate)

    def set_ema_decay(self, decay: float) -> None:
        """Set the decay of the average for the next step; does nothing without an average."""
        if self.average is not None:
            self.average.set_decay(decay)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Train on the images at `rows` `(n,)`.

        Returns:
            the loss `()`, the labels `(n,)` int64 after flips, and the logits
            `(n, num_classes)` float32 before the step, on the device.
        """
        images, labels, targets = self.batch(rows)
        loss, logits = self.update(images, targets)
        return loss, labels, logits

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and targets of `rows`, as `training_batch` makes them."""
        return training_batch(self.data, rows, self.recipe, self.state.augment_generator)

    def update(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Train on images and targets as `batch` makes them; the loss and the logits.

        More images than the recipe's `batch_size` go through the network in parts; the step is
        that of all of them. Where memory is not enough for a part, parts become half as large, for
        this and all later steps.

        Raises:
            InputError: memory is not enough for a single image.
        """
        done = None
        while done is None:
            try:
                done = self._backward(images, targets)
            except torch.OutOfMemoryError as error:
                if self._part_size == 1:
                    raise InputError(
                        "memory must be enough to learn from one image at a time, found: "
                        f"{one_line(error)}"
                    ) from error
            if done is None:
                # Only here is nothing left that holds what the failed part had computed.
                self._halve_parts(len(images))
        self._apply_gradients()
        return done

    def _apply_gradients(self) -> None:
        state, clip_grad_norm = self.state, self.recipe.clip_grad_norm
        if clip_grad_norm:
            nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

    @property
    def _part_size(self) -> int:
        return self.state.smaller_batch or self.recipe.batch_size

    def _halve_parts(self, num_images: int) -> None:
        self.state.smaller_batch = max(1, min(self._part_size, num_images) // 2)
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.state.device.type == "cuda":
            torch.cuda.empty_cache()
        self.tell_smaller(self.state.smaller_batch)

    def _backward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the loss of all images, part by part; the loss and the logits."""
        parts = split_batches(images, self._part_size)
        if len(parts) == 1:
            loss, logits = self._forward(images, targets)
            loss.backward()
            return loss.detach(), logits.detach()
        losses, all_logits = [], []
        total = self._weight_of(targets)
        part_targets = split_batches(targets, self._part_size)
        for part, own_targets in zip(parts, part_targets, strict=True):
            loss, logits = self._forward(part, own_targets)
            # Of a mean over the part to its share in the mean over all.
            loss = loss * (self._weight_of(own_targets) / total)
            loss.backward()
            losses.append(loss.detach())
            all_logits.append(logits.detach())
        return torch.stack(losses).sum(), torch.cat(all_logits)

    def _forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        is_autocast = self.precision == torch.bfloat16
        # Each weight is used once per step; a graph would keep the cache of the converted ones.
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=is_autocast, cache_enabled=False
        ):
            logits = self.state.model(images)
        return self.loss(logits, targets), logits

    def _weight_of(self, targets: Tensor) -> Tensor | float:
        """What the mean over these targets divides by."""
        if self.class_weights is None or targets.is_floating_point():
            return float(len(targets))
        return self.class_weights[targets].sum()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, `()` float32."""
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.recipe.label_smoothing,
        )


def split_batches(rows: Tensor, batch_size: int) -> Sequence[Tensor]:
    """`rows` in batches of `batch_size`, the last one shorter.

    A single row at the end joins the batch before it: batch norm of a 1x1 map cannot learn from
    one value.
    """
    batches = rows.split(batch_size)
    if len(batches) > 1 and len(batches[-1]) < min(2, batch_size):
        return (*batches[:-2], torch.cat(batches[-2:]))
    return batches


class MovingAverage:
    """The moving average of a model's weights and statistics, kept in another model."""

    def __init__(self, ema: nn.Module, model: nn.Module) -> None:
        pairs = list(zip(ema.state_dict().values(), model.state_dict().values(), strict=True))
        # The models' own tensors, which each step changes in place.
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._weight = torch.zeros((), device=next(model.parameters()).device)

    def set_decay(self, decay: float) -> None:
        """What part of the average stays at the next update, in [0, 1)."""
        self._weight.fill_(1 - decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model by what does not stay; counts are copied."""
        averages, values = zip(*self._floating, strict=True)
        torch._foreach_lerp_(averages, values, [self._weight] * len(averages))
        for average, value in self._counts:
            average.copy_(value)


def training_batch(
    data: TrainingData,
    rows: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The augmented images of `rows` with their labels and targets.

    Args:
        own: positions in `rows`, `(m,)`, of the images that are wanted; default: all. The others
            are drawn for, and that is all.

    Returns:
        images `(m, 3, image_size, image_size)` float32 in 0..1; labels `(n,)` int64 of all rows
        after flips; targets of the images: the labels, or `(m, num_classes)` float32 where images
            were mixed or soft labels are learned.
    """
    device, size = data.labels.device, recipe.image_size
    labels = data.labels[rows.to(device)]
    params = sample_params(PRESETS[recipe.augmentation], labels, data.mirrors, generator)
    if recipe.framing == "crop":
        params = take_windows(params, framing_of(recipe), generator)
    mixing = sample_mixing(len(rows), (size, size), recipe, generator)
    labels = torch.where(params.is_flipped, data.mirrors[labels], labels)
    targets = labels
    if data.soft_labels is not None:
        soft = mirror_soft(data.soft_labels[rows.to(device)], params.is_flipped, data.mirrors)
        targets = soft_targets(soft, labels, recipe.distil_weight)
    targets = mixing.mix_targets(targets, len(data.mirrors))
    batch = Drawn(data, rows, params, mixing, size)
    if own is None:
        return mixing.mix(batch.images()), labels, targets
    return batch.mixed_images(own), labels, targets[own.to(device)]


class Drawn(NamedTuple):
    """A batch whose parameters are drawn, and whose images are yet to be made."""

    data: TrainingData
    rows: Tensor
    params: AugmentParams
    mixing: Mixing
    image_size: int

    def images(self) -> Tensor:
        """All images before they are mixed."""
        images = gather(self.data.images, self.rows, self.data.labels.device)
        return self.mixing.erase(augment_batch(images, self.params, self.image_size))

    def at(self, positions: Tensor) -> "Drawn":
        """The part of the batch at `positions` `(m,)`."""
        there = positions.to(self.data.labels.device)
        return self._replace(
            rows=self.rows[positions.to(self.rows.device)],
            params=self.params.at(there),
            mixing=self.mixing.at(there),
        )

    def mixed_images(self, own: Tensor) -> Tensor:
        """The images at `own` `(m,)`, mixed with their neighbours in the batch."""
        if self.mixing.own_part is None:
            return self.at(own).images()
        needed, places = with_neighbours(own, len(self.rows))
        images = self.at(needed).images()
        return self.mixing.mix(images[places[: len(own)]], images[places[len(own) :]])


def with_neighbours(own: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """The positions `own` `(m,)` and those before them in a batch, each once.

    Returns:
        the positions, and where among them are `own` and then their neighbours, `(2 * m,)`.
    """
    return torch.cat([own, (own - 1) % num_images]).unique(return_inverse=True)


def soft_targets(soft: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Soft labels `(n, num_classes)` mixed with the labels `(n,)`, whose part is `1 - weight`.

    The cross-entropy is linear in its targets: this is the weighted sum of both losses (Hinton et
    al., 2015, section 2).
    """
    if weight == 1:
        return soft
    return weight * soft + (1 - weight) * F.one_hot(labels, soft.shape[1]).float()


def mirror_soft(soft: Tensor, is_flipped: Tensor, mirrors: Tensor) -> Tensor:
    """Soft labels `(n, num_classes)` of images of which some `(n,)` were flipped.

    What was probable for a class is so for its mirror image. A class without one keeps its own.
    """
    own = torch.arange(len(mirrors), device=mirrors.device)
    mirrored = soft[:, torch.where(mirrors < 0, own, mirrors)]
    return torch.where(is_flipped[:, None], mirrored, soft)


def class_weights(labels: Tensor, num_classes: int, weighting: str) -> Tensor | None:
    """Loss weight `(num_classes,)` of each class, with mean 1 over the images; None: all alike.

    `balanced`: inverse to the class's frequency; `sqrt`: to its square root.
    """
    if weighting == "none":
        return None
    counts = torch.bincount(labels, minlength=num_classes).float().clamp(min=1)
    weight = 1 / (counts if weighting == "balanced" else counts.sqrt())
    return weight * counts.sum() / (weight * counts).sum()
