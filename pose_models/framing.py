"""How an image of any size becomes the squares that a network sees."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RULES = ("resize", "crop", "fit")
# Mean of ImageNet's RGB values: what a network sees of it is about zero.
PADDING = (0.485, 0.456, 0.406)
# A 4 x 4 grid at most: more crops per side cost more than they add.
MAX_CROPS_PER_SIDE = 4


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Framing:
    """From an image to the canvas that is decoded, and from there to the network's squares.

    Attributes:
        size: height and width that the network sees.
        rule: `resize` stretches the image to the square; `fit` keeps its aspect ratio and pads
            the rest; `crop` keeps its scale and takes squares out of it.
        crop_from: height and width of the canvas that `crop` takes squares from. Larger images
            are made smaller until they fit; what a smaller one leaves free is filled by mirroring
            the image at its edges.
    """

    size: int
    rule: str = "resize"
    crop_from: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Framing":
        """The framing of a recipe's settings by name; one that is missing does nothing."""
        rule = settings.get("framing", "resize")
        return cls(
            size=settings["image_size"],
            rule=rule,
            crop_from=settings["crop_from"] if rule == "crop" else 0,
        )

    @property
    def canvas(self) -> int:
        """Height and width of what is decoded and kept."""
        return self.crop_from if self.rule == "crop" else self.size

    @property
    def views(self) -> tuple[tuple[int, int], ...]:
        """Top and left of each square that is predicted, spread evenly over the canvas."""
        count = min(-(-self.canvas // self.size), MAX_CROPS_PER_SIDE)
        free = self.canvas - self.size
        starts = [round(free * (i / (count - 1) if count > 1 else 0.5)) for i in range(count)]
        return tuple((top, left) for top in starts for left in starts)

    def frame(self, images: Tensor) -> Tensor:
        """Images of one size on their canvas, `(N, 3, canvas, canvas)`.

        Resizing is bilinear and antialiased, as Pillow resizes; without it a large photograph
        would shimmer. What is on its canvas already is returned as it is.

        Args:
            images: `(N, 3, H, W)`, uint8 in 0..255 or floating point in 0..1.
        """
        height, width = images.shape[-2:]
        # An exported graph takes one branch for ever: it must be the one for every size.
        if not torch.compiler.is_exporting() and (height, width) == (self.canvas, self.canvas):
            return images
        if self.rule == "resize":
            return _resize(images, self.size, self.size)
        scale = self.canvas / max(height, width)
        if self.rule == "fit" or scale < 1:
            images = _resize(images, max(1, round(height * scale)), max(1, round(width * scale)))
        return self._pad(images) if self.rule == "fit" else self._mirror(images)

    def crop(self, canvases: Tensor, view: tuple[int, int]) -> Tensor:
        """One square `(N, C, size, size)` of each canvas."""
        top, left = view
        return canvases[..., top : top + self.size, left : left + self.size]

    def _pad(self, images: Tensor) -> Tensor:
        color = torch.tensor(PADDING, device=images.device).view(1, 3, 1, 1)
        if not images.is_floating_point():
            color = (255 * color).round()
        height, width = images.shape[-2:]
        top, left = (self.canvas - height) // 2, (self.canvas - width) // 2
        # Not its `len`, which an export would take for a constant.
        canvas = color.to(images.dtype).expand(images.shape[0], 3, self.canvas, self.canvas).clone()
        canvas[..., top : top + height, left : left + width] = images
        return canvas

    def _mirror(self, images: Tensor) -> Tensor:
        for dim in (-2, -1):
            length = images.shape[dim]
            place = torch.arange(self.canvas, device=images.device) - (self.canvas - length) // 2
            place = place.remainder(2 * length)
            images = images.index_select(dim, torch.minimum(place, 2 * length - 1 - place))
        return images


def as_framing(size: int | Framing) -> Framing:
    """A size alone means that images are stretched to it."""
    return size if isinstance(size, Framing) else Framing(size=size)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if not torch.compiler.is_exporting() and images.shape[-2:] == (height, width):
        return images
    return F.interpolate(
        images, (height, width), mode="bilinear", antialias=True, align_corners=False
    )
