"""Augmentation of whole batches, on the device that trains.

Every image has its own parameters, drawn from a generator by `sample_params`; `augment_batch`
applies them and draws nothing. Crop, flip and rotation are one affine warp; colour follows, then
the operations on photographs, blur, and JPEG compression, as in a camera.
Each operation is that of torchvision's transforms with the same parameters, in floating point
instead of being rounded to whole grey levels in between.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pose.data.streamed import Images
from pose.training.jpeg import compress
from pose.training.operations import (
    GRAY_WEIGHTS,
    OPERATIONS,
    blur,
    change_marked,
    constant,
    operate,
)
from pose_models import Framing

# torchvision's RandomResizedCrop: ratios 3/4 to 4/3, ten attempts, else the whole image.
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# Columns of AugmentParams.color; the first, 0, is brightness.
CONTRAST, SATURATION = 1, 2
CPU_CHUNK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Ranges that the parameters of an augmentation are drawn from; the defaults do nothing.

    Attributes:
        crop_scale: part of the area that a random resized crop keeps; None: no crop.
        flip: flip half of the images horizontally, in classes that have a mirror class.
        rotation: largest angle in degrees, either way.
        zoom: the image is scaled by a factor in [1 - zoom, 1 + zoom].
        shift: largest translation either way, in image sizes.
        fill: what lies outside the crop: `black` as in torchvision, or the `border` pixels.
        brightness, contrast, saturation: largest change of the factor 1, applied in random order.
        sharpness_probability: of sharpening by factor 2.
        num_operations: how many of `pose.training.operations` each image gets, drawn one by one.
        strength: their largest strength, in [0, 1].
        blur_sigma: standard deviations of Gaussian blur in pixels, and its probability.
        jpeg_quality: qualities of JPEG compression, and its probability.
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
    num_operations: int = 0
    strength: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 1.5)
    blur_probability: float = 0.0
    jpeg_quality: tuple[int, int] = (40, 95)
    jpeg_probability: float = 0.0


POSE = Preset(
    flip=True,
    rotation=12,
    zoom=0.15,
    shift=0.08,
    fill="border",
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
)

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
    "pose": POSE,
    # Left and right are learnt sooner where no image shows both; flips pay off in longer runs.
    "pose_unflipped": dataclasses.replace(POSE, flip=False),
    "photo_light": Preset(
        crop_scale=(0.8, 1.0),
        flip=True,
        fill="border",
        brightness=0.1,
        contrast=0.1,
        saturation=0.1,
        blur_sigma=(0.1, 1.0),
        blur_probability=0.1,
        jpeg_quality=(70, 95),
        jpeg_probability=0.3,
    ),
    # One operation of any strength, as TrivialAugment has it.
    "photo": Preset(
        crop_scale=(0.5, 1.0),
        flip=True,
        fill="border",
        num_operations=1,
        blur_probability=0.2,
        jpeg_probability=0.5,
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
        color_order: `(n, 3)` int64, a permutation of 0, 1, 2 per row: the first is applied first.
        is_sharpened: `(n,)` bool; None: no image is.
        fill: as in `Preset`.
        operations: `(n, num_operations)` int64, as in `operate`; None: none.
        strengths: `(n, num_operations)` in -1..1.
        blur_sigma: `(n,)` pixels; 0: not blurred. None: no image is.
        jpeg_quality: `(n,)` 1..100; 0: not compressed. None: no image is.
    """

    crop: Tensor
    is_flipped: Tensor
    angle: Tensor
    color: Tensor | None
    color_order: Tensor | None
    is_sharpened: Tensor | None
    fill: str
    operations: Tensor | None = None
    strengths: Tensor | None = None
    blur_sigma: Tensor | None = None
    jpeg_quality: Tensor | None = None

    def at(self, positions: Tensor) -> "AugmentParams":
        """The parameters of the images at `positions` `(m,)`."""
        found = {name: v[positions] for name, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **found)


