"""What happens to photographs, each operator against torchvision or Pillow's JPEG files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from pose.training.augment import (
    PRESETS,
    AugmentParams,
    Preset,
    augment_batch,
    sample_params,
)
from pose.training.jpeg import compress
from pose.training.operations import (
    BLUR_RADIUS,
    LARGEST_CHANGE,
    MOST_BITS_LOST,
    OPERATIONS,
    blur,
    change_marked,
    operate,
)

SIZE = 52  # not a multiple of 16: files repeat the edge


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """A photograph's pieces, noise, and a plain image, `(9, 3, 52, 52)` in 0..1, whole levels."""
    datasets = pytest.importorskip("sklearn.datasets")
    photograph = torch.from_numpy(datasets.load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    pieces = [photograph[:, 40 * n : 40 * n + SIZE, 70 * n : 70 * n + SIZE] for n in range(7)]
    noise = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    plain = torch.tensor([10, 90, 200]).view(3, 1, 1).expand(3, SIZE, SIZE)
    return torch.stack([*pieces, noise, plain]).float() / 255


STRENGTHS = torch.tensor([-1.0, -0.7, -0.3, -0.01, 0.0, 0.2, 0.55, 0.8, 1.0])
REFERENCE = {
    "brightness": lambda x, s: reference.adjust_brightness(x, 1 + LARGEST_CHANGE * s),
    "contrast": lambda x, s: reference.adjust_contrast(x, 1 + LARGEST_CHANGE * s),
    "saturation": lambda x, s: reference.adjust_saturation(x, 1 + LARGEST_CHANGE * s),
    "sharpness": lambda x, s: reference.adjust_sharpness(x, 1 + LARGEST_CHANGE * s),
    "posterize": lambda x, s: reference.posterize(x, 8 - round(MOST_BITS_LOST * abs(s))),
    "solarize": lambda x, s: reference.solarize(x, 1 - abs(s)),
    "autocontrast": lambda x, s: reference.autocontrast(x),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_torchvision_at_each_images_strength(images, name):
    found = OPERATIONS[name](images, STRENGTHS)
    for image, strength, changed in zip(images, STRENGTHS.tolist(), found, strict=True):
        expected = REFERENCE[name](image, strength)
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5)


def test_each_image_gets_its_own_operations_in_their_order(images):
    names = list(OPERATIONS)
    operations = torch.tensor([[n % len(names), (3 * n + 1) % len(names)] for n in range(9)])
    strengths = torch.stack([STRENGTHS, STRENGTHS.flip(0)], dim=1)
    found = operate(images.clone(), operations, strengths)
    for n, image in enumerate(images):
        for turn in range(2):
            name = names[operations[n, turn]]
            image = REFERENCE[name](image, float(strengths[n, turn]))
        torch.testing.assert_close(found[n], image, rtol=0, atol=1e-4)


def test_blur_is_that_of_torchvision_at_each_images_sigma(images):
    sigma = torch.linspace(0.1, 2.0, len(images))
    found = blur(images, sigma)
    size = 2 * BLUR_RADIUS + 1
    for image, own, changed in zip(images, sigma.tolist(), found, strict=True):
        expected = reference.gaussian_blur(image, [size, size], [own, own])
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5)


def levels(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


def pillow_jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    pixels = levels(image).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


@pytest.mark.parametrize("size", [SIZE, 33])
@pytest.mark.parametrize("quality", [1, 25, 50, 75, 95, 100])
def test_compression_gives_what_files_give(images, quality, size):
    images = images[:, :, :size, :size]
    found = compress(images, torch.full((len(images),), float(quality))) * 255
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-3)
    read = torch.stack([pillow_jpeg(image, quality) for image in images])
    difference = (found - read).abs()
    # In grey levels. A frequency halfway between two steps, which libjpeg's whole numbers round
    # the other way, is one step of the table over a whole block.
    assert difference.mean() < 0.3
    assert (difference <= 2).float().mean() > 0.98
    assert difference.mean() < 0.04 * (read - images * 255).abs().mean()


