"""The module that is trained, saved, loaded and served."""

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
        """Logits `(N, num_classes)` float32 of RGB images.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1, any H and W.
        """
        logits: Tensor = self.network(self.preprocess(images))
        return logits.float()
