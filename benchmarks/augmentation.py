"""What each preset of augmentation costs per batch, beside a training step of the same batch.

The presets take turns in one process, on noise: pixels make no difference to the time.

    python -m benchmarks.augmentation
    python -m benchmarks.augmentation --num-turns 3 --threads 1
"""

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks import ours, report
from pose.device import keep_freed_memory
from pose.training.augment import PRESETS, augment_batch, sample_params

CPU = torch.device("cpu")
BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = 64, 128, 20
STEP = "a step of `simple_cnn`, its batch given"
NEWER = ("photo_light", "photo")


def preset_work(name: str) -> Callable[[], object]:
    """Draws parameters of the preset and augments a batch."""
    data = ours.random_data(BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES, CPU)
    images = data.images[torch.arange(BATCH_SIZE)]
    generator = torch.Generator().manual_seed(0)

    def work() -> torch.Tensor:
        params = sample_params(PRESETS[name], data.labels, data.mirrors, generator)
        return augment_batch(images, params, IMAGE_SIZE)

    return work


def step_work() -> Callable[[], object]:
    """Trains on a batch that lies in memory."""
    data = ours.random_data(BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES, CPU)
    names = tuple(str(label) for label in range(NUM_CLASSES))
    step = ours.new_step(data, ours.frozen_recipe("simple_cnn"), names)
    images, _, targets = step.batch(data.train_rows)
    return lambda: step.update(images, targets)


def measure(num_turns: int, num_batches: int) -> dict[str, list[float]]:
    """Milliseconds per batch of each preset and of the step, turn by turn."""
    works = {name: preset_work(name) for name in PRESETS}
    works[STEP] = step_work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(num_turns + 1):
        for name, work in works.items():
            started = time.perf_counter()
            for _ in range(num_batches):
                work()
            if turn > 0:
                found[name].append(1e3 * (time.perf_counter() - started) / num_batches)
    return found


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-turns", type=int, default=7)
    parser.add_argument("--num-batches", type=int, default=5, help="in a turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    report.add_options(parser, "augmentation")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    measured = measure(args.num_turns, args.num_batches)
    base = measured["ensemble_2"]
    shares = {name: report.ratios(measured[name], measured[STEP]) for name in NEWER}
    dearest = max(sorted(values)[len(values) // 2] for values in shares.values())
    report.write_report(
        args.report,
        title="What augmentation costs",
        module="benchmarks.augmentation",
        repetitions=f"{args.num_turns} turns of {args.num_batches} batches of {BATCH_SIZE} at "
        f"{IMAGE_SIZE} px, {args.threads} threads; median (lowest-highest)",
        goals=[
            report.Goal(
                text="a preset for photographs costs less than a fifth of the step of `simple_cnn` "
                "that it feeds",
                measured=f"{100 * dearest:.0f} % of it",
                is_reached=dearest < 0.2,
            )
        ],
        tables=[
            report.Table(
                columns=("preset", "ms per batch", "against `ensemble_2`"),
                rows=[
                    [name, report.spread(values, 1), f"{_against(values, base)}x"]
                    for name, values in measured.items()
                ],
            )
        ],
    )


def _against(values: list[float], base: list[float]) -> str:
    return report.spread(report.ratios(values, base), 2)


if __name__ == "__main__":
    main()