def gather(images: Images, rows: Tensor, device: torch.device) -> Tensor:
    """The images at `rows` `(n,)`, on `device`."""
    return images.index_select(0, rows.to(images.device)).to(device)


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

    crop = constant((0.0, 0.0, 1.0, 1.0), device).expand(n, 4)
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
        color = 1 + constant(ranges, device) * (2 * uniform(3) - 1)
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
        **_sample_photographic(preset, uniform),
    )


def _sample_photographic(preset: Preset, uniform: Callable[..., Tensor]) -> dict[str, Tensor]:
    """What happens to the image as a photograph; draws nothing where nothing does."""
    found = {}
    if preset.num_operations:
        draws = uniform(preset.num_operations)
        found["operations"] = (draws * len(OPERATIONS)).long().clamp_(max=len(OPERATIONS) - 1)
        found["strengths"] = preset.strength * (2 * uniform(preset.num_operations) - 1)
    if preset.blur_probability:
        low, high = preset.blur_sigma
        sigma = low + (high - low) * uniform()
        found["blur_sigma"] = sigma * (uniform() < preset.blur_probability)
    if preset.jpeg_probability:
        lowest, highest = preset.jpeg_quality
        quality = (lowest + (highest - lowest + 1) * uniform()).floor().clamp_(max=highest)
        found["jpeg_quality"] = quality * (uniform() < preset.jpeg_probability)
    return found


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


def take_windows(
    params: AugmentParams, framing: Framing, generator: torch.Generator
) -> AugmentParams:
    """`params` of a random square of each canvas, at its own scale, instead of all of it."""
    free = framing.canvas - framing.size
    draws = torch.rand(len(params.crop), 2, generator=generator, device=params.crop.device)
    # Whole pixels: without other augmentation, a square's pixels are the canvas's own.
    left_top = (draws * (free + 1)).floor().clamp_(max=free)
    crop = torch.cat(
        [left_top + params.crop[:, :2] * framing.size, params.crop[:, 2:] * framing.size], dim=1
    )
    return dataclasses.replace(params, crop=crop / framing.canvas)


def augment_batch(images: Tensor, params: AugmentParams, image_size: int) -> Tensor:
    """Augmented images `(n, 3, image_size, image_size)` float32 in 0..1.

    Args:
        images: `(n, 3, S, S)` uint8.
    """
    n, device = len(images), images.device
    across, down = _turn(params.angle, image_size)
    scale, offset = _crop_coefficients(params)
    source_across, source_down = across * scale + offset, down * scale
    if params.color is not None:
        matrices, mean_matrices = _color_coefficients(params.color, params.color_order)
    out = torch.empty(n, 3, image_size, image_size, device=device)
    # On a CPU a few images at a time stay in the second-level cache: half the time of all at once.
    chunk = CPU_CHUNK if device.type == "cpu" else n
    for start in range(0, n, chunk):
        part = slice(start, start + chunk)
        # Planes of x and of y: grid_sample takes them as they are, and affine_grid is 5 times
        # slower.
        grid = (source_across[part] + source_down[part]).permute(0, 2, 3, 1)
        source = images[part].to(torch.float32)
        x = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
        if params.fill == "black":
            x = x.mul_(_brightness(across[part], down[part]))
        else:
            x = x.mul_(1 / 255)
        if params.color is not None:
            x = _jitter_color(x, matrices[part], mean_matrices[part])
        if params.is_sharpened is not None:
            x = _sharpen(x, params.is_sharpened[part])
        out[part] = _photograph(x, params, part)
    return out


def _photograph(images: Tensor, params: AugmentParams, part: slice) -> Tensor:
    """Operations, blur and JPEG compression of the images that `part` of `params` belongs to."""
    if params.operations is not None:
        images = operate(images, params.operations[part], params.strengths[part])
    if params.blur_sigma is not None:
        sigma = params.blur_sigma[part]
        # Those that stay get some blur for the device that computes all.
        images = change_marked(images, sigma > 0, blur, sigma.clamp(min=0.1))
    if params.jpeg_quality is not None:
        quality = params.jpeg_quality[part]
        images = change_marked(images, quality > 0, compress, quality.clamp(min=1))
    return images


