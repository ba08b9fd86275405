"""timm's ResNet-18, loader, optimizer and schedule, put together as its train.py does."""

import time
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from benchmarks.peers.task import MEAN, STD, Predict, Task, num_epochs_in, run_side

# Of "ResNet strikes back" (Wightman et al., 2021, arXiv:2110.00476) what serves short trainings:
# label smoothing, light RandAugment, AdamW for LAMB with its batches of 2,048.
LEARNING_RATE = 2e-3
WARMUP = 0.05


def train(task: Task) -> tuple[Predict, dict[str, Any]]:
    """As many epochs as fit by the rate of the first batches, and no step after the time."""
    torch.manual_seed(task.seed)
    size = (3, task.image_size, task.image_size)
    loader = create_loader(
        create_dataset("", root=task.folder, split="train", class_map=""),
        input_size=size,
        batch_size=task.batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=(0.5, 1.0),
        hflip=0.0,
        auto_augment="rand-m6-mstd0.5-inc1",
        num_workers=task.num_workers,
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
    )
    model = timm.create_model("resnet18", num_classes=len(task.labels()))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LEARNING_RATE, weight_decay=0.05)
    loss_of = LabelSmoothingCrossEntropy(0.1)
    started = time.perf_counter()
    num_updates, num_epochs, total = 0, 0, 0
    scheduler: CosineLRScheduler | None = None
    while total == 0 or num_updates < total:
        for images, labels in loader:
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
            num_updates += 1
            elapsed = time.perf_counter() - started
            if num_updates == 5 and scheduler is None:
                # The first batches wait for workers; later ones are measured again by the clock.
                total = len(loader) * num_epochs_in(task.seconds, elapsed / 5, len(loader))
                scheduler = CosineLRScheduler(
                    optimizer, t_initial=total, warmup_t=int(WARMUP * total), t_in_epochs=False
                )
            if scheduler is not None:
                # By the clock where that is further, so that the rate ends low in any case.
                by_clock = int(total * elapsed / task.seconds)
                scheduler.step_update(min(total, max(num_updates, by_clock)))
            if elapsed >= task.seconds:
                total = num_updates
                break
        num_epochs += 1
    seconds = time.perf_counter() - started
    model.eval()
    look = create_transform(size, is_training=False, mean=MEAN, std=STD, crop_pct=1.0)
    labels_of = task.labels()

    @torch.no_grad()
    def predict(files: list[Path]) -> list[str]:
        preds = []
        for start in range(0, len(files), 100):
            batch = torch.stack(
                [look(Image.open(path).convert("RGB")) for path in files[start : start + 100]]
            )
            preds += [labels_of[index] for index in model(batch).argmax(dim=1).tolist()]
        return preds

    return predict, {
        "what": f"timm {timm.__version__}: resnet18, AdamW, cosine, RandAugment m6, last epoch",
        "epochs": num_updates / len(loader),
        "seconds": seconds,
    }


if __name__ == "__main__":
    run_side(train)
