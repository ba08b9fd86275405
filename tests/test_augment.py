"""Augmentation, operator by operator, against torchvision's transforms with the same parameters."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.training.augment import (
    PRESETS,
    AugmentParams,
    Preset,
    augment_batch,
    sample_params,
)
from pose.training.mixing import mix_batch, sample_beta
from pose.training.step import training_batch

SIZE = 48


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth and noisy images, `(11, 3, 48, 48)` uint8: more than a chunk, not a multiple of it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(11, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    smooth[5:] = torch.rand(6, 3, SIZE, SIZE, generator=generator)
    return (smooth * 255).to(torch.uint8)


def params_of(n: int, **changes) -> AugmentParams:
    """Parameters that do nothing, apart from `changes`."""
    unchanged = {
        "crop": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(n, 4),
        "is_flipped": torch.zeros(n, dtype=torch.bool),
        "angle": torch.zeros(n),
        "color": None,
        "color_order": None,
        "is_sharpened": None,
        "fill": "black",
    }
    return AugmentParams(**{**unchanged, **changes})


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Operators


def test_nothing_to_do_returns_the_images(images):
    augmented = augment_batch(images, params_of(11), SIZE)
    assert augmented.dtype == torch.float32
    assert_close(augmented, images / 255, 1e-5)


def test_other_size_is_a_bilinear_resize(images):
    expected = reference.resize(images / 255, [32, 32], antialias=False)
    assert_close(augment_batch(images, params_of(11), 32), expected, 1e-5)


@pytest.mark.parametrize("box", [(6, 12, 36, 24), (0, 0, 48, 40), (20, 3, 28, 45)])
@pytest.mark.parametrize("size", [32, 48])
def test_crop_is_a_resized_crop(images, box, size):
    left, top, width, height = box
    crop = torch.tensor([box]).expand(11, 4) / SIZE
    augmented = augment_batch(images, params_of(11, crop=crop), size)
    expected = reference.resized_crop(
        images / 255, top, left, height, width, [size, size], antialias=False
    )
    # torchvision cuts first and repeats the crop's own border; here its outermost pixels see
    # their neighbours beyond the cut. At the picture's edge the fade to black begins.
    assert_close(augmented[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], 1e-4)


def test_flip_is_horizontal_and_of_the_marked_images_only(images):
    is_flipped = torch.arange(11) % 3 == 0
    augmented = augment_batch(images, params_of(11, is_flipped=is_flipped), SIZE)
    expected = images / 255
    expected[is_flipped] = reference.horizontal_flip(expected[is_flipped])
    assert_close(augmented, expected, 1e-5)


@pytest.mark.parametrize("degrees", [15.0, -7.0, 90.0])
def test_rotation_is_bilinear_counter_clockwise_on_black(images, degrees):
    angle = torch.full((11,), math.radians(degrees))
    augmented = augment_batch(images, params_of(11, angle=angle), SIZE)
    expected = reference.rotate(images / 255, degrees, interpolation=v2.InterpolationMode.BILINEAR)
    assert_close(augmented, expected, 1e-4)


def test_crop_flip_and_rotation_come_in_the_order_of_the_presets(images):
    """torchvision: random resized crop, flip, rotation."""
    crop = torch.tensor([[8, 4, 32, 40]]).expand(11, 4) / SIZE
    changes = {
        "crop": crop,
        "is_flipped": torch.ones(11, dtype=torch.bool),
        "angle": torch.full((11,), math.radians(12)),
    }
    augmented = augment_batch(
        images[:5], params_of(5, **{k: v[:5] for k, v in changes.items()}), 40
    )
    expected = reference.resized_crop(images[:5] / 255, 4, 8, 40, 32, [40, 40], antialias=False)
    expected = reference.rotate(
        reference.horizontal_flip(expected), 12, interpolation=v2.InterpolationMode.BILINEAR
    )
    # Two bilinear samplings blur a little more than one: compared on smooth images.
    difference = (augmented - expected).abs()[..., 2:-2, 2:-2]
    assert difference.mean() < 0.004
    assert difference.max() < 0.05


def test_border_fill_repeats_the_edge(images):
    crop = torch.tensor([[-0.5, 0.0, 1.0, 1.0]]).expand(11, 4)
    kept = augment_batch(images, params_of(11, crop=crop, fill="border"), SIZE)
    edge = (images[..., :1] / 255).expand(-1, -1, -1, SIZE // 2)
    assert_close(kept[..., : SIZE // 2], edge, 1e-5)
    assert_close(kept[..., SIZE // 2 :], images[..., : SIZE // 2] / 255, 1e-5)


ADJUST = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
@pytest.mark.parametrize("factors", [(1.2, 0.8, 1.2), (0.8, 1.2, 0.5), (1.5, 1.5, 2.0)])
def test_colour_is_that_of_torchvision_in_every_order(images, order, factors):
    changes = {
        "color": torch.tensor([factors]).expand(11, 3),
        "color_order": torch.tensor([order]).expand(11, 3),
    }
    augmented = augment_batch(images, params_of(11, **changes), SIZE)
    expected = images / 255
    for operation in order:
        expected = ADJUST[operation](expected, factors[operation])
    assert_close(augmented, expected, 1e-4)


def test_each_image_has_its_own_colours_and_order(images):
    color = 0.7 + 0.6 * torch.rand(11, 3, generator=generator())
    order = torch.rand(11, 3, generator=generator(1)).argsort(dim=1)
    together = augment_batch(images, params_of(11, color=color, color_order=order), SIZE)
    for row in range(11):
        expected = images[row] / 255
        for operation in order[row].tolist():
            expected = ADJUST[operation](expected, float(color[row, operation]))
        assert_close(together[row], expected, 1e-4)


def test_sharpness_is_that_of_torchvision_for_the_marked_images_only(images):
    is_sharpened = torch.arange(11) % 2 == 0
    augmented = augment_batch(images, params_of(11, is_sharpened=is_sharpened), SIZE)
    expected = images / 255
    expected[is_sharpened] = reference.adjust_sharpness(expected[is_sharpened], 2.0)
    assert_close(augmented, expected, 1e-4)


def test_short_last_batch_equals_the_same_rows_of_a_full_one(images):
    params = sample_params(
        PRESETS["ensemble_2"], torch.zeros(11, dtype=torch.int64), torch.tensor([0]), generator()
    )
    rows = slice(0, 3)
    first_rows = AugmentParams(
        **{
            name: value[rows] if isinstance(value, torch.Tensor) else value
            for name, value in vars(params).items()
        }
    )
    full = augment_batch(images, params, SIZE)
    assert torch.equal(augment_batch(images[rows], first_rows, SIZE), full[rows])


# What is drawn


def draw(preset: Preset, n: int, seed: int = 0) -> AugmentParams:
    labels = torch.zeros(n, dtype=torch.int64)
    return sample_params(preset, labels, torch.tensor([0]), generator(seed))


@pytest.mark.parametrize("scale", [(0.8, 1.0), (0.08, 1.0)])
def test_crops_are_distributed_as_those_of_torchvision(scale):
    torch.manual_seed(0)
    image = torch.empty(3, 1000, 1000)
    boxes = [v2.RandomResizedCrop(1, scale=scale).make_params([image]) for _ in range(3000)]
    expected = np.array([[b["left"], b["top"], b["width"], b["height"]] for b in boxes]) / 1000
    found = draw(Preset(crop_scale=scale), 3000).crop.numpy()
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= 1 + 1e-6).all()
    for statistic in (np.mean, np.std):
        # 3,000 draws with a spread below 0.3 know their mean to 0.006.
        np.testing.assert_allclose(
            statistic(found, axis=0), statistic(expected, axis=0), atol=0.025
        )
    area = found[:, 2] * found[:, 3]
    assert area.min() >= scale[0] - 1e-6
    np.testing.assert_allclose(area.mean(), (expected[:, 2] * expected[:, 3]).mean(), atol=0.02)


def test_ranges_of_a_preset_are_filled_and_kept():
    params = draw(PRESETS["ensemble_2"], 4000)
    for values, low, high in (
        (params.angle, -math.radians(15), math.radians(15)),
        (params.color, 0.8, 1.2),
    ):
        margin = 0.02 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        assert abs(float(values.mean()) - (low + high) / 2) < margin
    assert 0.47 < params.is_flipped.float().mean() < 0.53
    assert 0.27 < params.is_sharpened.float().mean() < 0.33
    orders, counts = params.color_order.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 4000 / 6 * 0.8


def test_zoom_and_shift_move_the_centre_and_keep_the_ratio():
    crop = draw(Preset(zoom=0.15, shift=0.08), 4000).crop
    assert torch.equal(crop[:, 2], crop[:, 3])
    assert 0.85 <= crop[:, 2].min() < 0.86 < 1.14 < crop[:, 2].max() <= 1.15
    center = crop[:, :2] + crop[:, 2:] / 2
    assert 0.42 - 1e-6 <= center.min() < 0.425 < 0.575 < center.max() <= 0.58 + 1e-6


def test_preset_none_draws_nothing():
    params = draw(PRESETS["none"], 5)
    assert torch.equal(params.crop, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(5, 4))
    assert not params.is_flipped.any() and not params.angle.any()
    assert params.color is params.is_sharpened is None


@pytest.mark.parametrize("name", PRESETS)
def test_same_seed_gives_the_same_batch_and_another_another(images, name):
    first, again, other = (
        augment_batch(images, draw(PRESETS[name], 11, seed), 32) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")


# Flips and labels


def training_set(images, labels, mirrors) -> TrainingData:
    rows = torch.arange(len(images))
    return TrainingData(
        images=images,
        labels=torch.tensor(labels),
        train_rows=rows,
        val_rows=rows[:0],
        mirrors=torch.tensor(mirrors),
    )


def test_flip_swaps_mirrored_labels_and_leaves_classes_without_a_mirror(monkeypatch, images):
    monkeypatch.setitem(PRESETS, "flips", Preset(flip=True))
    n = 240
    many = images[5:6].expand(n, -1, -1, -1)
    labels = torch.arange(n) % 4
    # 0 and 1 are mirror images of each other, 2 is its own, 3 has none.
    data = training_set(many, labels.tolist(), [1, 0, 2, -1])
    batch, found, targets = training_batch(
        data, torch.arange(n), Recipe(augmentation="flips", image_size=SIZE), generator()
    )
    upright = images[5] / 255
    is_flipped = (batch - upright).abs().amax(dim=(1, 2, 3)) > 0.01
    assert_close(
        batch[is_flipped], upright.flip(-1).expand(int(is_flipped.sum()), -1, -1, -1), 1e-5
    )
    assert not is_flipped[labels == 3].any()
    for label, mirror in ((0, 1), (1, 0), (2, 2)):
        of_label = labels == label
        assert 0.35 < is_flipped[of_label].float().mean() < 0.65
        assert (found[of_label & is_flipped] == mirror).all()
        assert (found[of_label & ~is_flipped] == label).all()
    assert (found[labels == 3] == 3).all()
    assert torch.equal(targets, found)


def test_batch_takes_the_rows_it_is_asked_for(images):
    data = training_set(images, list(range(11)), list(range(11)))
    rows = torch.tensor([7, 2, 9])
    batch, labels, _ = training_batch(
        data, rows, Recipe(augmentation="none", image_size=SIZE), generator()
    )
    assert labels.tolist() == [7, 2, 9]
    assert_close(batch, images[rows] / 255, 1e-5)


# Mixing and erasing


def plain(*values: float, size: int = 20) -> torch.Tensor:
    """Images of one value each, `(n, 3, size, size)`."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, size, size).clone()


