"""JPEG compression of batches, each image by a quality of its own, without a file.

What loses something is done, as libjpeg does it (ITU-T T.81): whole grey levels, YCbCr with colour
at half the resolution, discrete cosine transforms of 8 x 8 blocks, rounded to multiples of the
quality's quantisation table, and back. What loses nothing, the entropy coding, is not.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pose.training.operations import constant

BLOCK = 8
# T.81, annex K: of brightness and of colour, row by row.
LUMA_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMA_TABLE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip
# JFIF: rows of Y, Cb, Cr on columns of R, G, B.
RGB_TO_YCC = (
    0.299, 0.587, 0.114,
    -0.299 / 1.772, -0.587 / 1.772, 0.5,
    0.5, -0.587 / 1.402, -0.114 / 1.402,
)  # fmt: skip
YCC_TO_RGB = (
    1.0, 0.0, 1.402,
    1.0, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587,
    1.0, 1.772, 0.0,
)  # fmt: skip
# Rows are the frequencies of a block's side.
COSINES = tuple(
    math.sqrt((1 if row == 0 else 2) / BLOCK)
    * math.cos(math.pi * (2 * column + 1) * row / (2 * BLOCK))
    for row in range(BLOCK)
    for column in range(BLOCK)
)


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """What a JPEG file would give back of `images`, in whole grey levels of 1/255.

    Args:
        images: `(n, 3, H, W)` float32 in 0..1.
        quality: `(n,)` 1 to 100, as libjpeg and Pillow count it.
    """
    height, width = images.shape[2:]
    # Files have whole blocks, of colour at half the resolution too: the edge is repeated, that of
    # the last row by each of the planes.
    levels = _repeat_edge((images * 255).round(), right=-width % (2 * BLOCK), below=height % 2)
    planes = _mix_channels(levels, RGB_TO_YCC)
    # Brightness in whole levels around 128; colours around 0 are so already.
    luma = _repeat_edge(planes[:, :1].round() - 128, below=-levels.shape[2] % (2 * BLOCK))
    chroma = _halve(planes[:, 1:].round())
    chroma = _repeat_edge(chroma, below=-chroma.shape[2] % BLOCK)
    luma = _quantise(luma, _table(LUMA_TABLE, quality)) + 128
    chroma = _quantise(chroma, _table(CHROMA_TABLE, quality))
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round()
    levels = _mix_channels(torch.cat([luma, chroma], dim=1), YCC_TO_RGB)
    return levels.round().clamp(0, 255)[:, :, :height, :width] / 255


def _repeat_edge(planes: Tensor, *, right: int = 0, below: int = 0) -> Tensor:
    return F.pad(planes, (0, right, 0, below), mode="replicate")


def _mix_channels(planes: Tensor, matrix: tuple[float, ...]) -> Tensor:
    mixed = torch.matmul(constant(matrix, planes.device).view(3, 3), planes.flatten(2))
    return mixed.view(planes.shape)


def _halve(planes: Tensor) -> Tensor:
    """Means of 2 x 2 pixels in whole levels; halves go down and up in turn, as libjpeg has them."""
    means = F.avg_pool2d(planes, 2)
    is_odd = torch.arange(means.shape[-1], device=planes.device) % 2
    return (means + 0.25 + 0.25 * is_odd).floor()


def _table(table: tuple[int, ...], quality: Tensor) -> Tensor:
    """The quantisation table of each quality, `(n, 64)`, scaled as libjpeg does."""
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    base = constant(tuple(map(float, table)), quality.device)
    return ((base * scale[:, None] + 50) / 100).floor().clamp(1, 255)


def _quantise(planes: Tensor, tables: Tensor) -> Tensor:
    """`planes` `(n, channels, H, W)` around 0 after rounding their blocks' frequencies."""
    n, channels, height, width = planes.shape
    cosines = constant(COSINES, planes.device).view(BLOCK, BLOCK)
    # Of both directions at once: (64 frequencies, 64 pixels of a block).
    transform = torch.kron(cosines, cosines)
    # (n, channels, 64, blocks): the 64 pixels of a block, row by row.
    blocks = F.pixel_unshuffle(planes, BLOCK).view(n, channels, BLOCK**2, -1)
    steps = tables[:, None, :, None]
    # libjpeg's transform gives whole eighths.
    frequencies = (torch.matmul(transform, blocks) * 8).round() / 8
    frequencies = _round_away(frequencies / steps) * steps
    blocks = torch.matmul(transform.T, frequencies)
    blocks = blocks.view(n, channels * BLOCK**2, height // BLOCK, width // BLOCK)
    return F.pixel_shuffle(blocks, BLOCK).round().clamp(-128, 127)


def _round_away(values: Tensor) -> Tensor:
    """Rounded, halves away from 0, as libjpeg does; a block's mean is a half in every eighth."""
    return values.sign() * (values.abs() + 0.5).floor()
