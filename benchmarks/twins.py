"""Near twins: how fast they are found among 50,000 images, which are found, and which wrongly.

The images of the timing are blends of two drawings each, so that no two are alike, with copies of
some of them among them. What is found of copies that were stored again, made smaller, lighter, cut
and so on is measured on drawings and on parts of scikit-learn's two photographs.

    python -m benchmarks.twins
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from benchmarks import ours, report
from pose.data.folder import read_dataset
from pose.data.near_twins import Marks, Twins, find_twins, marks_of
from pose.data.shards import read_file
from pose_models.decode import read_image

SIZE = 96
NUM_COPIES = 1000
NUM_PHOTOS = 300
AIM_SECONDS = 30.0
CHUNK = 500

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def stored(image: Image.Image, quality: int = 90) -> bytes:
    """A JPG of it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def again(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stored with quality 50."""
    return Image.open(io.BytesIO(stored(image, 50)))


def smaller(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """At 60 % of its size."""
    return image.resize((image.width * 6 // 10, image.height * 6 // 10), Image.Resampling.BILINEAR)


def lighter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """15 % lighter."""
    return ImageEnhance.Brightness(image).enhance(1.15)


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Noise of 8 of 255."""
    pixels = np.asarray(image) + rng.normal(0, 8, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _cut(image: Image.Image, part: float) -> Image.Image:
    across, down = round(part * image.width), round(part * image.height)
    return image.crop((across, down, image.width - across, image.height - down))


def cut_2(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """2 % cut off at every side."""
    return _cut(image, 0.02)


def cut_5(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """5 % cut off at every side."""
    return _cut(image, 0.05)


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turned by 3 degrees."""
    return image.rotate(3, Image.Resampling.BILINEAR)


def shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shifted by 3 %."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0.03 * image.width, 0, 1, 0))


CHANGES: tuple[Change, ...] = (again, smaller, lighter, noisy, cut_2, cut_5, turned, shifted)


def decode(images: Sequence[Image.Image]) -> np.ndarray:
    """As the cache has them: `(N, 3, SIZE, SIZE)` uint8."""
    return np.stack([read_image(stored(image), SIZE) for image in images])


def marks(pixels: np.ndarray) -> Marks:
    """Of all of them."""
    return marks_of(torch.from_numpy(pixels), np.arange(len(pixels)))


def cut_photos() -> list[Image.Image]:
    """Parts of two photographs, many of them of sky or of one petal."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    parts = []
    for number in range(NUM_PHOTOS):
        photo, side = photos[number % 2], int(rng.integers(80, 200))
        left, top = (int(rng.integers(0, extent - side)) for extent in photo.size)
        parts.append(photo.crop((left, top, left + side, top + side)))
    return parts


def measure_recall(drawings: list[Image.Image], photos: list[Image.Image]) -> report.Table:
    """What is found of changed copies of drawings and of parts of photographs."""
    rng = np.random.default_rng(0)
    rows = []
    for change in CHANGES:
        cells = [str(change.__doc__).rstrip(".")]
        for images in (drawings, photos):
            own = marks(decode(images))
            copies = marks(decode([change(image, rng).convert("RGB") for image in images]))
            twins = find_twins(own.followed_by(copies))
            is_copy = twins.pairs[:, 1] - twins.pairs[:, 0] == len(images)
            cells.append(f"{is_copy.sum() / len(images):.1%}")
        rows.append(cells)
    columns = ("copy", f"found of {len(drawings)} drawings", f"of {len(photos)} parts of photos")
    return report.Table(title="What is found", columns=columns, rows=rows)


def write_blends(pixels: np.ndarray, path: Path, num_images: int) -> torch.Tensor:
    """`num_images` images on disk, the last `NUM_COPIES` of them noisy copies of the first."""
    rng = np.random.default_rng(0)
    shape = (num_images, 3, SIZE, SIZE)
    blends = np.memmap(path, dtype=np.uint8, mode="w+", shape=shape)
    for start in range(0, num_images, CHUNK):
        num = min(CHUNK, num_images - start)
        one, other = rng.integers(0, len(pixels), size=(2, num))
        part = rng.uniform(0.35, 0.65, size=(num, 1, 1, 1)).astype(np.float32)
        rolled = np.roll(pixels[other], rng.integers(8, SIZE - 8), axis=3)
        blends[start : start + num] = part * pixels[one] + (1 - part) * rolled
    for start in range(0, NUM_COPIES, CHUNK):
        noise = rng.normal(0, 6, size=(CHUNK, *shape[1:]))
        copies = (blends[start : start + CHUNK] + noise).clip(0, 255)
        blends[num_images - NUM_COPIES + start :][:CHUNK] = copies
    blends.flush()
    return torch.from_numpy(blends)


def measure_speed(images: torch.Tensor, repetitions: int) -> tuple[report.Table, float]:
    """Seconds for marks and pairs; the table, and the median of both together."""
    seconds: list[tuple[float, float]] = []
    twins = Twins(pairs=np.empty((0, 2)), distances=np.empty(0))
    for repetition in range(repetitions + 1):
        started = time.perf_counter()
        own = marks_of(images, np.arange(len(images)))
        marked = time.perf_counter()
        twins = find_twins(own)
        if repetition:
            # The first one warms up.
            seconds.append((marked - started, time.perf_counter() - marked))
    is_copy = twins.pairs[:, 1] - twins.pairs[:, 0] == len(images) - NUM_COPIES
    totals = [sum(pair) for pair in seconds]
    rows = [
        [
            f"{len(images)} images of {SIZE} px",
            f"{statistics.median(pair[0] for pair in seconds):.1f} s",
            f"{statistics.median(pair[1] for pair in seconds):.1f} s",
            f"{statistics.median(totals):.1f} s ({min(totals):.1f} to {max(totals):.1f})",
            f"{is_copy.sum()} of {NUM_COPIES}",
            str((~is_copy).sum()),
        ]
    ]
    columns = ("images", "marks", "pairs", "together", "copies found", "other pairs found")
    table = report.Table(title="How long it takes", columns=columns, rows=rows)
    return table, statistics.median(totals)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-drawings", type=int, default=2500)
    parser.add_argument("--num-images", type=int, default=50_000, help="of the timing")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    report.add_options(parser, "twins")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with ours.data_folder(args.dataset, args.num_drawings) as folder:
        files = read_dataset(folder).files[: args.num_drawings]
        drawings = [
            Image.open(io.BytesIO(read_file(path))).convert("RGB") for path in files[:NUM_PHOTOS]
        ]
        pixels = np.stack([read_image(read_file(path), SIZE) for path in files])
    photos = cut_photos()
    recall = measure_recall(drawings, photos)
    wrong = [len(find_twins(marks(own)).pairs) for own in (pixels, decode(photos))]
    with tempfile.TemporaryDirectory() as work:
        images = write_blends(pixels, Path(work) / "images.u8", args.num_images)
        speed, seconds = measure_speed(images, args.repetitions)
    report.write_report(
        args.report,
        title="Near twins: how fast, which, and which wrongly",
        module="benchmarks.twins",
        repetitions=f"{args.repetitions} after one that warms up, {args.threads} threads",
        goals=[
            report.Goal(
                text=f"{args.num_images} images in under {AIM_SECONDS:.0f} s on 2 cores",
                measured=f"{seconds:.1f} s",
                is_reached=seconds < AIM_SECONDS,
            ),
            report.Goal(
                text="no pair among different drawings",
                measured=f"{wrong[0]} of {len(pixels) * (len(pixels) - 1) // 2:,} pairs",
                is_reached=wrong[0] == 0,
            ),
        ],
        tables=[speed, recall],
        notes=[
            "The images are decoded already: marks are made of the cache, which is in memory "
            "after the first repetition.",
            "Blends share their drawings with many others; the other pairs found are of blends "
            "that happen to share most of both.",
            f"Among the {len(photos)} parts of two photographs, which overlap here and there, "
            f"{wrong[1]} pairs are found.",
            "Parts of photographs are hard on purpose: of a piece of sky nothing is left but "
            "noise, and every copy of it has noise of its own.",
        ],
    )


if __name__ == "__main__":
    main()
