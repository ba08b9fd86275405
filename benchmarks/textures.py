"""Crops of photographs, some of them passed through an up-sampling: real or made?

What tells the two classes apart is finer than what is left of it when an image is made smaller, as
with photographs and generated pictures. Training crops come from other photographs than test
crops. The photographs are those that scikit-image and scikit-learn ship, so the set is the same
everywhere (scikit-image is no requirement of ours: `pip install scikit-image`).

    python -m benchmarks.textures --make textures  # the set alone, as a data folder
    python -m benchmarks.textures                  # the same time for each side
    python -m benchmarks.textures --num-epochs 15  # the same pixels, on a busy machine
"""

import argparse
import csv
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from pose import metrics
from pose.config import Recipe
from pose.data.cache import open_cache
from pose.data.folder import read_test_images
from pose.data.loaded import load_data
from pose.data.tensors import framing_of, training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS
from pose.seeds.train import build_fitted
from pose.training.loop import train
from pose.training.predict import predict_logits
from pose.training.state import start_state
from pose.training.step import Step

CPU = torch.device("cpu")
SIZE = 256
MADE_SHARE = 0.17
# By package, the folder in it, and the files. Both sides have colour and grey, fine and coarse.
TRAIN_PHOTOGRAPHS = {
    "skimage/data": (
        "astronaut.png", "brick.png", "camera.png", "coffee.png", "grass.png", "ihc.png",
        "moon.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg",
    ),
    "sklearn/datasets/images": ("flower.jpg",),
}  # fmt: skip
TEST_PHOTOGRAPHS = {
    "skimage/data": ("chelsea.png", "coins.png", "gravel.png", "hubble_deep_field.jpg",
                     "rocket.jpg"),
    "sklearn/datasets/images": ("china.jpg",),
}  # fmt: skip
# Of a generator's last layer: zeros between the pixels, filled by a small filter whose weights at
# even places (1.080 in all) and odd ones (1.086) differ, which leaves a grid too faint to see.
UPSAMPLING = np.outer([0.04, 0.543, 1.0, 0.543, 0.04], [0.04, 0.543, 1.0, 0.543, 0.04])
NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4


def write_textures(folder: Path, num_train: int, num_test: int, seed: int = 0) -> Path:
    """Write the set as a data folder: label 1 where a crop was made by up-sampling."""
    rng = np.random.default_rng(seed)
    parts = (
        ("train", TRAIN_PHOTOGRAPHS, num_train, 0),
        ("test", TEST_PHOTOGRAPHS, num_test, 10**6),
    )
    for part, names, count, first in parts:
        photographs = [_read(package, name) for package in names for name in names[package]]
        images = folder / f"{part}_images"
        images.mkdir(parents=True)
        made = rng.permutation(np.arange(count) < round(MADE_SHARE * count)).astype(int)
        with open(folder / f"{part}_solution.csv", "w", encoding="utf-8", newline="") as handle:
            rows = csv.writer(handle, lineterminator="\n")
            rows.writerow(["id", "label"])
            for number, is_made in enumerate(made.tolist(), start=first):
                rows.writerow([number, is_made])
                crop = _crop(photographs[number % len(photographs)], rng)
                if is_made:
                    crop = _upsampled(crop)
                crop.save(images / f"{number}.jpg", quality=int(rng.integers(88, 97)))
    return folder


def _read(package: str, name: str) -> Image.Image:
    found = importlib.util.find_spec(package.partition("/")[0])
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"textures need {package.partition('/')[0]}: pip install scikit-image")
    folder = Path(found.submodule_search_locations[0]).parent / package
    return Image.open(folder / name).convert("RGB")


def _crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square at a random scale, turned and mirrored by chance."""
    largest = min(photograph.size)
    # Scales of 1 to 2 as far as the photograph goes: blur alone tells nothing.
    side = int(rng.uniform(min(SIZE, largest), min(2 * SIZE, largest) + 1))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    box = (left, top, left + side, top + side)
    crop = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)
    crop = crop.rotate(90 * int(rng.integers(4)))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else crop


def _upsampled(crop: Image.Image) -> Image.Image:
    """The crop at half its size, brought back as a transposed convolution does it."""
    small = np.asarray(crop.resize((SIZE // 2, SIZE // 2), Image.Resampling.LANCZOS), np.float64)
    # More than is kept: what happens at the edge must not tell anything.
    small = np.pad(small, ((4, 4), (4, 4), (0, 0)), mode="edge")
    spread = np.zeros((2 * len(small), 2 * len(small), 3))
    spread[::2, ::2] = small
    made = _filtered(spread, 4 * UPSAMPLING / UPSAMPLING.sum())
    # As sharp as the others: what is left to see is the grid.
    made += 0.9 * (made - _filtered(made, NEIGHBOURS))
    return Image.fromarray(made[8:-8, 8:-8].round().clip(0, 255).astype(np.uint8))


def _filtered(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(H, W, 3)` filtered by square weights; wraps around at the edges."""
    half = len(weights) // 2
    return sum(
        weight * np.roll(pixels, (y - half, x - half), (0, 1))
        for (y, x), weight in np.ndenumerate(weights)
    )