def test_white_stays_white():
    white = torch.ones(9, 3, SIZE, SIZE)
    for found in (
        blur(white, torch.linspace(0.1, 2.0, 9)),
        compress(white, torch.full((9,), 50.0)),
    ):
        assert float(found.max()) <= 1
        torch.testing.assert_close(found, white)


def test_each_image_has_its_own_quality(images):
    quality = torch.tensor([5.0, 95.0, 30.0, 49.0, 50.0, 51.0, 70.0, 100.0, 1.0])
    found = compress(images, quality)
    for n in range(len(images)):
        torch.testing.assert_close(
            found[n : n + 1], compress(images[n : n + 1], quality[n : n + 1])
        )


def test_marked_images_alone_are_changed_as_a_device_that_computes_all_would(images):
    is_marked = torch.arange(len(images)) % 2 == 0
    found = change_marked(images.clone(), is_marked, OPERATIONS["solarize"], STRENGTHS)
    everywhere = OPERATIONS["solarize"](images, STRENGTHS)
    assert torch.equal(found, torch.where(is_marked.view(-1, 1, 1, 1), everywhere, images))


# Presets

PHOTO = [name for name, p in PRESETS.items() if p.jpeg_probability]


def draw(preset: Preset, n: int, seed: int = 0) -> AugmentParams:
    generator = torch.Generator().manual_seed(seed)
    return sample_params(preset, torch.zeros(n, dtype=torch.int64), torch.tensor([0]), generator)


@pytest.mark.parametrize("name", PHOTO)
def test_a_preset_for_photographs_fills_and_keeps_its_ranges(name):
    preset, params = PRESETS[name], draw(PRESETS[name], 4000)
    for values, (low, high), probability in (
        (params.blur_sigma, preset.blur_sigma, preset.blur_probability),
        (params.jpeg_quality, preset.jpeg_quality, preset.jpeg_probability),
    ):
        assert float((values > 0).float().mean()) == pytest.approx(probability, abs=0.03)
        chosen = values[values > 0]
        assert low <= chosen.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < chosen.max() <= high
    chosen = params.jpeg_quality[params.jpeg_quality > 0]
    assert torch.equal(chosen, chosen.round())
    if preset.num_operations:
        counts = torch.bincount(params.operations.flatten(), minlength=len(OPERATIONS))
        assert len(counts) == len(OPERATIONS)
        assert counts.min() > 0.8 * 4000 * preset.num_operations / len(OPERATIONS)
        assert -1 <= params.strengths.min() < -0.98 < 0.98 < params.strengths.max() <= 1


def test_there_are_two_presets_for_photographs():
    assert PHOTO == ["photo_light", "photo"]
    older = [draw(preset, 3) for name, preset in PRESETS.items() if name not in PHOTO]
    assert all(p.operations is p.blur_sigma is p.jpeg_quality is None for p in older)


@pytest.mark.parametrize("name", PHOTO)
@pytest.mark.parametrize("size", [16, 37])
def test_a_batch_is_in_bounds_and_its_rows_depend_on_themselves_alone(images, name, size):
    batch = levels(images).repeat(3, 1, 1, 1)
    params = draw(PRESETS[name], len(batch), seed=1)
    full = augment_batch(batch, params, size)
    assert full.shape == (27, 3, size, size)
    assert float(full.min()) >= 0 and float(full.max()) <= 1
    own = {k: v[5:9] if isinstance(v, torch.Tensor) else v for k, v in vars(params).items()}
    torch.testing.assert_close(augment_batch(batch[5:9], AugmentParams(**own), size), full[5:9])


def test_qualities_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    ours = draw(Preset(jpeg_quality=(40, 60), jpeg_probability=1.0), 4000).jpeg_quality
    theirs = torch.tensor(
        [v2.JPEG((40, 60)).make_params([])["quality"] for _ in range(4000)], dtype=torch.float32
    )
    for statistic in (torch.mean, torch.std):
        assert float(statistic(ours)) == pytest.approx(float(statistic(theirs)), abs=0.4)
    assert (ours.min(), ours.max()) == (theirs.min(), theirs.max())