def test_without_mixing_labels_stay_labels():
    images, labels = plain(0.0, 1.0), torch.tensor([0, 1])
    mixed, targets = mix_batch(images, labels, 2, Recipe(), generator())
    assert torch.equal(mixed, images)
    assert torch.equal(targets, labels)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 50.0])
def test_mixup_mixes_images_and_targets_by_the_same_share(alpha):
    shares = []
    for seed in range(20):
        mixed, targets = mix_batch(
            plain(0.0, 1.0), torch.tensor([0, 1]), 3, Recipe(mixup_alpha=alpha), generator(seed)
        )
        # An image of value 0 and one of value 1: the mixed value is the share of the latter.
        assert_close(mixed[:, 0, 0, 0], targets[:, 1], 1e-6)
        assert_close(targets.sum(dim=1), torch.ones(2), 1e-6)
        assert (targets[:, 2] == 0).all()
        shares.append(float(targets[1, 1]))
    assert len(set(shares)) > 10
    # Beta(alpha, alpha) has the standard deviation 1 / (2 sqrt(2 alpha + 1)).
    assert np.std(shares) == pytest.approx(0.5 / math.sqrt(2 * alpha + 1), rel=0.4)


def test_cutmix_share_is_the_area_that_was_pasted():
    shares = []
    for seed in range(40):
        mixed, targets = mix_batch(
            plain(0.0, 1.0), torch.tensor([0, 1]), 2, Recipe(cutmix_alpha=1.0), generator(seed)
        )
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}
        assert_close(mixed.mean(dim=(1, 2, 3)), targets[:, 1], 1e-6)
        assert_close(targets.sum(dim=1), torch.ones(2), 1e-6)
        pasted = mixed[0, 0].bool()
        height, width = pasted.any(dim=1).sum(), pasted.any(dim=0).sum()
        assert pasted.sum() == height * width, "not a rectangle"
        shares.append(float(targets[0, 1]))
    assert len(set(shares)) > 20


