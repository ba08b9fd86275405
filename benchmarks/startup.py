"""Seconds from imports done to the first optimizer step of `entrypoints.train`.

A library for `decoding.py` and `tracking.py`. The command runs as users run it, in a process of its
own, which a hook ends after its first optimizer step.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
