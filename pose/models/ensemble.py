"""Several classifiers as one module."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pose.models.classifier import ImageClassifier


class SeedEnsemble(nn.Module):
    """Soft vote of classifiers, whatever their networks and image sizes.

    Attributes:
        labels: the label of each column of the logits.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.labels = members[0].labels

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, num_classes)` float32 whose softmax is the mean of the members' softmax.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1, any H and W.
        """
        log_probs = torch.stack([member(images).log_softmax(dim=1) for member in self.members])
        return log_probs.logsumexp(dim=0) - math.log(len(self.members))