def test_mixup_and_cutmix_take_turns():
    recipe = Recipe(mixup_alpha=1.0, cutmix_alpha=1.0)
    kinds = []
    for seed in range(60):
        mixed, _ = mix_batch(plain(0.0, 1.0), torch.tensor([0, 1]), 2, recipe, generator(seed))
        kinds.append(set(mixed.unique().tolist()) <= {0.0, 1.0})
    assert 15 < sum(kinds) < 45


def test_mixing_a_single_image_leaves_it():
    for recipe in (Recipe(mixup_alpha=1.0), Recipe(cutmix_alpha=1.0)):
        mixed, targets = mix_batch(plain(0.5), torch.tensor([1]), 2, recipe, generator())
        assert_close(mixed, plain(0.5), 1e-6)
        assert_close(targets, torch.tensor([[0.0, 1.0]]), 1e-6)


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erasing_fills_rectangles_of_that_part_of_the_images_with_their_mean(probability):
    n = 800
    column = torch.linspace(0, 1, 20)
    images = column.expand(n, 3, 20, 20).clone()
    erased, labels = mix_batch(
        images, torch.zeros(n, dtype=torch.int64), 2, Recipe(random_erasing=probability),
        generator(),
    )  # fmt: skip
    is_changed = erased != images
    assert_close(erased[is_changed], torch.full((int(is_changed.sum()),), 0.5), 1e-5)
    share = is_changed[:, 0].float().mean(dim=(1, 2))
    assert share.max() <= 0.26  # 20 % of the area, to whole pixels
    assert abs(float((share > 0).float().mean()) - probability) < 0.05
    assert labels.tolist() == [0] * n


