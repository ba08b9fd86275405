"""The original recipe, rebuilt from DESIGN.md sections 3 and 4: the baseline of the comparisons.

Every image is opened with Pillow and transformed by torchvision each time it is used, in the worker
processes of a DataLoader; networks in NCHW and float32, ReLU before pooling, Adam at 0.001.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the high-pass channel, over the published data.
HIGH_PASS_MEAN, HIGH_PASS_STD = 0.0034316, 0.0380552
HIGH_PASS_KERNEL = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).view(1, 1, 3, 3) / 4
BATCH_SIZE = 64

# Yields `(images, labels)`.
Batches = DataLoader[Any]


class OriginalImages(Dataset[tuple[Tensor, int]]):
    """Images of files, transformed one by one.

    Args:
        labels: `(N,)` int64.
        preset: augmentation preset; `none` for evaluation.
        high_pass: append the fourth channel of `simple_cnn_v2`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: np.ndarray,
        *,
        preset: str,
        image_size: int,
        high_pass: bool,
    ) -> None:
        self.files = files
        self.labels = labels
        self.transform = build_transform(preset, image_size)
        mean, std = list(MEAN), list(STD)
        if high_pass:
            mean, std = [*MEAN, HIGH_PASS_MEAN], [*STD, HIGH_PASS_STD]
        self.high_pass = high_pass
        self.normalize = transforms.Normalize(mean, std)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.files[row]) as image:
            rgb = self.transform(image.convert("RGB"))
        if self.high_pass:
            gray = rgb.mean(dim=0, keepdim=True)
            rgb = torch.cat([rgb, F.conv2d(gray[None], HIGH_PASS_KERNEL, padding=1)[0]])
        return self.normalize(rgb), int(self.labels[row])


def build_transform(preset: str, image_size: int) -> transforms.Compose:
    """Pillow image to `(3, image_size, image_size)` float32 in 0..1."""
    size = (image_size, image_size)
    steps = {
        "none": [transforms.Resize(size)],
        "baseline": [
            transforms.RandomResizedCrop(size, scale=(0.9, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
        ],
        "ensemble_1": [
            transforms.Resize(size),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
        ],
        "ensemble_2": [
            transforms.RandomResizedCrop(size, scale=(0.8, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.RandomAdjustSharpness(2, p=0.3),
        ],
    }
    return transforms.Compose([*steps[preset], transforms.ToTensor()])


class OriginalCNN(nn.Module):
    """`simple_cnn`, or `simple_cnn_v2` with 4 channels and no convolution bias."""

    def __init__(self, num_classes: int, *, high_pass: bool) -> None:
        super().__init__()
        widths = (4 if high_pass else 3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(width_in, width_out, 3, padding=1, bias=not high_pass),
                nn.BatchNorm2d(width_out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """`(N, channels, H, W)` normalised float32 to logits `(N, num_classes)`."""
        return self.classifier(self.features(images))


def build_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Adam with torch's defaults, learning rate 0.001."""
    return torch.optim.Adam(network.parameters(), lr=1e-3)


def epoch_batches(images: OriginalImages, *, shuffle: bool, num_workers: int = 2) -> Batches:
    """One pass over the images in batches of 64."""
    return DataLoader(images, BATCH_SIZE, shuffle=shuffle, num_workers=num_workers)


def endless_batches(images: OriginalImages, *, num_workers: int = 2) -> Iterator[Any]:
    """Batches of random images without end: the steady state of an epoch.

    The original waits for its workers at each epoch's start; this leaves that out.
    """
    sampler = RandomSampler(images, replacement=True, num_samples=2**40)
    return iter(DataLoader(images, BATCH_SIZE, sampler=sampler, num_workers=num_workers))


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """One optimizer step on a batch; the loss, read at once as the original did."""
    device = next(network.parameters()).device
    optimizer.zero_grad()
    loss = F.cross_entropy(network(images.to(device)), labels.to(device))
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def predict_logits(network: nn.Module, batches: Iterable[Any]) -> Tensor:
    """Logits `(N, num_classes)` on the CPU of batches `(images, labels)`."""
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network(images.to(device)).cpu() for images, _ in batches])
