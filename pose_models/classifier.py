"""The module that is trained, saved, loaded and served."""

import math

import torch
from torch import Tensor, nn

from pose_models.preprocess import Preprocess


class ImageClassifier(nn.Module):
    """Preprocessing and network in one module: raw RGB images in, logits out.

    Attributes:
        labels: the label of each column of the logits, as in the training data.
    """

    def __init__(self, preprocess: Preprocess, network: nn.Module, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.labels = labels

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, num_classes)` float32 of RGB images; the mean over an image's crops.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1, any H and W.
        """
        views = [self._logits(view) for view in self.preprocess.views(images)]
        if len(views) == 1:
            return views[0]
        return log_of_mean_probs(torch.stack(views))

    def _logits(self, rgb: Tensor) -> Tensor:
        logits: Tensor = self.network(self.preprocess.normalise(rgb))
        return logits.float()


def log_of_mean_probs(logits: Tensor) -> Tensor:
    """Logits `(N, C)` whose softmax is the mean of the probabilities of `logits` `(V, N, C)`."""
    # In logarithms, where no probability is too small.
    return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
