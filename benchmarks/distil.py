"""A student of the demo's ensemble, beside that ensemble and a network that learns from the labels.

Through `mlflow run`, as a user types it, from a folder of its own. The test images are those of the
drawn poses, whose labels nothing but the score reads.

    python -m benchmarks.distil
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import mlflow

from benchmarks import report
from benchmarks.front_door import finish, read_labels, score, start
from pose.demo.draw import write_demo

# How far the student may be from its ensemble, in macro-F1 on the test images.
MARGIN = 0.01
TEACHER = "ensemble of three"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a vote reached on the test images, and how long it took to predict them."""

    test_f1: float
    predict_seconds: float


def train(work: Path, name: str, *options: str) -> None:
    """Train a run of the demo's recipe under a name."""
    _mlflow(
        work,
        "train",
        "run=demo",
        f"run_name={name}",
        "dataset=data",
        f"output_root={work}/outputs",
        *options,
    )


def vote(work: Path, name: str) -> Outcome:
    """The vote of a run, scored by the truth of the test images."""
    _mlflow(work, "ensemble", f"run={name}", "dataset=data", f"out_path={work}/predictions.csv")
    truth = read_labels(work / "data" / "test_solution.csv")
    mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
    newest = mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)[0]
    return Outcome(
        test_f1=score(work / "predictions.csv", truth),
        predict_seconds=newest.data.metrics["time/predict_seconds"],
    )


def _mlflow(work: Path, entry: str, *parameters: str) -> None:
    started = time.monotonic()
    finish(start(work, entry, *parameters, POSE_CACHE=str(work / "cache")))
    print(f"{entry} {' '.join(parameters)}: {time.monotonic() - started:.0f} s", flush=True)


def measure(work: Path, args: argparse.Namespace) -> dict[str, list[Outcome]]:
    """The outcomes of the ensemble, and of one network per student seed and kind of targets."""
    write_demo(work / "data", args.num_images, args.num_test)
    common = [f"threads={args.threads}"] if args.threads else []
    common += [f"num_epochs={args.epochs}"] if args.epochs else []
    train(work, "teachers", *common)
    outcomes = {TEACHER: [vote(work, "teachers")]}
    for seed in args.seeds:
        for weight in args.weights:
            name = f"student_{seed}_{weight:g}"
            targets = ["distil=teachers", f"distil_weight={weight:g}"] if weight else []
            train(work, name, f"seeds={seed}", *targets, *common)
            outcomes.setdefault(_kind(weight), []).append(vote(work, name))
            print(name, outcomes[_kind(weight)][-1], flush=True)
    return outcomes


def _kind(weight: float) -> str:
    return f"student, distil_weight={weight:g}" if weight else "one network, from the labels"


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=3000)
    parser.add_argument("--num-test", type=int, default=600)
    parser.add_argument("--epochs", type=int, help="by default those of the run demo")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8], help="of the students")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[1.0], help="distil_weight; 0: labels alone"
    )
    report.add_options(parser, "distil")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        outcomes = measure(Path(root), args)
    ensemble = outcomes[TEACHER][0]
    gaps = [one.test_f1 - ensemble.test_f1 for one in outcomes[_kind(args.weights[0])]]
    report.write_report(
        args.report,
        title="One network in place of an ensemble",
        module="benchmarks.distil",
        repetitions=f"one ensemble, {len(args.seeds)} students of each kind",
        goals=[
            report.Goal(
                text=f"a student within {MARGIN} of its ensemble's test macro-F1 (the median)",
                measured=", ".join(f"{gap:+.4f}" for gap in gaps),
                is_reached=statistics.median(gaps) >= -MARGIN,
            )
        ],
        tables=[
            report.Table(
                columns=("run", "test macro F1", "networks", "seconds to predict the test images"),
                rows=[_row(kind, own) for kind, own in outcomes.items()],
            )
        ],
        notes=[
            f"{args.num_images} drawn poses to train and validate, {args.num_test} to test. The "
            "teachers share one split: what they say of a training row, they say of one that all "
            "trained on.",
            "The standard error of one score from 600 images is 0.01; scores of the same images "
            "differ by less than that by chance.",
        ],
    )


def _row(kind: str, own: Sequence[Outcome]) -> list[str]:
    return [
        kind,
        ", ".join(f"{one.test_f1:.4f}" for one in own),
        "3" if kind == TEACHER else "1",
        ", ".join(f"{one.predict_seconds:.1f}" for one in own),
    ]


if __name__ == "__main__":
    main()
