"""Images per second of an ensemble's prediction: 5 members of `simple_cnn_v2`.

The original decoded and transformed every image again for each member, in two workers, and ran the
networks in NCHW float32. Ours decodes each image once into the cache (`cold`), or finds it there
(`warm`), and runs member after member over it. The weights are random: they do not change the time.

    python -m benchmarks.prediction
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import original, ours, report
from benchmarks.sides import measure_in_turn
from pose.data.cache import open_cache
from pose.device import keep_freed_memory, pick_precision
from pose.training.predict import predict_logits
from pose_models import build_model, for_inference

IMAGE_SIZE = 128
NUM_CLASSES = 2


def original_side(files: Sequence[Path], num_members: int, num_workers: int) -> Iterator[float]:
    """Images per second through all members."""
    networks = [original.OriginalCNN(NUM_CLASSES, high_pass=True) for _ in range(num_members)]

    def predict(some_files: Sequence[Path]) -> None:
        images = original.OriginalImages(
            some_files,
            np.zeros(len(some_files), dtype=np.int64),
            preset="none",
            image_size=IMAGE_SIZE,
            high_pass=True,
        )
        for network in networks:
            batches = original.epoch_batches(images, shuffle=False, num_workers=num_workers)
            original.predict_logits(network, batches)

    predict(files[:64])
    yield 0.0
    while True:
        started = time.perf_counter()
        predict(files)
        yield len(files) / (time.perf_counter() - started)


def our_side(files: Sequence[Path], num_members: int) -> Iterator[dict[str, float]]:
    """Images per second through all members, without and with a cache."""
    keep_freed_memory()
    device = torch.device("cpu")
    precision = pick_precision("auto", device)
    labels = tuple(map(str, range(NUM_CLASSES)))
    members = [build_model("simple_cnn_v2", labels, IMAGE_SIZE) for _ in range(num_members)]

    def predict(some_files: Sequence[Path], cache_root: Path) -> float:
        started = time.perf_counter()
        cache = open_cache(some_files, IMAGE_SIZE, cache_root=cache_root)
        rows = torch.arange(len(some_files))
        for member in members:
            model = for_inference(member).to(memory_format=torch.channels_last)
            predict_logits(model, cache.images, rows, precision)
        return len(some_files) / (time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as root:
        yield {"warm-up": predict(files[:512], Path(root) / "warm-up")}
        for turn in itertools.count():
            cache_root = Path(root) / str(turn)
            yield {"cold": predict(files, cache_root), "warm": predict(files, cache_root)}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--num-members", type=int, default=5)
    parser.add_argument("--num-turns", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=2, help="the original's workers")
    report.add_options(parser, "prediction")
    args = parser.parse_args()
    with ours.data_folder(args.dataset, args.num_images) as folder:
        # Which folder of the data they come from makes no difference to the time.
        files = ours.image_paths(folder)[: args.num_images]
        measured = measure_in_turn(
            {
                "original": functools.partial(
                    original_side, files, args.num_members, args.num_workers
                ),
                "ours": functools.partial(our_side, files, args.num_members),
            },
            args.num_turns,
        )
    baseline = measured["original"]
    rows = [["original", report.spread(baseline), "1"]]
    goals = []
    for start in ("cold", "warm"):
        rates = [turn[start] for turn in measured["ours"]]
        speedup = report.ratios(rates, baseline)
        rows.append([f"ours, {start} cache", report.spread(rates), report.spread(speedup, 1)])
        goals.append(
            report.Goal(
                text=f"at least 8x the original's way, {start} cache",
                measured=f"{report.spread(speedup, 1)}x",
                is_reached=statistics.median(speedup) >= 8,
            )
        )
    report.write_report(
        args.report,
        title="Prediction by an ensemble",
        module="benchmarks.prediction",
        repetitions=f"{args.num_turns} turns in alternation, the waiting side stopped; each turn "
        f"{len(files)} images through {args.num_members} members; median (lowest-highest)",
        goals=goals,
        tables=[
            report.Table(columns=("", "images/s through all members", "x original"), rows=rows)
        ],
    )


if __name__ == "__main__":
    main()
