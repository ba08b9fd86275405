"""Mixup, cutmix and random erasing of augmented batches, on the device that trains.

All draws come from a generator on that device and stay there: the host reads none of them, so a
step that mixes waits for nothing and can be captured in a CUDA graph.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pose.config import Recipe

# Marsaglia and Tsang's method accepts 95 % of its candidates or more: none of eight is accepted
# once in 10^10 draws, and then the first is used.
GAMMA_ATTEMPTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """What happens to the images of a batch; applying it draws nothing.

    Attributes:
        erasing: `(n, 5)` draws in 0..1 of each image; None: none is erased.
        erasing_probability: of each image.
        own_part: what part of each pixel stays the image's own, `(1, 1, H, W)` or `(1, 1, 1, 1)`;
            None: images are not mixed.
    """

    erasing: Tensor | None
    erasing_probability: float
    own_part: Tensor | None

    def at(self, positions: Tensor) -> "Mixing":
        """What happens to the images at `positions` `(m,)`."""
        if self.erasing is None:
            return self
        return dataclasses.replace(self, erasing=self.erasing[positions])

    def erase(self, images: Tensor) -> Tensor:
        """`images` `(n, 3, H, W)`, of some a rectangle filled with their mean colour."""
        if self.erasing is None:
            return images
        return _erase(images, self.erasing, self.erasing_probability)

    def mix(self, images: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Images `(m, 3, H, W)`, each with its neighbour; default: of a whole batch."""
        if self.own_part is None:
            return images
        if neighbours is None:
            # Each image with the one before it: batches are shuffled already.
            neighbours = images.roll(1, dims=0)
        return torch.lerp(neighbours, images, self.own_part)

    def mix_targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """The targets of a whole batch with these labels, `(n,)` or soft ones."""
        if self.own_part is None:
            return labels
        is_soft = labels.is_floating_point()
        one_hot = labels if is_soft else F.one_hot(labels, num_classes).float()
        return torch.lerp(one_hot.roll(1, dims=0), one_hot, self.own_part.mean())


def sample_mixing(
    num_images: int, shape: tuple[int, int], recipe: Recipe, generator: torch.Generator
) -> Mixing:
    """What the recipe asks for, drawn for so many images of height and width `shape`."""
    erasing = own_part = None
    if recipe.random_erasing:
        erasing = torch.rand(num_images, 5, generator=generator, device=generator.device)
    if recipe.mixup_alpha or recipe.cutmix_alpha:
        own_part = _sample_own_part(recipe, shape, generator)
    return Mixing(erasing=erasing, erasing_probability=recipe.random_erasing, own_part=own_part)


def mix_batch(
    images: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random erasing, then mixup or cutmix, where the recipe asks for them.

    Mixup (Zhang et al., 2017, arXiv:1710.09412) and cutmix (Yun et al., 2019, arXiv:1905.04899)
    take turns by chance when both are on. Erasing (Zhong et al., 2017, arXiv:1708.04896) fills a
    rectangle of 2 to 20 % of the area with the image's mean colour.

    Returns:
        images `(n, 3, H, W)`; targets: `labels`, `(n,)` or soft ones `(n, num_classes)`; of the
        latter form, float32, if mixed.
    """
    mixing = sample_mixing(len(images), images.shape[-2:], recipe, generator)
    return mixing.mix(mixing.erase(images)), mixing.mix_targets(labels, num_classes)


def _sample_own_part(recipe: Recipe, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """What part of each pixel stays the image's own, `(1, 1, H, W)` or `(1, 1, 1, 1)` in 0..1.

    Mixup: one share everywhere; cutmix: 0 in a rectangle, which is cut off at the borders, and 1
    around it. The mean is the label's share either way.
    """
    if recipe.mixup_alpha:
        share = mixed = sample_beta(recipe.mixup_alpha, generator).view(1, 1, 1, 1)
    if recipe.cutmix_alpha:
        center = torch.rand(1, 2, generator=generator, device=generator.device)
        pasted = 1 - sample_beta(recipe.cutmix_alpha, generator)
        share = cut = (~_rectangles(center, pasted.sqrt().expand(1, 2), shape)).float()
    if recipe.mixup_alpha and recipe.cutmix_alpha:
        coin = torch.rand((), generator=generator, device=generator.device)
        share = torch.where(coin < 0.5, cut, mixed)
    return share


def sample_beta(alpha: float, generator: torch.Generator) -> Tensor:
    """One draw of Beta(alpha, alpha), `()` float32 on the generator's device.

    The share of one of two Gamma(alpha) draws in their sum. Each is one of Gamma(alpha + 1)
    (Marsaglia and Tsang, 2000, doi:10.1145/358407.358414) times a uniform draw to the power
    1 / alpha; in logarithms, since that power underflows for small alpha.
    """
    size, device = (2, GAMMA_ATTEMPTS), generator.device
    # In float64, since the acceptance is a small difference of large terms for large alpha.
    options = {"generator": generator, "device": device, "dtype": torch.float64}
    # In (0, 1], for their logarithms.
    uniforms, boosts = 1 - torch.rand(size, **options), 1 - torch.rand(2, **options)
    normals = torch.randn(size, **options)
    d = alpha + 1 - 1 / 3
    root = (1 + normals / math.sqrt(9 * d)).clamp(min=torch.finfo(torch.float64).tiny)
    log_cube = 3 * root.log()
    is_accepted = uniforms.log() < normals**2 / 2 + d * (1 - root**3 + log_cube)
    # The first that is accepted. Both draws have the factor d, which cancels in their share.
    first = is_accepted.int().argmax(dim=1, keepdim=True)
    log_gamma = log_cube.gather(1, first)[:, 0] + boosts.log() / alpha
    return (log_gamma[0] - log_gamma[1]).sigmoid().float()


def _erase(images: Tensor, draws: Tensor, probability: float) -> Tensor:
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
