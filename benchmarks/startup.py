"""How soon `entrypoints.train` trains, and how soon after its last line its process is gone.

Also a library for `decoding.py` and `tracking.py`: seconds from imports done to the first optimizer
step. The command runs as users run it, in a process of its own, which a hook ends after that step.

    python -m benchmarks.startup
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import ours, report

# The hook is torch's own for optimizer steps; the process ends at once, in the middle of its work.
CHILD = """
import json, os, sys, time
import mlflow.pytorch, pose.console, pose.run, pose.stop
from torch.optim.optimizer import register_optimizer_step_post_hook
from entrypoints.train import main
started = time.perf_counter()
def report(*_):
    print(json.dumps(time.perf_counter() - started), flush=True)
    os._exit(0)
register_optimizer_step_post_hook(report)
main(sys.argv[1:], standalone_mode=False)
"""


def seconds_to_first_step(folder: Path, cache_root: Path, store: Path, run: str) -> float:
    """Start `run` on a data folder, with the tracking store and outputs in the folder `store`.

    Raises:
        RuntimeError: the command ended before its first step.
    """
    arguments = ["--dataset", folder, "--cache-root", cache_root, "--run", run, "--fresh"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=store, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"entrypoints.train failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_starts(folder: Path, run: str, repetitions: int) -> dict[str, list[float]]:
    """Seconds to the first step: `first` without a cache and a store, `second` with both."""
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as cache_root, tempfile.TemporaryDirectory() as store:
            for start in seconds:
                seconds[start].append(
                    seconds_to_first_step(folder, Path(cache_root), Path(store), run)
                )
                print(f"  {start} start: {seconds[start][-1]:.2f} s", flush=True)
    return seconds


def times_of_a_run(folder: Path, work: Path) -> dict[str, float]:
    """Train one seed for two tiny epochs, from the outside.

    Args:
        work: where the store, the cache and the outputs lie; with what an earlier call left there.

    Returns:
        Seconds by part: `imports` (all, MLflow's among them), `first epoch` (from there to its end,
        decoding and the store included), `start` (both), `end` (last line to the end of process).
    """
    arguments = ["--dataset", folder, "--run", "ensemble_2", "--seeds", "76", "--num-epochs", "2"]
    arguments += ["--image-size", "32", "--batch-size", "16", "--fresh"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "POSE_CACHE": str(work / "cache"),
    }
    started = time.perf_counter()
    marks: dict[str, float] = {}
    with subprocess.Popen(
        [sys.executable, "-m", "entrypoints.train", *map(str, arguments)],
        cwd=work, env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            marks["last line"] = time.perf_counter()
            if line.startswith("run: "):
                # The line before it waits for every import of the command.
                marks["imports"] = marks["last line"]
            if " epoch   1 " in line:
                marks["first epoch"] = marks["last line"]
        process.wait()
        ended = time.perf_counter()
    if process.returncode:
        raise RuntimeError(f"entrypoints.train failed with {process.returncode}")
    return {
        "imports": marks["imports"] - started,
        "first epoch": marks["first epoch"] - marks["imports"],
        "start": marks["first epoch"] - started,
        "end": ended - marks["last line"],
    }


PARTS = {
    "imports": "start of the process to all imports done",
    "first epoch": "imports done to the end of the first epoch",
    "start": "start of the process to the end of the first epoch",
    "end": "last line to the end of the process",
}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--num-starts", type=int, default=3)
    report.add_options(parser, "startup")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    with (
        ours.data_folder(args.dataset, args.num_images) as folder,
        tempfile.TemporaryDirectory() as work,
    ):
        times_of_a_run(folder, Path(work))
        for _ in range(args.num_starts):
            for name, value in times_of_a_run(folder, Path(work)).items():
                seconds[name].append(value)
                print(f"  {PARTS[name]}: {value:.2f} s", flush=True)
    report.write_report(
        args.report,
        title="How soon training begins, and how soon it is over",
        module="benchmarks.startup",
        repetitions=f"{args.num_starts} starts after one that made cache and store; median "
        "(lowest-highest)",
        goals=[
            report.Goal(
                text="first epoch under 6 s with everything imported",
                measured=f"{report.spread(seconds['first epoch'], 2)} s",
                is_reached=statistics.median(seconds["first epoch"]) < 6,
            ),
            report.Goal(
                text="the process ends within 1 s of its last line",
                measured=f"{report.spread(seconds['end'], 2)} s",
                is_reached=statistics.median(seconds["end"]) < 1,
            ),
        ],
        tables=[
            report.Table(
                columns=("part", "seconds"),
                rows=[[PARTS[name], report.spread(values, 2)] for name, values in seconds.items()],
            )
        ],
        notes=[
            "200 drawn images at 32 px, one seed, a local SQLite store: training itself takes a "
            "few tenths of a second.",
        ],
    )


if __name__ == "__main__":
    main()
