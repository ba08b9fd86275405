"""One training step: rows to an augmented batch, forward, backward, optimizer, average."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.training.augment import PRESETS, augment_batch, gather, mix_batch, sample_params
from pose.training.optimization import learning_rate_at
from pose.training.state import TrainState


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
