"""Augmentation of whole batches, on the device that trains.

Every image has its own parameters, drawn from a generator by `sample_params`; `augment_batch`
applies them and draws nothing. Crop, flip and rotation are one affine warp; colour follows.
Each operation is that of torchvision's transforms with the same parameters, on floating point
instead of rounded to whole grey levels in between.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pose.config import Recipe

# torchvision's RandomResizedCrop: ratios 3/4 to 4/3, ten attempts, else the whole image.
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# Luma of ITU-R BT.601 as torchvision rounds it.
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Ranges that the parameters of an augmentation are drawn from; the defaults do nothing.

    Attributes:
        crop_scale: part of the area that a random resized crop keeps; None: no crop.
        flip: horizontal flips of half of the images, of classes that have a mirror class.
        rotation: largest angle in degrees, either way.
        zoom: the image is scaled by a factor in [1 - zoom, 1 + zoom].
        shift: largest translation either way, in image sizes.
        fill: what lies outside the crop: `black` as in torchvision, or the `border` pixels.
        brightness, contrast, saturation: largest change of the factor 1, applied in random order.
        sharpness_probability: of sharpening by factor 2.
    """

    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    fill: str = "black"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness_probability: float = 0.0


PRESETS: dict[str, Preset] = {
    "none": Preset(),
    "baseline": Preset(crop_scale=(0.9, 1.0), flip=True, rotation=15),
    "ensemble_1": Preset(flip=True, rotation=15),
    "ensemble_2": Preset(
        crop_scale=(0.8, 1.0),
        flip=True,
        rotation=15,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        sharpness_probability=0.3,
    ),
    "pose": Preset(
        flip=True,
        rotation=12,
        zoom=0.15,
        shift=0.08,
        fill="border",
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentParams:
    """What happens to each of `n` images.

    Attributes:
        crop: `(n, 4)` left, top, width, height in image sizes, so (0, 0, 1, 1) is everything.
        is_flipped: `(n,)` bool.
        angle: `(n,)` radians, counter-clockwise.
        color: `(n, 3)` factors of brightness, contrast, saturation; None: all are 1.
        color_order: `(n, 3)` int64, a permutation of 0, 1, 2 a row: the first is applied first.
        is_sharpened: `(n,)` bool; None: no image is.
        fill: as in `Preset`.
    """

    crop: Tensor
    is_flipped: Tensor
    angle: Tensor
    color: Tensor | None
    color_order: Tensor | None
    is_sharpened: Tensor | None
    fill: str


def gather(images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """The rows of `images` `(N, 3, S, S)` in channels-last memory order, on `device`."""
    pixels = images.permute(0, 2, 3, 1).index_select(0, rows.to(images.device))
    return pixels.to(device).permute(0, 3, 1, 2)


def sample_params(
    preset: Preset, labels: Tensor, mirrors: Tensor, generator: torch.Generator
) -> AugmentParams:
    """Parameters for images of classes `labels` `(n,)`, on the generator's device.

    Args:
        mirrors: `(num_classes,)` int64; images of a class with -1 are never flipped.
    """
    n, device = len(labels), generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, device=device)

    crop = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(n, 4)
    if preset.crop_scale:
        crop = _sample_crops(preset.crop_scale, uniform(CROP_ATTEMPTS, 2), uniform(2))
    if preset.zoom or preset.shift:
        size = 1 + preset.zoom * (2 * uniform(1) - 1)
        center = 0.5 + preset.shift * (2 * uniform(2) - 1)
        crop = torch.cat([center - size / 2, size, size], dim=1)
    is_flipped = torch.zeros(n, dtype=torch.bool, device=device)
    if preset.flip:
        is_flipped = (uniform() < 0.5) & (mirrors[labels] >= 0)
    angle = math.radians(preset.rotation) * (2 * uniform() - 1)
    color = color_order = None
    ranges = (preset.brightness, preset.contrast, preset.saturation)
    if any(ranges):
        color = 1 + torch.tensor(ranges, device=device) * (2 * uniform(3) - 1)
        color_order = uniform(3).argsort(dim=1)
    is_sharpened = None
    if preset.sharpness_probability:
        is_sharpened = uniform() < preset.sharpness_probability
    return AugmentParams(
        crop=crop,
        is_flipped=is_flipped,
        angle=angle,
        color=color,
        color_order=color_order,
        is_sharpened=is_sharpened,
        fill=preset.fill,
    )


def _sample_crops(scale: tuple[float, float], attempts: Tensor, position: Tensor) -> Tensor:
    """Boxes `(n, 4)` as torchvision's RandomResizedCrop draws them from square images."""
    area = scale[0] + (scale[1] - scale[0]) * attempts[..., 0]
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = torch.exp(low + (high - low) * attempts[..., 1])
    widths, heights = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (widths <= 1) & (heights <= 1)
    # The first attempt that fits; where none does, the whole image.
    first = fits.int().argmax(dim=1, keepdim=True)
    whole = torch.ones_like(widths[:, :1])
    width = torch.where(fits.any(dim=1, keepdim=True), widths.gather(1, first), whole)
    height = torch.where(fits.any(dim=1, keepdim=True), heights.gather(1, first), whole)
    size = torch.cat([width, height], dim=1)
    return torch.cat([position * (1 - size), size], dim=1)


def augment_batch(images: Tensor, params: AugmentParams, image_size: int) -> Tensor:
    """Augmented images `(n, 3, image_size, image_size)` float32 in 0..1.

    Args:
        images: `(n, 3, S, S)` uint8, at least as large as `image_size` for a sharp result.
    """
    out = warp(images, params, image_size)
    if params.color is not None:
        out = jitter_color(out, params.color, params.color_order)
    if params.is_sharpened is not None:
        out = sharpen(out, params.is_sharpened)
    return out


def warp(images: Tensor, params: AugmentParams, image_size: int) -> Tensor:
    """Crop, flip and rotate in one resampling, `(n, 3, image_size, image_size)` float32."""
    n, size = len(images), images.shape[-1]
    cos, sin = params.angle.cos(), params.angle.sin()
    sign = torch.where(params.is_flipped, -1.0, 1.0)
    # Output coordinates in -1..1 are rotated back, then flipped back: coordinates in the crop.
    rotation = torch.stack([sign * cos, -sign * sin, sin, cos], dim=1).view(n, 2, 2)
    axis = (torch.arange(image_size, device=images.device) * 2 + 1) / image_size - 1
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([xs, ys], dim=-1).view(1, -1, 2)
    in_crop = points @ rotation.transpose(1, 2)
    left_top, extent = params.crop[:, None, :2], params.crop[:, None, 2:]
    grid = 2 * left_top + extent * (in_crop + 1) - 1
    # Half a pixel inside, where bilinear sampling needs no neighbour beyond the edge.
    grid = grid.clamp(-1 + 1 / size, 1 - 1 / size)
    if params.fill == "black":
        outside = in_crop.abs().amax(dim=-1, keepdim=True) > 1
        grid = grid.masked_fill(outside, -3.0)
    grid = grid.view(n, image_size, image_size, 2)
    source = images.to(torch.float32) / 255
    return F.grid_sample(source, grid, padding_mode="zeros", align_corners=False)


def jitter_color(images: Tensor, color: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast and saturation by `color` in each image's own `order`.

    Each is a blend of the image with something: black, its mean grey, its grey version.
    """
    weights = torch.tensor(GRAY_WEIGHTS, device=images.device).view(1, 3, 1, 1)
    for turn in range(3):
        operation = order[:, turn].view(-1, 1, 1, 1)
        factor = color.gather(1, order[:, turn : turn + 1]).view(-1, 1, 1, 1)
        gray = (images * weights).sum(dim=1, keepdim=True)
        blend = torch.where(operation == 1, gray.mean(dim=(2, 3), keepdim=True), gray)
        blend = blend * (operation != 0)
        images = torch.lerp(blend, images, factor).clamp_(0, 1)
    return images


def sharpen(images: Tensor, is_sharpened: Tensor) -> Tensor:
    """torchvision's `adjust_sharpness` with factor 2 for the images marked; borders stay."""
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=images.device) / 13
    blurred = F.conv2d(images, kernel.expand(3, 1, 3, 3), groups=3)
    inner = images[:, :, 1:-1, 1:-1]
    amount = is_sharpened.view(-1, 1, 1, 1).float()
    out = images.clone()
    out[:, :, 1:-1, 1:-1] = (inner + amount * (inner - blurred)).clamp_(0, 1)
    return out


def mix_batch(
    images: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random erasing, then mixup or cutmix, where the recipe asks for them.

    Mixup (Zhang et al., 2017, arXiv:1710.09412) and cutmix (Yun et al., 2019, arXiv:1905.04899)
    take turns by chance when both are on. Erasing (Zhong et al., 2017, arXiv:1708.04896) fills a
    rectangle of 2 to 20 % of the area with the image's mean colour.

    Returns:
        images `(n, 3, H, W)`; targets: `labels` `(n,)`, or `(n, num_classes)` float32 if mixed.
    """
    device = images.device
    if recipe.random_erasing:
        images = _erase(images, recipe.random_erasing, generator)
    if not (recipe.mixup_alpha or recipe.cutmix_alpha):
        return images, labels
    is_cutmix = recipe.cutmix_alpha > 0
    if recipe.mixup_alpha and recipe.cutmix_alpha:
        is_cutmix = float(torch.rand((), generator=generator, device=device)) < 0.5
    alpha = recipe.cutmix_alpha if is_cutmix else recipe.mixup_alpha
    share = _sample_beta(alpha, generator)
    one_hot = F.one_hot(labels, num_classes).float()
    # Each image with its neighbour: batches are shuffled already.
    others = images.roll(1, dims=0)
    if is_cutmix:
        center = torch.rand(1, 2, generator=generator, device=device)
        is_cut = _rectangles(center, (1 - share).sqrt().expand(1, 2), images.shape[-2:])
        images = torch.where(is_cut, others, images)
        # The rectangle is cut off at the borders, so the share is what was really pasted.
        share = 1 - is_cut.float().mean()
    else:
        images = torch.lerp(others, images, share)
    return images, torch.lerp(one_hot.roll(1, dims=0), one_hot, share)


def _sample_beta(alpha: float, generator: torch.Generator) -> Tensor:
    """One draw of Beta(alpha, alpha); torch's own sampler takes no generator."""
    # Jöhnk's method (1964): exact for every alpha, and quick for those up to 1 that mixing uses.
    while True:
        u, v = torch.rand(2, generator=generator, device=generator.device) ** (1 / alpha)
        if 0 < float(u + v) <= 1:
            return u / (u + v)


def _erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    n, device = len(images), images.device
    draws = torch.rand(n, 5, generator=generator, device=device)
    area = 0.02 + 0.18 * draws[:, 1]
    ratio = torch.exp(math.log(3.3) * (2 * draws[:, 2] - 1))
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1)
    is_erased = _rectangles(draws[:, 3:], size, images.shape[-2:])
    is_erased = is_erased & (draws[:, 0] < probability).view(-1, 1, 1, 1)
    return torch.where(is_erased, images.mean(dim=(2, 3), keepdim=True), images)


def _rectangles(center: Tensor, size: Tensor, shape: tuple[int, int]) -> Tensor:
    """Masks `(n, 1, H, W)` of rectangles by centre and size `(n, 2)` (x, y) in image sizes."""
    masks = []
    for dim, length in ((0, shape[1]), (1, shape[0])):
        axis = (torch.arange(length, device=center.device) + 0.5) / length
        masks.append((axis - center[:, dim : dim + 1]).abs() < size[:, dim : dim + 1] / 2)
    return (masks[1][:, :, None] & masks[0][:, None, :])[:, None]
