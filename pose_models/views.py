"""Test-time augmentation: a classifier that looks at an image several times and averages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose_models.classifier import ImageClassifier

# What may be asked for, and how many more times an image is looked at.
VIEWS = {"flip": 1, "shift": 4, "zoom": 1}
# Parts of an image's side.
_SHIFT = 0.04
_ZOOM = 0.92


class AugmentedClassifier(nn.Module):
    """The mean of a classifier's probabilities for an image and changed copies of it.

    Args:
        classifier: asked about every copy.
        views: names out of `VIEWS`.
        mirrors: class index of each class's mirror image; a flipped image is one of that class.

    Raises:
        ValueError: an unknown view, or flips where a class has no mirror.
    """

    def __init__(
        self, classifier: ImageClassifier, views: Sequence[str], mirrors: Sequence[int]
    ) -> None:
        super().__init__()
        if unknown := sorted(set(views) - set(VIEWS)):
            raise ValueError(f"views must be among {', '.join(VIEWS)}, got {', '.join(unknown)}")
        if "flip" in views and min(mirrors) < 0:
            raise ValueError("flips need a mirror for every class")
        self.classifier = classifier
        self.labels = classifier.labels
        self.views = tuple(views)
        self.mirrors = tuple(mirrors)

    @property
    def num_views(self) -> int:
        """How many times each image is looked at."""
        return 1 + sum(VIEWS[view] for view in self.views)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, num_classes)` float32 whose softmax is the mean over the views.

        Args:
            images: as `ImageClassifier.forward` takes them.
        """
        probs = self._probs(images)
        if "flip" in self.views:
            probs = probs + self._probs(images.flip(3))[:, list(self.mirrors)]
        if "shift" in self.views:
            for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                probs = probs + self._probs(shift(images, down * _SHIFT, right * _SHIFT))
        if "zoom" in self.views:
            probs = probs + self._probs(zoom(images, _ZOOM))
        mean = probs / self.num_views
        return mean.clamp_min(torch.finfo(torch.float32).tiny).log()

    def _probs(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits.float().softmax(dim=1)


def shift(images: Tensor, down: float, right: float) -> Tensor:
    """Images `(N, 3, H, W)` moved by parts of their height and width; the edge is repeated."""
    moved = images
    for dim, part in ((2, down), (3, right)):
        size = images.shape[dim]
        places = torch.arange(size, device=images.device) - round(part * size)
        moved = moved.index_select(dim, places.clamp(0, size - 1))
    return moved


def zoom(images: Tensor, part: float) -> Tensor:
    """The middle `part` of images `(N, 3, H, W)`, in both directions, at the size of the whole."""
    height, width = images.shape[2:]
    inner_height, inner_width = round(part * height), round(part * width)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    middle = images[:, :, top : top + inner_height, left : left + inner_width]
    zoomed = F.interpolate(middle.float(), (height, width), mode="bilinear", align_corners=False)
    if images.is_floating_point():
        return zoomed.to(images.dtype)
    return zoomed.round().clamp(0, 255).to(images.dtype)
