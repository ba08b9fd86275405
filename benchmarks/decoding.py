"""How fast the cache of decoded images is built, and how soon a second run trains.

The ceiling is the same files decoded to pixels of their own size and dropped: by simplejpeg
(libjpeg-turbo), torchvision and Pillow, in one thread or process per core. The cache also resizes,
hashes and writes. A virtual machine may have to ask its host for each page of memory that it uses
for the first time, and hands free ones back: that can take as long as decoding what goes there. So
the cache is built in memory that a deleted file has just left, and also without it.

A second run finds the cache and the tracking store; its seconds count from the end of the imports
to its first optimizer step.

    python -m benchmarks.decoding
"""

import argparse
import concurrent.futures
import functools
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import ours, report
from benchmarks.sides import measure_in_turn
from benchmarks.startup import measure_starts
from pose.data.cache import open_cache
from pose_models.decode import read_image

CHUNK = 64
TO_SIZE = "to the cache's size"
CACHE = "the cache"
AS_IT_COMES = "the cache, in memory as it comes"


def by_simplejpeg(path: Path) -> None:
    """Read and decode, nothing else."""
    simplejpeg.decode_jpeg(path.read_bytes())


def by_torchvision(path: Path) -> None:
    """Read and decode, nothing else."""
    decode_jpeg(
        torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), ImageReadMode.RGB
    )


def by_pillow(path: Path) -> None:
    """Read and decode, nothing else."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        np.asarray(image.convert("RGB"))


def to_size(path: Path, size: int) -> None:
    """Read and decode to the cache's size as the cache does, and drop the result."""
    read_image(path.read_bytes(), size)


def _decode_all(decode: Callable[[Path], None], files: Sequence[Path]) -> None:
    for path in files:
        decode(path)


def pool_side(
    files: Sequence[Path], decode: Callable[[Path], None], pool_name: str
) -> Iterator[float]:
    """Images per second through a pool of one thread or process per core."""
    torch.set_num_threads(1)
    cores = os.cpu_count() or 1
    pool: concurrent.futures.Executor
    if pool_name == "threads":
        pool = concurrent.futures.ThreadPoolExecutor(cores)
    else:
        context = multiprocessing.get_context("fork")
        pool = concurrent.futures.ProcessPoolExecutor(cores, mp_context=context)
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    work = functools.partial(_decode_all, decode)
    with pool:
        list(pool.map(work, chunks[: 2 * cores]))
        yield 0.0
        while True:
            started = time.perf_counter()
            list(pool.map(work, chunks))
            yield len(files) / (time.perf_counter() - started)


def cache_side(files: Sequence[Path], size: int, *, in_memory_at_hand: bool) -> Iterator[float]:
    """Images per second of `open_cache` where there is no cache."""
    with tempfile.TemporaryDirectory() as root:
        for turn in itertools.count():
            turn_root = Path(root) / str(turn)
            if in_memory_at_hand:
                # Four times the cache: which free pages the system takes is its own business.
                write_and_delete(Path(root) / "file", 4 * len(files) * 3 * size**2)
            started = time.perf_counter()
            open_cache(files, size, cache_root=turn_root)
            rate = len(files) / (time.perf_counter() - started)
            # Waits until the first one is on disk: not into the next side's time.
            open_cache(files, size, cache_root=turn_root)
            yield rate


def write_and_delete(path: Path, num_bytes: int) -> None:
    """Leaves the system free memory that it need not ask anyone for."""
    part = bytes(2**20)
    with open(path, "wb") as handle:
        for _ in range(-(-num_bytes // len(part))):
            handle.write(part)
    path.unlink()


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=3000)
    parser.add_argument("--image-size", type=int, default=128, help="size that the model sees")
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--num-starts", type=int, default=3)
    parser.add_argument("--run", default="ensemble_2", help="the run that is started")
    report.add_options(parser, "decoding")
    args = parser.parse_args()
    with ours.data_folder(args.dataset, args.num_images) as folder:
        files = ours.image_paths(folder)
        size = args.image_size
        decoders: dict[str, Callable[[Path], None]] = {
            "simplejpeg": by_simplejpeg,
            "torchvision": by_torchvision,
            "Pillow": by_pillow,
            TO_SIZE: functools.partial(to_size, size=size),
        }
        build = functools.partial(cache_side, files, size)
        sides = {
            # First: what the others leave is handed back by the next turn.
            AS_IT_COMES: functools.partial(build, in_memory_at_hand=False),
            CACHE: functools.partial(build, in_memory_at_hand=True),
        }
        for name, decode in decoders.items():
            for pool in ("threads", "processes"):
                sides[f"{name}, {pool}"] = functools.partial(pool_side, files, decode, pool)
        rates = measure_in_turn(sides, args.num_turns)
        starts = measure_starts(folder, args.run, args.num_starts)
    ceilings = [name for name in rates if TO_SIZE not in name and not name.startswith(CACHE)]
    best = max(ceilings, key=lambda name: statistics.median(rates[name]))
    rows = []
    for name, values in rates.items():
        share = [100 * ratio for ratio in report.ratios(rates[CACHE], values)]
        rows.append([name, report.spread(values), f"{report.spread(share)} %"])
    share = [100 * ratio for ratio in report.ratios(rates[CACHE], rates[best])]
    report.write_report(
        args.report,
        title="Building the cache, and starting again",
        module="benchmarks.decoding",
        repetitions=f"{args.num_turns} turns in alternation over {len(files)} images, "
        f"{args.num_starts} pairs of starts; median (lowest-highest)",
        goals=[
            report.Goal(
                text="the cache is built at 85 % of what the cores can decode",
                measured=f"{report.spread(share)} % of {best}",
                is_reached=statistics.median(share) >= 85,
            ),
            report.Goal(
                text="a second run trains within 3 s of its imports",
                measured=f"{report.spread(starts['second'], 2)} s",
                is_reached=statistics.median(starts["second"]) <= 3,
            ),
        ],
        tables=[
            report.Table(
                columns=("", "images/s", "the cache's share of it"),
                rows=rows,
                title=f"Decoding on all cores (256x256 JPG; the cache at {size} px)",
            ),
            report.Table(
                columns=("start", "seconds from imports done to first optimizer step"),
                rows=[
                    ["first: no cache, no store", report.spread(starts["first"], 2)],
                    ["second", report.spread(starts["second"], 2)],
                ],
                title=f"Starting `--run {args.run}`",
            ),
        ],
    )


if __name__ == "__main__":
    main()
