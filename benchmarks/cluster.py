"""Members on a Ray cluster of this machine, beside processes and one after another: its price.

The same members of a small network are trained three ways by the command, as users run it: one
after another on all cores, and a core each in processes and on Ray. Processes and Ray train at the
same time and with as many threads, so what Ray takes longer is Ray's.

    python -m benchmarks.cluster --dataset demo
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.report import Goal, Table, spread

RUN = "overhead"
WAYS = {
    "one after another": ("--engine", "local"),
    "processes": ("--engine", "processes", "--threads", "1"),
    "ray": ("--engine", "ray", "--threads", "1"),
}
MAX_SECONDS_PER_SEED = 10
MAX_SHARE = 0.05
LONG_SEED_SECONDS = 600
# Fewer say nothing of a goal: other work on the machine moves a turn by more than is asked about.
MIN_TURNS = 3


def seconds_of(way: str, options: argparse.Namespace, work: Path) -> tuple[float, float]:
    """Train the members one way, in a store and a folder of its own.

    Returns:
        Seconds of the whole command, and of all epochs of all members.

    Raises:
        RuntimeError: the command failed.
    """
    arguments = ["--dataset", options.dataset, "--model", options.model, "--run-name", RUN]
    arguments += ["--seeds", ",".join(map(str, range(options.seeds)))]
    arguments += ["--num-epochs", str(options.epochs), "--image-size", "32", *WAYS[way]]
    if "local" not in WAYS[way]:
        arguments += ["--parallel", str(os.cpu_count())]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "entrypoints.train", *arguments],
        cwd=work, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"entrypoints.train failed:\n{done.stdout}\n{done.stderr}")
    epochs = 0.0
    for path in (work / "outputs" / RUN).glob("seed_*/training_history.csv"):
        with open(path, newline="", encoding="utf-8") as handle:
            epochs += sum(float(row["epoch_seconds"]) for row in csv.DictReader(handle))
    return seconds, epochs


def measure(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Turns of all ways in alternation; the first, which decodes, is not counted."""
    measured: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(options.turns + 1):
        for way in WAYS if turn else list(WAYS)[:1]:
            with tempfile.TemporaryDirectory() as work:
                found = seconds_of(way, options, Path(work))
            print(f"  {way}: {found[0]:.1f} s, epochs {found[1]:.1f} s", flush=True)
            if turn:
                measured[way].append(found)
    return measured


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="data folder")
    parser.add_argument("--model", default="simple_cnn", help="architecture")
    parser.add_argument("--seeds", type=int, default=4, help="members")
    parser.add_argument("--epochs", type=int, default=3, help="of each")
    parser.add_argument("--turns", type=int, default=1, help="repetitions of all ways")
    report.add_options(parser, "cluster")
    options = parser.parse_args()
    options.dataset = str(Path(options.dataset).absolute())
    load = os.getloadavg()[0]
    measured = measure(options)
    whole = {way: [seconds for seconds, _ in turns] for way, turns in measured.items()}
    # Seconds in which a place did not train, per member: each place has its share of the members.
    places = {way: 1 if "local" in WAYS[way] else os.cpu_count() or 1 for way in WAYS}
    idle = {
        way: [
            (seconds - epochs / places[way]) * places[way] / options.seeds
            for seconds, epochs in turns
        ]
        for way, turns in measured.items()
    }
    extra = [
        (ray - processes) / options.seeds
        for ray, processes in zip(whole["ray"], whole["processes"], strict=True)
    ]
    middle = statistics.median(extra)
    is_enough = options.turns >= MIN_TURNS
    report.write_report(
        options.report,
        title="Members on a Ray cluster of one machine",
        module="benchmarks.cluster",
        repetitions=f"{options.turns} turns, all ways in alternation; median (lowest-highest)",
        goals=[
            Goal(
                text=f"Ray takes less than {MAX_SECONDS_PER_SEED} s per member more than processes",
                measured=f"{spread(extra, 1)} s",
                is_reached=middle < MAX_SECONDS_PER_SEED if is_enough else None,
            ),
            Goal(
                text=f"that is less than {MAX_SHARE:.0%} of a member of ten minutes",
                measured=f"{middle / LONG_SEED_SECONDS:.1%}",
                is_reached=middle < MAX_SHARE * LONG_SEED_SECONDS if is_enough else None,
            ),
        ],
        tables=[
            Table(
                columns=(
                    f"{options.seeds} members of {options.epochs} epochs",
                    "command, s",
                    "all epochs together, s",
                    "per member and place without training, s",
                ),
                rows=[
                    (
                        way,
                        spread(whole[way], 1),
                        spread([epochs for _, epochs in measured[way]], 1),
                        spread(idle[way], 1),
                    )
                    for way in WAYS
                ],
            )
        ],
        notes=[
            "The command's time has all in it: imports, the store, Ray's start and end, "
            "publishing.",
            f"Load average when it began, beside {os.cpu_count()} cores: {load:.1f}. On a machine "
            "that does other work as well, the seconds are larger than the ways' own, and ways "
            "that start more processes lose more by it.",
        ],
    )


if __name__ == "__main__":
    main()
