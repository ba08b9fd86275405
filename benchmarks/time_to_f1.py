"""Validation macro-F1 over seconds of training, each recipe given the same time.

The original recipe (`benchmarks.original`), our `simple_cnn` at the original's settings (the run
`ensemble_2`), and the run `demo`. The clock counts what a recipe does before its first step
(decoding the cache) and its training; validation is off the clock for all. Our runs get the time as
their budget, so the schedule of `demo` ends with it. The same images and split.

    python -m benchmarks.time_to_f1
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch

from benchmarks import original, ours, report
from benchmarks.sides import measure_in_turn
from pose.data.folder import read_dataset
from pose.data.loaded import load_data
from pose.data.split import split_indices
from pose.data.tensors import training_data
from pose.device import keep_freed_memory, pick_precision
from pose.history import Row
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS
from pose.training.loop import train
from pose.training.predict import score_logits
from pose.training.state import TrainState
from pose.training.step import Step

CPU = torch.device("cpu")
# What the original recipe reached after 60 epochs, about an hour, on 2 cores (DESIGN.md 7).
HOUR_OF_THE_ORIGINAL = 0.52
# Seconds of training and the validation macro-F1 after them.
Curve = list[tuple[float, float]]


class Clock:
    """Seconds on the clock; stopped while validation runs."""

    def __init__(self) -> None:
        self._off_clock = 0.0
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds on the clock so far."""
        return time.perf_counter() - self._started - self._off_clock

    def take_off(self, seconds: float) -> None:
        """These seconds do not count."""
        self._off_clock += seconds


def original_side(
    folder: Path, seed: int, limit: float, num_workers: int, batches_per_point: int
) -> Iterator[Curve]:
    """The curve of the original recipe, a point every few batches."""
    yield []
    torch.manual_seed(seed)
    dataset = read_dataset(folder)
    train_rows, val_rows = split_indices(dataset.labels, val_fraction=0.2, split_seed=0)
    val_labels = torch.from_numpy(dataset.labels[val_rows])
    clock = Clock()
    network = original.OriginalCNN(len(dataset.classes), high_pass=False)
    optimizer = original.build_optimizer(network)
    train_images, val_images = (
        original.OriginalImages(
            [dataset.files[row] for row in rows],
            dataset.labels[rows],
            preset=preset,
            image_size=128,
            high_pass=False,
        )
        for rows, preset in ((train_rows, "ensemble_2"), (val_rows, "none"))
    )
    # Decoded once, off the clock.
    validation_started = time.perf_counter()
    val_batches = list(original.epoch_batches(val_images, shuffle=False))
    clock.take_off(time.perf_counter() - validation_started)
    curve: Curve = []
    batches = original.epoch_batches(train_images, shuffle=True, num_workers=num_workers)
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    for step, (images, labels) in enumerate(endless, start=1):
        network.train()
        original.train_step(network, optimizer, images, labels)
        is_over = clock.seconds() >= limit
        if step % batches_per_point == 0 or is_over:
            seconds, validation_started = clock.seconds(), time.perf_counter()
            logits = original.predict_logits(network, val_batches)
            scores = score_logits(logits, val_labels, "val")
            curve.append((seconds, scores["val_f1"]))
            clock.take_off(time.perf_counter() - validation_started)
        if is_over:
            break
    yield curve


def our_side(folder: Path, run: str, seed: int, limit: float) -> Iterator[Curve]:
    """The curve of one of our runs, one point per epoch."""
    yield []
    keep_freed_memory()
    recipe = NAMED_RUNS[run].recipe
    clock = Clock()
    with tempfile.TemporaryDirectory() as cache_root:
        loaded = load_data(folder, recipe.image_size, Path(cache_root))
        data = training_data(
            loaded, ours.frozen_recipe("simple_cnn", split_seed=0), MemberKey(0), CPU
        )
        state = ours.new_state(recipe, loaded.dataset.classes.labels, seed, CPU)
        curve: Curve = []

        def add_point(state: TrainState, row: Row) -> None:
            clock.take_off(state.validation_seconds)
            curve.append((clock.seconds(), row["val_f1"]))

        train(
            Step(state, data, recipe, pick_precision("auto", CPU)),
            callbacks=[add_point],
            time_limit=limit - clock.seconds(),
        )
    yield curve


def draw(curves: dict[str, Curve], path: Path) -> None:
    """The curves as a picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip((0.0, 0.0), *curve, strict=True), marker=".", label=name)
    axes.axhline(
        HOUR_OF_THE_ORIGINAL, color="gray", linestyle=":", label="the original after 60 epochs"
    )
    axes.set(xlabel="seconds of training", ylabel="validation macro F1", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def seconds_until(curve: Curve, score: float) -> float | None:
    """When the curve first reached `score`; None if it never did."""
    return next((seconds for seconds, val_f1 in curve if val_f1 >= score), None)


def main() -> None:
    """Measure, draw and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=3000, help="20 % of them validate")
    parser.add_argument("--seconds", type=float, default=120, help="seconds of training for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2, help="the original's workers")
    parser.add_argument("--batches-per-point", type=int, default=10, help="of the original's curve")
    report.add_options(parser, "time_to_f1")
    args = parser.parse_args()
    with ours.data_folder(args.dataset, args.num_images) as folder:
        measured = measure_in_turn(
            {
                "original": functools.partial(
                    original_side,
                    folder,
                    args.seed,
                    args.seconds,
                    args.num_workers,
                    args.batches_per_point,
                ),
                "simple_cnn, the original's settings": functools.partial(
                    our_side, folder, "ensemble_2", args.seed, args.seconds
                ),
                "demo": functools.partial(our_side, folder, "demo", args.seed, args.seconds),
            },
            num_turns=1,
        )
    curves = {name: runs[0] for name, runs in measured.items()}
    picture = report.REPORTS / f"{args.report}.png"
    picture.parent.mkdir(exist_ok=True)
    draw(curves, picture)
    rows = []
    for name, curve in curves.items():
        reached = seconds_until(curve, HOUR_OF_THE_ORIGINAL)
        best_seconds, best = max(curve, key=lambda point: point[1], default=(0.0, 0.0))
        rows.append(
            [
                name,
                f"{best:.4f}",
                f"{best_seconds:.0f}",
                f"{curve[-1][1]:.4f}" if curve else "no epoch in the time",
                f"{reached:.0f}" if reached is not None else "not reached",
            ]
        )
    reached = seconds_until(curves["demo"], HOUR_OF_THE_ORIGINAL)
    report.write_report(
        args.report,
        title="Validation macro F1 over seconds of training",
        module="benchmarks.time_to_f1",
        repetitions=f"one run each of {args.seconds:g} s, seed {args.seed}, one after another",
        goals=[
            report.Goal(
                text=f"`demo` passes {HOUR_OF_THE_ORIGINAL} within 20 s",
                measured=f"{reached:.0f} s" if reached is not None else "not reached",
                is_reached=reached is not None and reached <= 20,
            )
        ],
        tables=[
            report.Table(
                columns=(
                    "recipe",
                    "best val macro F1",
                    "at second",
                    "last",
                    f"seconds to {HOUR_OF_THE_ORIGINAL}",
                ),
                rows=rows,
            )
        ],
        notes=[f"![validation macro F1 over seconds]({picture.name})"],
    )


if __name__ == "__main__":
    main()
