"""From raw RGB images to the channels that a network sees."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose_models.framing import Framing, as_framing

# Mean and standard deviation of ImageNet's RGB values in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def high_pass(rgb: Tensor) -> Tensor:
    """The mean of RGB filtered by [[0, -1, 0], [-1, 4, -1], [0, -1, 0]] / 4, zeros around it.

    Slices instead of a convolution: a quarter of the time on a CPU, and full precision under
    autocast, where neighbours differ by less than bfloat16 resolves.

    Args:
        rgb: `(N, 3, H, W)` in 0..1.

    Returns:
        `(N, 1, H, W)`.
    """
    gray = rgb.mean(dim=1, keepdim=True)
    padded = F.pad(gray, (1, 1, 1, 1))
    neighbours = padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1]
    neighbours = neighbours + padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:]
    return gray - neighbours / 4


class Preprocess(nn.Module):
    """Frames and normalises; adds the high-pass channel of `simple_cnn_v2` where asked to.

    Args:
        framing: or the height and width of the output alone, to which images are stretched.
        high_pass: append a fourth channel. Its mean and standard deviation are those of the
            published competition data until `fit_high_pass` replaces them.
        statistics: mean and standard deviation of R, G and B.
    """

    mean: Tensor  # (1, num_channels, 1, 1)
    std: Tensor
    # None in models that were saved before images could be framed in other ways.
    _framing: Framing | None = None

    def __init__(
        self,
        framing: int | Framing,
        *,
        high_pass: bool = False,
        statistics: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        super().__init__()
        self._framing = as_framing(framing)
        self.image_size = self._framing.size
        self.has_high_pass = high_pass
        mean, std = map(list, statistics)
        if high_pass:
            mean.append(0.0034316)
            std.append(0.0380552)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @property
    def framing(self) -> Framing:
        """How images become the squares that the network sees."""
        return self._framing or Framing(size=self.image_size)

    @property
    def num_channels(self) -> int:
        """Channels of the output: 3, or 4 with the high-pass channel."""
        return self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """The network's input for RGB images that have one view: see `views`.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1, any H and W.

        Returns:
            `(N, num_channels, image_size, image_size)` float32.

        Raises:
            ValueError: another shape.
        """
        return self.normalise(next(self.views(images)))

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """The squares of RGB images `(N, 3, image_size, image_size)` in 0..1, view by view.

        One view, except where crops are predicted: training makes its own out of the canvas, and
        hands them over in the network's size.

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
        # Dividing promotes integers to float32; floating point stays in 0..1 as it is.
        rgb = images.float() if images.is_floating_point() else images / 255
        framing = self.framing
        if self.training and rgb.shape[-2:] == (framing.size, framing.size):
            yield rgb
            return
        canvases = framing.frame(rgb)
        for view in framing.views:
            yield framing.crop(canvases, view)

    def normalise(self, rgb: Tensor) -> Tensor:
        """Squares of `views` as the network's input."""
        # One pass over the pixels instead of two: 1 % of a training step.
        return torch.addcmul(-self.mean / self.std, self._channels(rgb), 1 / self.std)

    def _channels(self, rgb: Tensor) -> Tensor:
        if not self.has_high_pass:
            return rgb
        return torch.cat([rgb, high_pass(rgb)], dim=1)

    @torch.no_grad()
    def fit_high_pass(self, batches: Iterable[Tensor]) -> None:
        """Set the high-pass channel's mean and standard deviation from batches of images."""
        count, total, total_of_squares = 0, 0.0, 0.0
        for images in batches:
            for rgb in self.views(images):
                values = high_pass(rgb).double()
                count += values.numel()
                total += float(values.sum())
                total_of_squares += float(values.square().sum())
        mean = total / count
        self.mean[0, 3] = mean
        # A floor for data without any edges: blank images must not divide by zero.
        self.std[0, 3] = max(total_of_squares / count - mean**2, 1e-12) ** 0.5
