"""Training with `cache=stream` beside training with the decoded cache: time, memory and disk.

Three sides take turns, each in a process of its own: the decoded cache, the same files decoded
while they are needed, and the same images in tar files, streamed too. All train the same batches
to the same weights. A side's first opening of the data is timed alone; its disk is what it leaves
in the cache's folder.

    python -m benchmarks.streaming
"""

import argparse
import dataclasses
import functools
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import ours, report
from benchmarks.memory import PeakMemory
from benchmarks.sides import measure_in_turn
from pose.data.tensors import load_recipe_data, training_data
from pose.data.twin_search import with_twins
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.training.loop import train
from pose.training.step import Step

CPU = torch.device("cpu")
DECODED, FILES, TARS = "decoded cache", "stream, files", "stream, tar files"


def pack(source: Path, folder: Path, num_tars: int) -> Path:
    """The labelled images of `source` in tar files, dealt out."""
    (folder / "train_images").mkdir(parents=True)
    for table in source.glob("*.csv"):
        shutil.copy(table, folder)
    files = ours.image_paths(source)
    for number in range(num_tars):
        with tarfile.open(folder / "train_images" / f"{number:04}.tar", "w") as tar:
            for file in files[number::num_tars]:
                tar.add(file, file.name)
    return folder


def side(
    folder: Path, model: str, cache_root: Path, num_images: int, cache: str
) -> Iterator[dict[str, float]]:
    """Images per second of an epoch's training, and what the side has cost so far."""
    keep_freed_memory()
    peak = PeakMemory()
    recipe = ours.frozen_recipe(model)
    started = time.perf_counter()
    # All that a run does before its first step, near twins among it.
    loaded = with_twins(load_recipe_data(folder, recipe, cache_root, cache=cache), recipe, None)
    open_seconds = time.perf_counter() - started
    data = ours.train_everything(training_data(loaded, recipe, MemberKey(0), CPU), num_images // 4)
    data = dataclasses.replace(data, train_rows=data.train_rows[:num_images])
    state = ours.new_state(recipe, loaded.dataset.classes.labels, seed=0, device=CPU)
    while True:
        one_more = dataclasses.replace(recipe, num_epochs=state.num_epochs_done + 1, patience=0)
        train(Step(state, data, one_more, pick_precision("auto", CPU)))
        yield {
            "images_per_second": state.history[-1]["images_per_second"],
            "validation_seconds": state.validation_seconds,
            "train_loss": state.history[-1]["train_loss"],
            "peak_gb": peak.gb,
            "open_seconds": open_seconds,
        }


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--model", default="simple_cnn")
    parser.add_argument("--num-images", type=int, default=3000, help="images per epoch")
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--num-tars", type=int, default=4)
    report.add_options(parser, "streaming")
    args = parser.parse_args()
    with (
        ours.data_folder(args.dataset, args.num_images) as folder,
        tempfile.TemporaryDirectory() as root,
    ):
        roots = {name: Path(root) / str(number) for number, name in enumerate((DECODED, FILES))}
        roots[TARS] = Path(root) / "tars_cache"
        folders = {DECODED: folder, FILES: folder}
        folders[TARS] = pack(folder, Path(root) / "tars", args.num_tars)
        measured = measure_in_turn(
            {
                name: functools.partial(
                    side,
                    folders[name],
                    args.model,
                    roots[name],
                    args.num_images,
                    "decoded" if name == DECODED else "stream",
                )
                for name in folders
            },
            args.num_turns,
        )
        disk = {name: bytes_below(own) for name, own in roots.items()}
    write(args, measured, disk)


def write(
    args: argparse.Namespace, measured: dict[str, list[dict[str, float]]], disk: dict[str, int]
) -> None:
    """Write the report."""
    rates = {
        name: [turn["images_per_second"] for turn in turns] for name, turns in measured.items()
    }
    seconds = {name: [turn["validation_seconds"] for turn in t] for name, t in measured.items()}
    peaks = {name: turns[-1]["peak_gb"] for name, turns in measured.items()}
    losses = {tuple(turn["train_loss"] for turn in turns) for turns in measured.values()}
    rows = [
        [
            name,
            report.spread(rates[name]),
            report.spread(report.ratios(rates[name], rates[DECODED]), 2),
            report.spread(report.ratios(seconds[name], seconds[DECODED]), 2),
            f"{peaks[name]:.2f}",
            f"{disk[name] / args.num_images / 1000:.1f}",
            f"{measured[name][0]['open_seconds']:.1f}",
        ]
        for name in measured
    ]
    ratio = report.ratios(rates[FILES], rates[DECODED])
    growth = max(peaks[FILES], peaks[TARS]) - peaks[DECODED]
    report.write_report(
        args.report,
        title="Decoding while training, beside the decoded cache",
        module="benchmarks.streaming",
        repetitions=f"{args.num_turns} turns in alternation, an epoch of {args.num_images} images "
        f"of {args.model} at 128 px per turn, one epoch before; median (lowest-highest)",
        goals=[
            report.Goal(
                text="the same training, whichever way",
                measured=f"{len(losses)} different histories of train_loss",
                is_reached=len(losses) == 1,
            ),
            report.Goal(
                text="streaming trains at half of the cache's rate or more, on the CPU",
                measured=f"{report.spread(ratio, 2)}x",
                is_reached=statistics.median(ratio) >= 0.5,
            ),
            report.Goal(
                text="streaming takes at most 0.1 GB more memory of its own",
                measured=f"{growth:+.2f} GB",
                is_reached=growth <= 0.1,
            ),
        ],
        tables=[
            report.Table(
                columns=(
                    "images are in",
                    "images/s, training",
                    f"x {DECODED}",
                    f"time of validation, x {DECODED}",
                    "peak RssAnon, GB",
                    "disk, KB per image",
                    "first opening, s",
                ),
                rows=rows,
            )
        ],
        notes=[
            "The CPU trains and decodes with the same cores; beside a GPU the cores decode alone, "
            "and what they decode per second is the limit ([decoding](decoding.md)).",
            "Times of turns on a machine that does other work as well say little alone: their "
            "ratios are of turns that follow one another.",
        ],
    )


if __name__ == "__main__":
    main()