def score_recipe(
    folder: Path, recipe: Recipe, seed: int, limit: float | None, cache_root: Path
) -> dict[str, Any]:
    """The best weights' macro F1 on photographs that they trained on, and on others.

    Args:
        limit: seconds of training; None: the recipe's epochs.
    """
    loaded = load_data(folder, framing_of(recipe), cache_root)
    data = training_data(loaded, recipe, MemberKey(seed), CPU)
    labels = loaded.dataset.classes.labels
    precision = pick_precision("auto", CPU)
    state = start_state(lambda: build_fitted(recipe, labels, data), recipe, seed, CPU)
    train(Step(state, data, recipe, precision), time_limit=limit)
    model = state.scored_model()
    model.load_state_dict(state.best_weights)
    tests = read_test_images(folder, print)
    cache = open_cache(list(tests.values()), framing_of(recipe), cache_root=cache_root)
    logits = predict_logits(model, cache.images, torch.arange(len(tests)), precision)
    with open(folder / "test_solution.csv", encoding="utf-8", newline="") as handle:
        truth = {row["id"]: int(row["label"]) for row in csv.DictReader(handle)}
    confusion = metrics.confusion_matrix(
        np.array([truth[name] for name in tests]), logits.argmax(dim=1).numpy(), 2
    )
    return {
        "val_f1": state.best_val_f1,
        "test_f1": metrics.macro_f1(confusion),
        "epochs": state.num_epochs_done,
        "seconds": state.seconds,
        "rate": float(np.median([row["images_per_second"] for row in state.history])),
    }


# Each is `champion` but for what its name says.
CHANGES: dict[str, dict[str, Any]] = {
    "resize, 96 px": {},
    "resize, 224 px": {"image_size": 224},
    "crop, 96 px": {"framing": "crop", "crop_from": SIZE},
    "crop, 96 px, edges": {"framing": "crop", "crop_from": SIZE, "high_pass": True},
}


def main() -> None:
    """Make the set, or measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, help="write the set into this folder, and stop")
    parser.add_argument("--num-train", type=int, default=2400)
    parser.add_argument("--num-test", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=120, help="of training for each")
    parser.add_argument(
        "--num-epochs", type=int, help="instead of seconds: at 96 px; fewer at more pixels"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    report.add_options(parser, "textures")
    args = parser.parse_args()
    if args.make:
        write_textures(args.make, args.num_train, args.num_test)
        return
    keep_freed_memory()
    results = {}
    with tempfile.TemporaryDirectory() as root:
        folder = write_textures(Path(root) / "textures", args.num_train, args.num_test)
        for name in args.only:
            changes = {"patience": 0, **CHANGES[name]}
            recipe = dataclasses.replace(NAMED_RUNS["champion"].recipe, **changes)
            limit = args.seconds
            if args.num_epochs:
                pixels = (recipe.image_size / 96) ** 2
                recipe = dataclasses.replace(
                    recipe, num_epochs=max(1, round(args.num_epochs / pixels))
                )
                limit = None
            results[name] = score_recipe(folder, recipe, args.seed, limit, Path(root) / "cache")
            print(f"  {name}: {results[name]}", flush=True)
    write(args, results)


def write(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """The report of one run of all sides."""
    plain, crop = (
        max((r["test_f1"] for name, r in results.items() if name.startswith(rule)), default=0.0)
        for rule in ("resize", "crop")
    )
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "validation macro F1": lambda r: f"{r['val_f1']:.4f}",
        "test macro F1": lambda r: f"{r['test_f1']:.4f}",
        "epochs": lambda r: str(r["epochs"]),
        "images per second": lambda r: f"{r['rate']:.0f}",
    }
    report.write_report(
        args.report,
        title=f"Real or made: framing at equal {'pixels' if args.num_epochs else 'time'}",
        module="benchmarks.textures",
        repetitions="one seed, one after another, each trained "
        + (f"{args.num_epochs} epochs of 96 px" if args.num_epochs else f"{args.seconds:g} s"),
        goals=[
            report.Goal(
                text="crops at the photographs' own scale beat resized ones on other photographs",
                measured=f"test macro F1 {crop:.4f} against {plain:.4f}",
                is_reached=crop > plain,
            )
        ],
        tables=[
            report.Table(
                columns=("`champion` with", *columns),
                rows=[
                    [name, *(text(result) for text in columns.values())]
                    for name, result in results.items()
                ],
            )
        ],
        notes=[
            f"{args.num_train} training crops of {SIZE} px from "
            f"{sum(map(len, TRAIN_PHOTOGRAPHS.values()))} photographs, of which 20 % validate: "
            "crops of the same photographs, so that validation is easier than the test.",
            f"{args.num_test} test crops from "
            f"{sum(map(len, TEST_PHOTOGRAPHS.values()))} other photographs: few, and one seed. "
            "Differences of a few hundredths mean nothing.",
            f"{100 * MADE_SHARE:g} % of both are made; predicting none of them gives 0.4536.",
        ],
    )


if __name__ == "__main__":
    main()
