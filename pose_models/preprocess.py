"""From raw RGB images to the channels that a network sees."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Resizes and normalises; adds the high-pass channel of `simple_cnn_v2` where asked to.

    Args:
        image_size: height and width of the output.
        high_pass: append a fourth channel. Its mean and standard deviation are those of the
            published competition data until `fit_high_pass` replaces them.
    """

    mean: Tensor  # (1, num_channels, 1, 1)
    std: Tensor

    def __init__(self, image_size: int, *, high_pass: bool = False) -> None:
        super().__init__()
        self.image_size = image_size
        self.has_high_pass = high_pass
        mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
        if high_pass:
            mean.append(0.0034316)
            std.append(0.0380552)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @property
    def num_channels(self) -> int:
        """Channels of the output: 3, or 4 with the high-pass channel."""
        return self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """The network's input for RGB images.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1, any H and W.

        Returns:
            `(N, num_channels, image_size, image_size)` float32.

        Raises:
            ValueError: another shape.
        """
        # One pass over the pixels instead of two: 1 % of a training step.
        return torch.addcmul(-self.mean / self.std, self.channels(images), 1 / self.std)

    def channels(self, images: Tensor) -> Tensor:
        """What `forward` gives, before normalisation."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
        size = (self.image_size, self.image_size)
        # Dividing promotes integers to float32; floating point stays in 0..1 as it is.
        rgb = images.float() if images.is_floating_point() else images / 255
        # An exported graph takes one branch for ever: it must be the one for every size.
        if torch.compiler.is_exporting() or images.shape[-2:] != size:
            # Antialiased, as Pillow resizes; without it a large photograph would shimmer.
            rgb = F.interpolate(rgb, size, mode="bilinear", antialias=True, align_corners=False)
        if not self.has_high_pass:
            return rgb
        return torch.cat([rgb, high_pass(rgb)], dim=1)

    @torch.no_grad()
    def fit_high_pass(self, batches: Iterable[Tensor]) -> None:
        """Set the high-pass channel's mean and standard deviation from batches of images."""
        count, total, total_of_squares = 0, 0.0, 0.0
        for images in batches:
            values = self.channels(images)[:, 3].double()
            count += values.numel()
            total += float(values.sum())
            total_of_squares += float(values.square().sum())
        mean = total / count
        self.mean[0, 3] = mean
        # A floor for data without any edges: blank images must not divide by zero.
        self.std[0, 3] = max(total_of_squares / count - mean**2, 1e-12) ** 0.5
