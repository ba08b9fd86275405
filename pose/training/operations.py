"""Operations on batches of photographs, each image by a strength of its own.

Those of RandAugment (Cubuk et al., 2019, arXiv:1909.13719) and TrivialAugment (Mueller and Hutter,
2021, arXiv:2103.10158) that are operations on values; the crop and the rotation are those of the
affine warp. Equalising is left out: it is made of a histogram of whole grey levels, which these
images do not have. Gaussian blur stands beside them.

Images are `(n, 3, H, W)` float32 in 0..1, and so are results. Each is that of torchvision's
`transforms.v2` with the same parameters.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Luma of ITU-R BT.601 as torchvision rounds it.
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
# What strength 1 means, in RandAugment: factors of 0.1 and 1.9, and 4 of 8 bits.
LARGEST_CHANGE = 0.9
MOST_BITS_LOST = 4
# A kernel of 9 pixels reaches 2.7 standard deviations of the strongest blur of a preset.
BLUR_RADIUS = 4


@functools.cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` on the device, only to be read.

    Copied there once: a copy waits for the host in every batch, and cannot be part of a CUDA graph.
    """
    return torch.tensor(values, device=device)


def change_marked(
    images: Tensor, is_marked: Tensor, change: Callable[..., Tensor], *values: Tensor
) -> Tensor:
    """`images` with `change(images, *values)` in the place of those that are marked `(n,)`.

    Args:
        values: `(n,)`, one per image.
    """
    if images.device.type == "cpu":
        index = is_marked.nonzero()[:, 0]
        if len(index):
            images[index] = change(images[index], *(value[index] for value in values))
        return images
    # Picking images would make the device wait for the count: all pay for the operation.
    return torch.where(is_marked.view(-1, 1, 1, 1), change(images, *values), images)


def operate(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Operations of `OPERATIONS`, one per turn.

    Args:
        operations: `(n, num_turns)` int64 places in `OPERATIONS`; any other number does nothing.
        strengths: `(n, num_turns)` in -1..1; the sign counts where there are two directions.
    """
    for operation, strength in zip(operations.T, strengths.T, strict=True):
        for place, change in enumerate(OPERATIONS.values()):
            images = change_marked(images, operation == place, change, strength)
    return images


def _factor(strength: Tensor) -> Tensor:
    return _per_image(1 + LARGEST_CHANGE * strength)


def _per_image(values: Tensor) -> Tensor:
    """`(n,)` as `(n, 1, 1, 1)`."""
    return values.view(-1, 1, 1, 1)


def _gray(images: Tensor) -> Tensor:
    """`(n, 1, H, W)`."""
    weights = constant(GRAY_WEIGHTS, images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _blend(images: Tensor, others: Tensor, strength: Tensor) -> Tensor:
    """Away from `others` by a positive strength, towards them by a negative one."""
    return torch.lerp(others, images, _factor(strength)).clamp_(0, 1)


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Factors of 0.1 to 1.9 for strengths of -1 to 1."""
    return (images * _factor(strength)).clamp_(0, 1)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """The distance from the mean grey, by 0.1 to 1.9."""
    return _blend(images, _gray(images).mean(dim=(2, 3), keepdim=True).expand_as(images), strength)


def saturation(images: Tensor, strength: Tensor) -> Tensor:
    """The distance from the grey image, by 0.1 to 1.9."""
    return _blend(images, _gray(images).expand_as(images), strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """The distance from a slightly blurred image, by 0.1 to 1.9; the border stays."""
    box = F.avg_pool2d(images, 3, stride=1) * 9
    inner = images[:, :, 1:-1, 1:-1]
    smooth = (box + 4 * inner) / 13
    return F.pad(_blend(inner, smooth, strength) - inner, (1, 1, 1, 1)) + images


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Only the upper 8 to 4 of 8 bits, for strengths of 0 to 1 either way."""
    levels = _per_image(2 ** (8 - (MOST_BITS_LOST * strength.abs()).round()))
    return torch.minimum((images * levels).floor(), levels - 1) / levels


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Inverts what is at least as bright as 1 - strength, either way."""
    threshold = _per_image(1 - strength.abs())
    return torch.where(images >= threshold, 1 - images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretches each channel to 0..1; has no strength. A channel of one value stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    is_flat = high == low
    span = torch.where(is_flat, 1.0, high - low)
    return ((images - torch.where(is_flat, 0.0, low)) / span).clamp_(0, 1)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
}


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a kernel of 9 x 9 pixels, mirrored at the edges.

    Args:
        sigma: `(n,)` standard deviations in pixels, above 0.
    """
    n, channels, height, width = images.shape
    radius = min(BLUR_RADIUS, height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    # Every channel of every image is a group of its own: each has its own kernel.
    planes = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, weights[:, None, :, None], groups=n * channels)
    planes = F.conv2d(planes, weights[:, None, None, :], groups=n * channels)
    # The weights' sum misses 1 by a rounding.
    return planes.view(images.shape).clamp_(0, 1)
