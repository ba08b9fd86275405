"""The process's own memory, and the cost per image, with 1,000 to 50,000 images.

The set is made of a few hundred distinct JPGs under many names (hard links). Own memory is
`RssAnon` of /proc/self/status, sampled: pages of the memory-mapped cache are the system's page
cache, which gives them back when they are needed elsewhere.

    python -m benchmarks.memory
"""

import argparse
import dataclasses
import functools
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import ours, report
from benchmarks.sides import measure_in_turn
from pose.data.folder import read_dataset
from pose.data.loaded import load_data
from pose.data.tensors import training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.training.loop import train
from pose.training.step import Step

LIMIT_GB = 2.0


class PeakMemory:
    """The largest `RssAnon` of this process so far, in GB, sampled by a thread."""

    def __init__(self) -> None:
        self.gb = 0.0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.gb = max(self.gb, own_memory_gb())
            time.sleep(0.05)


def own_memory_gb() -> float:
    """`RssAnon` of this process now, in GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("/proc/self/status must have a line RssAnon, found none")


def multiply(source: Path, folder: Path, num_images: int, num_distinct: int) -> Path:
    """A data folder of `num_images` names for the first `num_distinct` images of `source`."""
    dataset, files = read_dataset(source), ours.image_paths(source)
    (folder / "train_images").mkdir(parents=True)
    (folder / "test_images").mkdir()
    lines = ["id,label"]
    for number in range(num_images):
        row = number % min(num_distinct, len(files))
        _link(files[row], folder / "train_images" / f"{number:06}.jpg")
        lines.append(f"{number:06},{dataset.classes.labels[dataset.labels[row]]}")
    (folder / "train_solution.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or more links than this one allows
        shutil.copyfile(source, target)


def training_side(
    folder: Path, cache_root: Path, num_steps: int, *, is_whole_epoch: bool
) -> Iterator[dict[str, float]]:
    """Milliseconds per image over `num_steps` steps, and the peak of own memory so far."""
    keep_freed_memory()
    peak = PeakMemory()
    device = torch.device("cpu")
    recipe = ours.frozen_recipe("simple_cnn")
    started = time.perf_counter()
    loaded = load_data(folder, recipe.image_size, cache_root)
    load_seconds = time.perf_counter() - started
    everything = ours.train_everything(training_data(loaded, recipe, MemberKey(0), device))
    state = ours.new_state(recipe, loaded.dataset.classes.labels, seed=0, device=device)
    generator = torch.Generator().manual_seed(0)

    def milliseconds_per_image(num_rows: int) -> float:
        # Rows from all over the cache, as in an epoch that is cut short.
        rows = everything.train_rows
        chosen = rows[torch.randperm(len(rows), generator=generator)[:num_rows]]
        data = dataclasses.replace(everything, train_rows=chosen)
        one_more = dataclasses.replace(recipe, num_epochs=state.num_epochs_done + 1, patience=0)
        train(Step(state, data, one_more, pick_precision("auto", device)))
        return 1000 / state.history[-1]["images_per_second"]

    warm_up = 10 * recipe.batch_size
    yield {"ms_per_image": milliseconds_per_image(warm_up)}
    if is_whole_epoch:
        milliseconds_per_image(len(everything.train_rows))
    while True:
        cost = milliseconds_per_image(num_steps * recipe.batch_size)
        yield {"ms_per_image": cost, "peak_gb": peak.gb, "load_seconds": load_seconds}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--num-distinct", type=int, default=500, help="distinct images")
    parser.add_argument("--num-steps", type=int, default=15, help="steps per turn")
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument(
        "--whole-epoch", action="store_true", help="train a whole epoch of each size first"
    )
    report.add_options(parser, "memory")
    args = parser.parse_args()
    with (
        ours.data_folder(args.dataset, args.num_distinct) as source,
        tempfile.TemporaryDirectory() as root,
    ):
        sides = {}
        for size in args.sizes:
            folder = multiply(source, Path(root) / str(size), size, args.num_distinct)
            sides[f"{size:,}"] = functools.partial(
                training_side,
                folder,
                Path(root) / "cache",
                args.num_steps,
                is_whole_epoch=args.whole_epoch,
            )
        measured = measure_in_turn(sides, args.num_turns)
    smallest, largest = list(sides)[0], list(sides)[-1]
    costs = {name: [turn["ms_per_image"] for turn in turns] for name, turns in measured.items()}
    peaks = {name: max(turn["peak_gb"] for turn in turns) for name, turns in measured.items()}
    growth = report.ratios(costs[largest], costs[smallest])
    rows = [
        [
            name,
            report.spread(costs[name], 2),
            report.spread(report.ratios(costs[name], costs[smallest]), 2),
            f"{peaks[name]:.2f} GB",
            f"{turns[0]['load_seconds']:.1f}",
        ]
        for name, turns in measured.items()
    ]
    whole = "after a whole epoch of each size, " if args.whole_epoch else ""
    report.write_report(
        args.report,
        title="Memory and cost per image on large sets",
        module="benchmarks.memory",
        repetitions=f"{args.num_turns} turns in alternation, {whole}{args.num_steps} steps of 64 "
        "images per turn, rows drawn from the whole set; median (lowest-highest), peak: largest of "
        "all samples, decoding included",
        goals=[
            report.Goal(
                text=f"{largest} images in at most {LIMIT_GB:g} GB of own memory",
                measured=f"{peaks[largest]:.2f} GB",
                is_reached=peaks[largest] <= LIMIT_GB,
            ),
            report.Goal(
                text=f"cost per image flat from {smallest} to {largest} images (within 5 %)",
                measured=f"{report.spread(growth, 2)}x",
                is_reached=statistics.median(growth) <= 1.05,
            ),
        ],
        tables=[
            report.Table(
                columns=(
                    "images",
                    "ms per image",
                    f"x {smallest}",
                    "peak RssAnon",
                    "first load, s",
                ),
                rows=rows,
            )
        ],
    )


if __name__ == "__main__":
    main()