def test_mixing_repeats_with_its_generator():
    images = torch.rand(6, 3, 20, 20, generator=generator())
    recipe = Recipe(mixup_alpha=0.5, cutmix_alpha=0.5, random_erasing=0.5)
    (first, _), (again, _), (other, _) = (
        mix_batch(images, torch.arange(6), 6, recipe, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 3.0, 1e6])
def test_shares_are_distributed_as_a_beta(alpha):
    draws = generator(1)
    shares = np.array([float(sample_beta(alpha, draws)) for _ in range(2000)])
    assert np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1
    expected = np.random.default_rng(0).beta(alpha, alpha, 200_000).astype(np.float32)
    # The largest distance of the distributions, ties (0 and 1 of a small alpha) included. Of 2,000
    # draws it is above 0.0436 once in a thousand times (Kolmogorov and Smirnov).
    at = np.unique(shares)
    distance = max(
        np.abs(
            np.searchsorted(np.sort(shares), at, side=side) / len(shares)
            - np.searchsorted(np.sort(expected), at, side=side) / len(expected)
        ).max()
        for side in ("left", "right")
    )
    assert distance < 0.0436


def test_both_kinds_of_mixing_keep_their_own_distributions():
    recipe = Recipe(mixup_alpha=50.0, cutmix_alpha=0.05)
    shares = {False: [], True: []}
    for seed in range(200):
        mixed, targets = mix_batch(
            plain(0.0, 1.0), torch.tensor([0, 1]), 2, recipe, generator(seed)
        )
        is_cut = set(mixed.unique().tolist()) <= {0.0, 1.0}
        shares[is_cut].append(float(targets[0, 0]))
        assert_close(mixed.mean(dim=(1, 2, 3)), targets[:, 1], 1e-6)
    # Beta(50, 50) stays near a half; Beta(0.05, 0.05) is all or nothing, and where it is nothing
    # the image stays whole.
    assert all(0.3 < share < 0.7 for share in shares[False])
    assert 0.3 < np.mean([share > 0.99 for share in shares[True]]) < 0.65