def _turn(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the turned crop in -1..1, x first.

    A pixel's coordinates are the sum of what its column `(n, 2, 1, size)` and its row
    `(n, 2, size, 1)` give.
    """
    axis = (torch.arange(size, device=angle.device) + 0.5) * (2 / size) - 1
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    across = torch.stack([cos * axis, sin * axis], dim=1)[:, :, None, :]
    down = torch.stack([-sin * axis, cos * axis], dim=1)[:, :, :, None]
    return across, down


def _crop_coefficients(params: AugmentParams) -> tuple[Tensor, Tensor]:
    """Crop coordinates in -1..1 to image coordinates, flips included.

    Both scale and offset are `(n, 2, 1, 1)`, x first.
    """
    left_top, extent = params.crop[:, :2], params.crop[:, 2:]
    offset = 2 * left_top + extent - 1
    sign = torch.where(params.is_flipped, -1.0, 1.0)
    scale = torch.stack([extent[:, 0] * sign, extent[:, 1]], dim=1)
    return scale[:, :, None, None], offset[:, :, None, None]


def _brightness(across: Tensor, down: Tensor) -> Tensor:
    """The factors of grey levels, `(n, 1, size, size)`: 1/255 in the crop, 0 around it.

    As in torchvision's rotation, the picture fades to black over a pixel at the crop's edge.
    """
    size = across.shape[-1]
    # The fading along x and along y, both negative: the signs cancel in their product.
    edge = (across * (size / 2) + down * (size / 2)).abs_()
    edge.sub_((size + 1) / 2).clamp_(-1, 0)
    return edge[:, :1].mul_(edge[:, 1:]).mul_(1 / 255)


def _color_coefficients(color: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices of the three turns of each image, both `(n, 3, 3, 3)` (turn, out, in).

    The first is what a turn does to the channels, the second what it adds to them of the image's
    mean channels.

    Brightness, contrast and saturation all blend the image with something, which is black, the
    mean grey, or the grey image: so a batch of mixed orders is one small matrix product per turn.
    """
    factor = color.gather(1, order)[:, :, None, None]
    operation = order[:, :, None, None]
    gray = constant(GRAY_WEIGHTS, color.device).expand(3, 3)
    matrices = factor * torch.eye(3, device=color.device)
    matrices = matrices + (operation == SATURATION) * (1 - factor) * gray
    return matrices, (operation == CONTRAST) * (1 - factor) * gray


def _jitter_color(images: Tensor, matrices: Tensor, mean_matrices: Tensor) -> Tensor:
    """Brightness, contrast and saturation in each image's own order, clamped after each."""
    flat = images.flatten(2)
    for turn in range(3):
        added = torch.bmm(mean_matrices[:, turn], flat.mean(dim=2, keepdim=True))  # (n, 3, 1)
        flat = torch.baddbmm(added, matrices[:, turn], flat).clamp_(0, 1)
    return flat.view(images.shape)


def _sharpen(images: Tensor, is_sharpened: Tensor) -> Tensor:
    """As torchvision's `adjust_sharpness` with factor 2 where marked; borders stay. In place."""
    if images.device.type == "cpu":
        index = is_sharpened.nonzero()[:, 0]
        chosen, amount = images[index], 1.0
    else:
        # Picking images would make the device wait for the count: all pay for the operation.
        chosen, amount = images, is_sharpened.view(-1, 1, 1, 1).float()
    box = chosen[:, :, :-2] + chosen[:, :, 1:-1]
    box += chosen[:, :, 2:]
    box = (box[..., :-2] + box[..., 1:-1]).add_(box[..., 2:])
    inner = chosen[:, :, 1:-1, 1:-1]
    # The blur is the 3x3 sum with four more centres, over 13; what it takes away is added.
    inner.mul_(1 + amount * (9 / 13)).sub_(box.mul_(amount / 13)).clamp_(0, 1)
    if images.device.type == "cpu":
        images[index] = chosen
    return images
