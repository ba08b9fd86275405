"""A vote on very many test images over a Ray cluster: killed half-way, continued, compared.

Through `mlflow run`, from a folder of its own; Ray is started on this machine. The images are a few
hundred small JPGs under many names (hard links). Memory is `RssAnon` of the command and of the
largest of Ray's tasks, sampled while shards come in.

    python -m benchmarks.many_images
"""

import argparse
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.front_door import finish, start

NUM_DISTINCT = 500
# Of a vote of so many images, from the first quarter of its shards to the last one.
MAX_GROWTH = 1.1


@dataclasses.dataclass(kw_only=True)
class Sample:
    """Memory at a moment, in MB, and how many shards were done."""

    shards: int
    command: float
    task: float


def write_folder(folder: Path, num_tests: int, image_size: int) -> None:
    """60 labelled images of two classes, and the test images."""
    generator = np.random.default_rng(0)
    for name in ("train_images", "test_images"):
        (folder / name).mkdir(parents=True)
    lines = ["id,label"]
    for number in range(60):
        _write(folder / "train_images" / f"{number}.jpg", number % 2, image_size, generator)
        lines.append(f"{number},{number % 2}")
    (folder / "train_solution.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number in range(num_tests):
        path = folder / "test_images" / f"{number:07}.jpg"
        if number < NUM_DISTINCT:
            _write(path, number % 2, image_size, generator)
        else:
            os.link(folder / "test_images" / f"{number % NUM_DISTINCT:07}.jpg", path)


def _write(path: Path, label: int, image_size: int, generator: np.random.Generator) -> None:
    noise = generator.integers(0, 128, (image_size, image_size, 3))
    Image.fromarray((noise + 127 * label).astype(np.uint8)).save(path, quality=95)


def watch(process: subprocess.Popen[str], work: Path, stop_at: int | None) -> list[Sample]:
    """Memory while shards come in; the command is killed when `stop_at` of them are done."""
    samples: list[Sample] = []
    while process.poll() is None:
        time.sleep(0.5)
        shards = len(list((work / "cache" / "ballots").glob("*/*.npz")))
        if shards and (not samples or samples[-1].shards <= shards):
            samples.append(_sample(shards))
        if stop_at is not None and shards >= stop_at:
            for pid, words in _processes():
                if "entrypoints.ensemble" in words:
                    os.kill(pid, signal.SIGKILL)
            break
    return samples


def _processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found.append((int(folder.name), words))
    return found


def _sample(shards: int) -> Sample:
    sample = Sample(shards=shards, command=0.0, task=0.0)
    for pid, words in _processes():
        if "-m entrypoints.ensemble" in words and "mlflow run" not in words:
            sample.command = max(sample.command, _own_memory_mb(pid))
        elif words.startswith("ray::"):
            sample.task = max(sample.task, _own_memory_mb(pid))
    return sample


def _own_memory_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"RssAnon:\s+(\d+)", text)
    return int(found[1]) / 1024 if found else 0.0


def measure(work: Path, args: argparse.Namespace) -> tuple[dict[str, float], list[Sample], str]:
    """Seconds by what was done, samples of memory, and what the continued vote said."""
    write_folder(work / "data", args.num_images, args.image_size)
    small = ("model=simple_cnn", "run_name=small", f"image_size={args.image_size}", "num_epochs=1")
    common = ("dataset=data", f"cache_root={work}/cache")
    more = ("seeds=1,2", f"output_root={work}/outputs", "batch_size=8")
    finish(start(work, "train", *common, *small, *more))
    seconds: dict[str, float] = {}

    def vote(name: str, *parameters: str) -> subprocess.Popen[str]:
        more = (f"out_path={work}/{name}.csv", f"threads={args.threads}", "probabilities=true")
        return start(work, "ensemble", *common, "run=small", *more, *parameters)

    for name, parameters in (("here", ()), ("cluster", ("engine=ray",))):
        started = time.monotonic()
        process = vote(name, *parameters)
        samples = watch(process, work, None)
        finish(process)
        seconds[name] = time.monotonic() - started
        print(name, seconds[name], flush=True)
    killed = vote("again", "engine=ray")
    watch(killed, work, args.num_images // 1024 // 2)
    killed.communicate()
    started = time.monotonic()
    said = finish(vote("again", "engine=ray"))
    seconds["again"] = time.monotonic() - started
    expected = (work / "here.csv").read_bytes()
    for name in ("cluster", "again"):
        if (work / f"{name}.csv").read_bytes() != expected:
            raise RuntimeError(f"{name}.csv must be here.csv byte for byte, found others")
    (line,) = re.findall(r"continued: .*", said)
    return seconds, samples, line


def _by_quarter(samples: Sequence[Sample]) -> list[Sample]:
    """The largest that was seen in each quarter of the shards."""
    total = samples[-1].shards
    quarters = []
    for number in range(4):
        own = [s for s in samples if number * total < 4 * s.shards <= (number + 1) * total]
        # Few shards may come faster than they are looked at.
        if own:
            quarters.append(
                Sample(
                    shards=max(s.shards for s in own),
                    command=max(s.command for s in own),
                    task=max(s.task for s in own),
                )
            )
    return quarters


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=100_000)
    parser.add_argument("--image-size", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1, help="of each task")
    report.add_options(parser, "many_images")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        seconds, samples, line = measure(root, args)
    finally:
        shutil.rmtree(root)
    quarters = _by_quarter(samples)
    growth = max(quarters[-1].command / quarters[0].command, quarters[-1].task / quarters[0].task)
    report.write_report(
        args.report,
        title=f"A vote on {args.num_images:,} test images over a cluster",
        module="benchmarks.many_images",
        repetitions="one vote of each kind",
        goals=[
            report.Goal(
                text="memory is flat",
                measured=f"x{growth:.2f} from the first quarter of the shards to the last one",
                is_reached=growth <= MAX_GROWTH,
            ),
            report.Goal(
                text="killed at half of the shards, the same command continues to the same bytes",
                measured=f"{line}; predictions.csv equal",
                is_reached=True,
            ),
        ],
        tables=[
            report.Table(
                columns=("vote of two members", "seconds of the command, MLflow's start included"),
                rows=[
                    ["one process, decoded images on disk", report.spread([seconds["here"]])],
                    ["Ray on this machine", report.spread([seconds["cluster"]])],
                    ["the same after a kill at half", report.spread([seconds["again"]])],
                ],
            ),
            report.Table(
                columns=(
                    "shards done",
                    "MB of the command, at most",
                    "MB of the largest task, at most",
                ),
                rows=[[str(s.shards), f"{s.command:.0f}", f"{s.task:.0f}"] for s in quarters],
            ),
        ],
        notes=[
            f"Images of {args.image_size} px; the command holds the members' probabilities of all "
            "images, which a million images of twenty classes and three members make 240 MB.",
        ],
    )


if __name__ == "__main__":
    main()
