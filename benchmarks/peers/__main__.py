"""Test macro-F1 after the same time: our `champion`, and other libraries' own training.

From scratch, on the same images and split, one after another. The others are installed into an
environment of their own, which finds torch in this one. None flips images: on drawn poses left and
right are labels, which only a data folder of ours can say (`classes.csv`).

    python -m benchmarks.peers
    python -m benchmarks.peers --data digits --sides ours timm --python other/bin/python
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours, report
from benchmarks.peers.task import Task
from benchmarks.suspects import write_digits
from pose.data.folder import read_dataset
from pose.data.split import split_indices
from pose.metrics import f1_of

SIDES = ("ours", "timm", "fastai", "ultralytics")
PACKAGES = ("fastai", "timm", "ultralytics")
# By name: the size that images are trained at.
DATA = {"demo": 96, "digits": 32}
NUM_TEST = {"demo": 600, "digits": 597}


# Test macro-F1, and what the side says of itself.
Scored = tuple[float, dict[str, Any]]


def make_environment(folder: Path) -> Path:
    """Python with the other libraries, which finds everything else in this environment."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (Path(own.stdout.strip()) / "around.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def lay_out(data: Path, num_test: int, folder: Path) -> tuple[Path, dict[str, str]]:
    """The images in folders by part and label, and without the last `num_test` a data folder.

    Returns:
        The data folder of ours, and the labels of the test images by id.
    """
    dataset = read_dataset(data)
    order = np.random.default_rng(0).permutation(len(dataset.ids))
    rest = np.sort(order[num_test:])
    labels_of = [dataset.classes.labels[index] for index in dataset.labels]
    train, val = split_indices(dataset.labels[rest], val_fraction=0.2, split_seed=0)
    for part, rows in (("train", rest[train]), ("val", rest[val]), ("test", order[:num_test])):
        for row in rows.tolist():
            own = folder / "by_label" / part / labels_of[row]
            own.mkdir(parents=True, exist_ok=True)
            (own / dataset.files[row].name).symlink_to(dataset.files[row].absolute())
    kept = folder / "data"
    (kept / "train_images").mkdir(parents=True)
    with open(kept / "train_solution.csv", "w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["id", "label"])
        for row in rest.tolist():
            table.writerow([dataset.ids[row], labels_of[row]])
            source = dataset.files[row]
            (kept / "train_images" / source.name).symlink_to(source.absolute())
    if (data / "classes.csv").exists():
        (kept / "classes.csv").symlink_to((data / "classes.csv").absolute())
    return kept, {dataset.files[row].stem: labels_of[row] for row in order[:num_test].tolist()}


def train_side(side: str, python: Path, task: Task) -> dict[str, Any]:
    """What came out of one side."""
    module = "benchmarks.peers." + ("our_side" if side == "ours" else f"{side}_side")
    interpreter = sys.executable if side == "ours" else str(python)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "YOLO_CONFIG_DIR": str(Path(task.answers).parent),
    }
    subprocess.run(
        [interpreter, "-m", module, json.dumps(task.__dict__)],
        check=True, env=environment, cwd=Path(task.answers).parent,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(Path(task.answers).read_text())
    return found


def test_f1(preds: dict[str, str], truth: dict[str, str]) -> float:
    """Macro-F1 of predicted labels by id."""
    labels = sorted(set(truth.values()))
    one_hot = np.array([[pred == label for label in labels] for pred in preds.values()])
    return f1_of(one_hot.astype(float), np.array([labels.index(truth[key]) for key in preds]))


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--repetitions", type=int, default=1, help="each with another seed")
    parser.add_argument("--num-images", type=int, default=3600, help="images of the demo data")
    parser.add_argument("--python", type=Path, help="interpreter that has the other libraries")
    report.add_options(parser, "peers")
    args = parser.parse_args()
    goals, tables = [], []
    with tempfile.TemporaryDirectory() as root:
        python = args.python.absolute() if args.python else make_environment(Path(root) / "peers")
        for name in args.data:
            scores = measure(name, python, Path(root) / name, args)
            tables.append(_table(name, scores, args))
            goals += _goals(name, scores, args.seconds)
    report.write_report(
        args.report,
        title="Other libraries' own training beside ours, from scratch, in the same time",
        module="benchmarks.peers",
        repetitions=f"{args.repetitions} training(s) of {args.seconds:g} s each, one after another",
        goals=goals,
        tables=tables,
        notes=[
            "The time counts reading, decoding, training and validation; imports and the test do "
            "not.",
            "All schedules follow the clock, so that each ends with the time; ultralytics does "
            "this itself, by epochs, and its seconds have its start and its last validation in "
            "them.",
        ],
    )


def measure(
    name: str, python: Path, folder: Path, args: argparse.Namespace
) -> dict[str, list[Scored]]:
    """Test macro-F1 of each side's trainings, with what they say of themselves."""
    scores: dict[str, list[Scored]] = {side: [] for side in args.sides}
    with ours.data_folder(
        write_digits(folder / "digits") if name == "digits" else None, args.num_images
    ) as data:
        kept, truth = lay_out(data, NUM_TEST[name], folder)
        for seed in range(args.repetitions):
            for side in args.sides:
                task = Task(
                    folder=str(folder / "by_label"), data=str(kept), seconds=args.seconds,
                    seed=seed, image_size=DATA[name], batch_size=64, num_workers=2,
                    answers=str(folder / "answers.json"),
                )  # fmt: skip
                found = train_side(side, python, task)
                scores[side].append((test_f1(found.pop("preds"), truth), found))
                print(name, side, seed, scores[side][-1], flush=True)
    return scores


def _table(name: str, scores: dict[str, list[Scored]], args: argparse.Namespace) -> report.Table:
    rows = [
        [
            side,
            own[0][1]["what"],
            report.spread([score for score, _ in own], 3),
            f"{statistics.mean(facts['epochs'] for _, facts in own):.1f}",
            f"{statistics.mean(facts['seconds'] for _, facts in own):.0f}",
        ]
        for side, own in scores.items()
    ]
    return report.Table(
        title=f"{name}, {DATA[name]} px, {NUM_TEST[name]} test images, {args.seconds:g} s each",
        columns=("side", "what", "test macro F1", "epochs", "seconds"),
        rows=rows,
    )


def _goals(name: str, scores: dict[str, list[Scored]], seconds: float) -> list[report.Goal]:
    medians = {side: statistics.median(score for score, _ in own) for side, own in scores.items()}
    if "ours" not in medians:
        return []
    return [
        report.Goal(
            text=f"{name}: ahead of {side} by test macro F1 at {seconds:g} s",
            measured=f"{medians['ours']:.3f} against {median:.3f}",
            is_reached=medians["ours"] > median,
        )
        for side, median in medians.items()
        if side != "ours"
    ]


if __name__ == "__main__":
    main()
