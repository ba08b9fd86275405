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

from benchmarks.peers.task import MEAN, STD, Predict, Task, run_side

# Of "ResNet strikes back" (Wightman et al., 2021, arXiv:2110.00476) what serves short trainings:
# label smoothing, light RandAugment, AdamW for LAMB with its batches of 2,048.
LEARNING_RATE = 2e-3
WARMUP = 0.05


def train(task: Task) -> tuple[Predict, dict[str, Any]]:
    """Train until the time is over; the schedule follows the clock."""
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
    # By the clock, in thousandths of the time.
    scheduler = CosineLRScheduler(
        optimizer, t_initial=1000, warmup_t=int(1000 * WARMUP), t_in_epochs=False
    )
    started = time.perf_counter()
    num_updates, part = 0, 0.0
    while part < 1:
        for images, labels in loader:
            scheduler.step_update(int(1000 * part))
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
            num_updates += 1
            part = (time.perf_counter() - started) / task.seconds
            if part >= 1:
                break
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
