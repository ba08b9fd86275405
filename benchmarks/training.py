"""Images per second in training: ours against the original recipe, and against our own bare step.

From 256x256 JPGs on disk to optimizer steps, `ensemble_2` augmentation, 128 px, batch 64, steady
state. `ours` is `pose.training.train` on the decoded cache, second epoch on; `compute only`
is the same step on a batch that lies in memory; `original` is `benchmarks.original` with its
DataLoader.

    python -m benchmarks.training
"""

import argparse
import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import original, ours, report
from benchmarks.sides import measure_in_turn
from pose.data.folder import read_dataset
from pose.data.loaded import load_data
from pose.data.tensors import training_data
from pose.device import keep_freed_memory, pick_precision
from pose.training.loop import train
from pose.training.step import Step

CPU = torch.device("cpu")
# More than the original's workers have decoded ahead when a turn begins: 2 workers x 2 batches.
NUM_WARM_UP_BATCHES = 6


def original_side(
    folder: Path, model: str, num_batches: int, num_workers: int
) -> Iterator[dict[str, float]]:
    """Images per second over `num_batches` batches."""
    dataset = read_dataset(folder)
    high_pass = model == "simple_cnn_v2"
    images = original.OriginalImages(
        dataset.files, dataset.labels, preset="ensemble_2", image_size=128, high_pass=high_pass
    )
    batches = original.endless_batches(images, num_workers=num_workers)
    network = original.OriginalCNN(len(dataset.classes), high_pass=high_pass)
    optimizer = original.build_optimizer(network)

    def run(count: int) -> None:
        for batch_images, labels in itertools.islice(batches, count):
            original.train_step(network, optimizer, batch_images, labels)

    yield run(NUM_WARM_UP_BATCHES)
    while True:
        started = time.perf_counter()
        run(num_batches)
        yield {"original": num_batches * original.BATCH_SIZE / (time.perf_counter() - started)}


def our_side(
    folder: Path, model: str, cache_root: Path, num_images: int
) -> Iterator[dict[str, float]]:
    """Images per second over an epoch of `num_images`, and over as many bare steps."""
    keep_freed_memory()
    recipe = ours.frozen_recipe(model)
    precision = pick_precision("auto", CPU)
    loaded = load_data(folder, recipe.image_size, cache_root)
    data = ours.train_everything(training_data(loaded, recipe, 0, CPU))
    data = dataclasses.replace(data, train_rows=data.train_rows[:num_images])
    labels = loaded.dataset.classes.labels
    state = ours.new_state(recipe, labels, seed=0, device=CPU)
    step = ours.new_step(data, recipe, labels)
    images, _, targets = step.batch(data.train_rows[: recipe.batch_size])
    num_steps = len(data.train_rows) // recipe.batch_size

    def run_bare(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step.update(images, targets)
        return count * recipe.batch_size / (time.perf_counter() - started)

    def run_epoch() -> float:
        one_more = dataclasses.replace(recipe, num_epochs=state.num_epochs_done + 1, patience=0)
        train(Step(state, data, one_more, precision))
        return state.history[-1]["images_per_second"]

    run_epoch()
    yield run_bare(5)
    while True:
        # Halves around the epoch, so that a machine that drifts does so for both.
        before = run_bare(num_steps // 2)
        epoch = run_epoch()
        after = run_bare(num_steps // 2)
        yield {"ours": epoch, "compute": 2 / (1 / before + 1 / after)}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--models", nargs="+", default=["simple_cnn", "simple_cnn_v2"])
    parser.add_argument("--num-images", type=int, default=3000, help="images per epoch of ours")
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--num-batches", type=int, default=15, help="the original's per turn")
    parser.add_argument("--num-workers", type=int, default=2, help="the original's workers")
    report.add_options(parser, "training")
    args = parser.parse_args()
    rows, goals = [], []
    with (
        ours.data_folder(args.dataset, args.num_images) as folder,
        tempfile.TemporaryDirectory() as cache_root,
    ):
        for model in args.models:
            print(model, flush=True)
            measured = measure_in_turn(
                {
                    "original": functools.partial(
                        original_side, folder, model, args.num_batches, args.num_workers
                    ),
                    "ours": functools.partial(
                        our_side, folder, model, Path(cache_root), args.num_images
                    ),
                },
                args.num_turns,
            )
            baseline = [turn["original"] for turn in measured["original"]]
            end_to_end = [turn["ours"] for turn in measured["ours"]]
            compute = [turn["compute"] for turn in measured["ours"]]
            speedup = report.ratios(end_to_end, baseline)
            share = [100 * ratio for ratio in report.ratios(end_to_end, compute)]
            rows.append(
                [model, *map(report.spread, (baseline, end_to_end, compute))]
                + [report.spread(speedup, 1), f"{report.spread(share)} %"]
            )
            goals += [
                report.Goal(
                    text=f"{model}: at least 7x the original recipe (aim 10x)",
                    measured=f"{report.spread(speedup, 1)}x",
                    is_reached=bool(np.median(speedup) >= 7),
                ),
                report.Goal(
                    text=f"{model}: at least 90 % of the compute-only rate",
                    measured=f"{report.spread(share)} %",
                    is_reached=bool(np.median(share) >= 90),
                ),
            ]
    columns = ("model", "original, images/s", "ours, images/s", "compute only, images/s")
    report.write_report(
        args.report,
        title="Training, images per second",
        module="benchmarks.training",
        repetitions=f"{args.num_turns} turns in alternation, the waiting side stopped: original "
        f"{args.num_batches} batches per turn after {NUM_WARM_UP_BATCHES} to warm up, ours a whole "
        "epoch per turn after the first, compute only as many steps around it; "
        "median (lowest-highest)",
        goals=goals,
        tables=[
            report.Table(columns=(*columns, "ours / original", "ours / compute"), rows=rows),
        ],
    )


if __name__ == "__main__":
    main()
