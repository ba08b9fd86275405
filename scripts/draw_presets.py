"""Draw docs/augmentation.jpg and docs/operations.jpg: what augmentation makes of a photograph.

    python -m scripts.draw_presets

takes the photographs that scikit-learn ships. The first picture has a row per preset, the second
one per operation on photographs, from its lowest strength to its highest; that without one shows a
faded photograph, before and after.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image
from torch import Tensor

from pose.training.augment import PRESETS, augment_batch, sample_params
from pose.training.jpeg import compress
from pose.training.operations import OPERATIONS, blur

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIZE, NUM_COLUMNS, GAP, LABEL_WIDTH = 128, 7, 4, 130


def read_photographs() -> Tensor:
    """The middle squares of two photographs, `(2, 3, SIZE, SIZE)` uint8."""
    squares = []
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(load_sample_image(name))
        side, left = photograph.height, (photograph.width - photograph.height) // 2
        box = (left, 0, left + side, side)
        square = photograph.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box)
        squares.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8))
    return torch.stack(squares).view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2)


def preset_rows(photographs: Tensor) -> dict[str, Tensor]:
    """For each preset, images as training sees them, of both photographs in turn."""
    images = photographs[torch.arange(NUM_COLUMNS) % len(photographs)]
    labels, mirrors = torch.zeros(NUM_COLUMNS, dtype=torch.int64), torch.tensor([0])
    rows = {}
    for name, preset in PRESETS.items():
        generator = torch.Generator().manual_seed(0)
        params = sample_params(preset, labels, mirrors, generator)
        rows[name] = augment_batch(images, params, SIZE)
    return rows


def operation_rows(photographs: Tensor) -> dict[str, Tensor]:
    """For each operation, a photograph at rising strengths; then blur and JPEG compression."""
    images = (photographs[:1].float() / 255).expand(NUM_COLUMNS, -1, -1, -1)
    strengths = torch.linspace(-1, 1, NUM_COLUMNS)
    one_way = torch.linspace(0, 1, NUM_COLUMNS)
    rows = {
        name: operation(images, one_way if name in ("posterize", "solarize") else strengths)
        for name, operation in OPERATIONS.items()
        if name != "autocontrast"
    }
    faded = images[:1] * 0.5 + 0.2
    rows["autocontrast"] = torch.cat([faded, OPERATIONS["autocontrast"](faded, strengths[:1])])
    photo = PRESETS["photo"]
    rows["blur"] = blur(images, torch.linspace(*photo.blur_sigma, NUM_COLUMNS))
    lowest, highest = photo.jpeg_quality
    rows["JPEG"] = compress(images, torch.linspace(highest, lowest, NUM_COLUMNS).round())
    return rows


def draw(rows: Mapping[str, Tensor]) -> Image.Image:
    """Each row's images `(n, 3, SIZE, SIZE)` in 0..1 beside its name."""
    step = SIZE + GAP
    picture = Image.new("RGB", (LABEL_WIDTH + NUM_COLUMNS * step, len(rows) * step), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for row, (name, images) in enumerate(rows.items()):
        pen.text((6, row * step + SIZE // 2), name, "black", font, anchor="lm")
        pixels = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        for column, image in enumerate(pixels):
            picture.paste(Image.fromarray(image), (LABEL_WIDTH + column * step, row * step))
    return picture


if __name__ == "__main__":
    photographs = read_photographs()
    for name, rows in (
        ("augmentation.jpg", preset_rows(photographs)),
        ("operations.jpg", operation_rows(photographs)),
    ):
        draw(rows).save(DOCS / name, quality=85)
        print(DOCS.name, name, sep="/")
