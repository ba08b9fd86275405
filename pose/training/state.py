"""Everything that changes while a seed trains."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pose.config import Recipe
from pose.history import Row
from pose.training.optimization import build_optimizer
from pose_models import ImageClassifier


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """Everything that changes while a seed trains; its `state_dict` continues it exactly.

    Attributes:
        val_logits: `(V, K)` of the last complete epoch on the rows that validate; no part of what
            is saved, and None before this session has ended an epoch.
        best_logits: the same of the best weights; None where another session found these.
        smaller_batch: images at a time, where memory was not enough for the recipe's.
        head_start: seconds of training before the first epoch of the history.
    """

    model: ImageClassifier
    ema: ImageClassifier | None
    optimizer: torch.optim.Optimizer
    shuffle_generator: torch.Generator
    augment_generator: torch.Generator
    history: list[Row] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    best_val_f1: float = -1.0
    best_weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    val_logits: Tensor | None = None
    best_logits: Tensor | None = None
    validation_seconds: float = 0.0
    smaller_batch: int | None = None
    head_start: float = 0.0

    @property
    def seconds(self) -> float:
        """Time that the complete epochs took, validation included, without a head start."""
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
            "smaller_batch": self.smaller_batch,
            "head_start": self.head_start,
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
        self.val_logits = self.best_logits = None
        # Checkpoints of earlier versions have neither.
        self.smaller_batch = saved.get("smaller_batch")
        self.head_start = saved.get("head_start", 0.0)


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
        # Separate generators, so that a change to one leaves the other as it was.
        shuffle_generator=torch.Generator().manual_seed(seed),
        augment_generator=torch.Generator(device).manual_seed(seed + 2**32),
    )
