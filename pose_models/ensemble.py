"""Several classifiers as one module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pose_models.classifier import ImageClassifier
from pose_models.combine import SOFT, Combination, combine
from pose_models.views import AugmentedClassifier


class SeedEnsemble(nn.Module):
    """A vote of classifiers, whatever their networks and image sizes.

    Attributes:
        labels: the label of each column of the logits.
        how: the combination that the vote's predictions were made with.
    """

    # For ensembles that were saved before there were other combinations.
    how: Combination = SOFT

    def __init__(
        self, members: Sequence[ImageClassifier | AugmentedClassifier], how: Combination = SOFT
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.labels = members[0].labels
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, num_classes)` float32 whose softmax is the combined probabilities.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1, any H and W.
        """
        probs = torch.stack([member(images).softmax(dim=1) for member in self.members])
        combined = combine(probs, self.how)
        # Finite logits never have a softmax of zero; this is the smallest normal float32.
        return combined.clamp_min(torch.finfo(torch.float32).tiny).log().float()
