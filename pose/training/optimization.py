"""The optimizer, and the learning rate and the averaging of each step."""

import math

import torch
from torch import Tensor, nn

from pose.config import Recipe
from pose.training.layers import by_layer
from pose.training.muon import Muon
from pose.training.optimizers import Adam, AdamW
from pose_models import ImageClassifier


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer of the parameters of `model`; Adam and AdamW in one fused kernel.

    AdamW does not decay biases and normalisation, as is usual; Adam treats all alike. With
    `layer_decay`, groups are divided by layers.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate, decay, layer_decay = recipe.learning_rate, recipe.weight_decay, recipe.layer_decay
    if recipe.optimizer == "adam":
        groups = by_layer([{"params": parameters}], model, layer_decay)
        return Adam(groups, lr=rate, weight_decay=decay, fused=True)
    if recipe.optimizer == "muon":
        return Muon(model, rate, decay, layer_decay)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(by_layer(groups, model, layer_decay), lr=rate, fused=True)


def freeze_all_but_head(model: ImageClassifier, is_frozen: bool) -> None:
    """Let a model in training mode train its last layer alone, or all of it again.

    What is frozen keeps its batch norms' statistics too: those of the images that its weights come
    from, to which the new head is fitted.
    """
    outputs = [
        module
        for module in model.network.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", 0)) == len(model.labels)
    ]
    for module in model.network.modules():
        if is_frozen and isinstance(module, nn.BatchNorm2d):
            module.eval()
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not is_frozen or module is outputs[-1])


def hold_learning_rate(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the optimizer's learning rate where its steps run, to be set by `set_learning_rate`.

    On CUDA it is a float32 tensor, one of all groups whose layers have the same rate, which a
    captured graph reads in every replay.
    On the CPU it stays a number: torch's kernels read a tensor there as a number again, and one
    of float32 would round the rate that the frozen runs train with.
    """
    is_cuda = device.type == "cuda"
    rates: dict[float, Tensor] = {}
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = 0.0, is_cuda
        if is_cuda:
            scale = group.get("lr_scale", 1.0)
            group["lr"] = rates.setdefault(scale, torch.zeros((), device=device))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the last layer's rate of the next step, and those of all others; waits for nothing."""
    for group in optimizer.param_groups:
        own = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def learning_rate_at(recipe: Recipe, progress: float) -> float:
    """The learning rate at `progress` of the planned training, in [0, 1).

    `cosine`: linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter, 2016,
    arXiv:1608.03983). `one_cycle`: half a cosine up from 1/25 of the highest rate, then half a
    cosine down (Smith and Topin, 2017, arXiv:1708.07120, as in torch's `OneCycleLR`).
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warmup = recipe.warmup_fraction
    if progress < warmup:
        rising = progress / warmup
        if recipe.schedule == "one_cycle":
            factor = 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * rising)) / 2
        else:
            factor = rising
    else:
        falling = min(1.0, (progress - warmup) / (1 - warmup))
        factor = (1 + math.cos(math.pi * falling)) / 2
    return recipe.learning_rate * factor


def ema_decay_at(recipe: Recipe, num_steps: int) -> float:
    """How much of the averaged weights stays after `num_steps` steps and one more.

    Less at first, so that the average leaves the random weights behind.
    """
    return min(recipe.ema_decay, (1 + num_steps) / (10 + num_steps))
