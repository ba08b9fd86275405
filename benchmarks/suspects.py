"""How many of labels that were changed on purpose are found, and what leaving them out gains.

Of the labelled images of a data folder, 3 % get the label of another class, drawn evenly. Members
are trained on folds of these, as `pose` trains them, and `label_suspects.csv` is made of what they
say of the rows that they did not train on. Then members are trained without the suspects
(`exclude`), and without all that was changed, which nobody knows in earnest. All are scored on test
images with right labels that nothing has seen.

    python -m benchmarks.suspects --cleanlab-python other_environment/bin/python

With an interpreter that has cleanlab, its `find_label_issues` is given the same probabilities.
"""

import argparse
import contextlib
import csv
import dataclasses
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from benchmarks import ours, report
from pose.config import Recipe
from pose.data.exclusion import ids_csv
from pose.data.labels import read_label_rows
from pose.data.tensors import load_recipe_data, training_data
from pose.device import pick_precision
from pose.ensembling.analysis import HeldOut, hold_out, mean_probs
from pose.ensembling.suspects import find_suspects, suspects_csv
from pose.metrics import f1_of
from pose.named_runs import NAMED_RUNS
from pose.seeds.output import predict_validation
from pose.seeds.train import build_fitted
from pose.training.loop import train
from pose.training.predict import predict_logits, probs_of
from pose.training.state import start_state
from pose.training.step import Step

PART_CHANGED = 0.03
CPU = torch.device("cpu")
CLEANLAB = """
import sys, numpy as np, cleanlab
from cleanlab.filter import find_label_issues
given = np.load(sys.argv[1])
for way in ("confident_learning", "prune_by_noise_rate"):
    found = find_label_issues(given["labels"], given["probs"], filter_by=way, n_jobs=1)
    print(cleanlab.__version__, way, *np.flatnonzero(found))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images, and how small members are trained on them.

    Attributes:
        folder: a data folder, without test images.
        num_test: of its images that are kept for the test.
        is_trained_again: whether members are trained without the suspects as well.
    """

    name: str
    folder: Path
    recipe: Recipe
    num_test: int
    is_trained_again: bool = True


def write_digits(folder: Path) -> Path:
    """scikit-learn's digits, 8 x 8 pixels, as PNG files of 24 x 24 in a data folder."""
    images, labels = load_digits(return_X_y=True)
    (folder / "train_images").mkdir(parents=True)
    for number, pixels in enumerate(images):
        gray = Image.fromarray((pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
        large = gray.resize((24, 24), Image.Resampling.NEAREST).convert("RGB")
        large.save(folder / "train_images" / f"{number}.png")
    rows = "".join(f"{number},{label}\n" for number, label in enumerate(labels))
    (folder / "train_solution.csv").write_text(f"id,label\n{rows}")
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """A data folder with changed labels, and what was changed.

    Attributes:
        changed: ids whose label is wrong now.
        test: the right label of each test image, by its file.
    """

    folder: Path
    changed: frozenset[str]
    test: dict[Path, str]


def draw(source: Source, folder: Path, seed: int) -> Draw:
    """Keep test images apart, and change labels among the others."""
    rng = np.random.default_rng(seed)
    rows = read_label_rows(source.folder / "train_solution.csv").rows
    files = {path.stem: path for path in (source.folder / "train_images").iterdir()}
    order = rng.permutation(len(rows))
    test = {files[rows[row][0]]: rows[row][1] for row in order[: source.num_test]}
    train = [rows[row] for row in sorted(order[source.num_test :])]
    classes = sorted({label for _, label in rows})
    picked = set(rng.choice(len(train), round(PART_CHANGED * len(train)), replace=False).tolist())
    (folder / "train_images").mkdir(parents=True)
    changed, lines = set(), ["id,label"]
    for row, (image_id, label) in enumerate(train):
        shutil.copy(files[image_id], folder / "train_images")
        if row in picked:
            changed.add(image_id)
            label = str(rng.choice([other for other in classes if other != label]))
        lines.append(f"{image_id},{label}")
    (folder / "train_solution.csv").write_text("\n".join(lines) + "\n")
    if (source.folder / "classes.csv").exists():
        shutil.copy(source.folder / "classes.csv", folder)
    return Draw(folder=folder, changed=frozenset(changed), test=test)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Members of one run: what they say of rows they did not train on, and their test score."""

    held_out: HeldOut
    class_labels: tuple[str, ...]
    test_f1: float


def train_members(drawn: Draw, recipe: Recipe, root: Path) -> Trained:
    """Train the members of `recipe` on a data folder, and let them vote on the test images."""
    loaded = load_recipe_data(drawn.folder, recipe, root / "cache", num_workers=1)
    labels = loaded.dataset.classes.labels
    size = (recipe.image_size, recipe.image_size)
    images = torch.stack([_pixels(path, size) for path in drawn.test])
    precision = pick_precision("auto", CPU)
    predictions, probs = [], []
    for key in recipe.members(recipe.seeds):
        data = training_data(loaded, recipe, key, CPU)
        state = start_state(partial(build_fitted, recipe, labels, data), recipe, key.seed, CPU)
        train(Step(state, data, recipe, precision))
        predictions.append(predict_validation(state, data, loaded, precision))
        # It has the weights of its best epoch now.
        logits = predict_logits(state.scored_model(), images, torch.arange(len(images)), precision)
        probs.append(probs_of(logits))
    held_out = hold_out(predictions, mean_probs, has_all=True)
    assert held_out is not None
    truth = np.array([labels.index(label) for label in drawn.test.values()])
    return Trained(
        held_out=held_out,
        class_labels=labels,
        test_f1=f1_of(np.mean(probs, axis=0), truth),
    )


def _pixels(path: Path, size: tuple[int, int]) -> torch.Tensor:
    with Image.open(path) as image:
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One draw.

    Attributes:
        found: precision and recall by the way of finding.
        overlap: of the rows that cleanlab's confident learning or we name, the part that both do;
            None without cleanlab.
        first: part of the first K suspects that were changed, K as many as were changed.
        ranking: average precision of all rows by the margin.
        test_f1: by what the members were trained on.
    """

    found: dict[str, tuple[int, float, float]]
    overlap: float | None
    first: float
    ranking: float
    test_f1: dict[str, float]
    seconds: float


def measure(source: Source, seed: int, cleanlab: str | None) -> Outcome:
    """Train on one draw with wrong labels, find them, and train without them."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        drawn = draw(source, root / "data", seed)
        noisy = train_members(drawn, source.recipe, root)
        held_out = noisy.held_out
        suspects = find_suspects(held_out)
        text = suspects_csv(suspects, held_out.ids, noisy.class_labels)
        named = [row["id"] for row in csv.DictReader(text.splitlines())]
        (root / "label_suspects.csv").write_text(text)
        (root / "all.csv").write_text(ids_csv(sorted(drawn.changed)))
        test_f1 = {"all images": noisy.test_f1}
        for what, table in (
            ("without the suspects", "label_suspects.csv"),
            ("without all that was changed", "all.csv"),
        ):
            if not source.is_trained_again or not named:
                break
            recipe = dataclasses.replace(source.recipe, exclude=str(root / table))
            test_f1[what] = train_members(drawn, recipe, root).test_f1
        found = {"label_suspects.csv": _scores(named, drawn.changed)}
        overlap = None
        if cleanlab:
            for way, ids in run_cleanlab(cleanlab, held_out, root):
                found[way] = _scores(ids, drawn.changed)
                if way.endswith("confident_learning"):
                    overlap = len(set(ids) & set(named)) / max(1, len(set(ids) | set(named)))
    is_changed = np.array([image_id in drawn.changed for image_id in held_out.ids])
    rows = np.arange(len(is_changed))
    others = held_out.combined.copy()
    others[rows, held_out.labels] = -1
    margin = others.max(axis=1) - held_out.combined[rows, held_out.labels]
    first = named[: len(drawn.changed)]
    outcome = Outcome(
        found=found,
        overlap=overlap,
        first=sum(image_id in drawn.changed for image_id in first) / max(1, len(first)),
        ranking=float(average_precision_score(is_changed, margin)),
        test_f1=test_f1,
        seconds=time.monotonic() - started,
    )
    print(source.name, seed, outcome, flush=True)
    return outcome


def _scores(ids: list[str], changed: frozenset[str]) -> tuple[int, float, float]:
    """How many ids there are, their precision and their recall."""
    right = len(changed & set(ids))
    return len(ids), right / max(1, len(ids)), right / len(changed)


def run_cleanlab(python: str, held_out: HeldOut, root: Path) -> Iterator[tuple[str, list[str]]]:
    """The ids that cleanlab doubts, by the name of its way."""
    path = root / "given.npz"
    np.savez(path, probs=held_out.combined, labels=held_out.labels)
    command = [python, "-c", CLEANLAB, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        version, way, *rows = line.split()
        yield f"cleanlab {version}, {way}", [held_out.ids[int(row)] for row in rows]


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def tables_of(source: Source, outcomes: list[Outcome], num_changed: int) -> list[report.Table]:
    """What was found, and what leaving it out gains."""
    recipe = source.recipe
    title = (
        f"{source.name}: {num_changed} changed labels; {recipe.model} at {recipe.image_size} px, "
        f"{len(recipe.seeds)} seeds x {recipe.folds} folds, {recipe.num_epochs} epochs"
    )
    ways = list(outcomes[0].found)
    rows = [
        [
            way,
            _mean([float(own.found[way][0]) for own in outcomes]),
            *(_mean([own.found[way][n] for own in outcomes]) for n in (1, 2)),
        ]
        for way in ways
    ]
    rows[0] += [_mean([own.first for own in outcomes]), _mean([own.ranking for own in outcomes])]
    rows[1:] = [[*row, "", ""] for row in rows[1:]]
    columns = (
        "rows named by", "how many", "precision", "recall",
        "precision of the first suspects, as many as were changed",
        "average precision of all rows by the margin",
    )  # fmt: skip
    gains = [[what, _mean([own.test_f1[what] for own in outcomes])] for what in outcomes[0].test_f1]
    return [
        report.Table(title=title, columns=columns, rows=rows),
        report.Table(
            columns=("trained on", f"test macro F1, {source.num_test} images"), rows=gains
        ),
    ]


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=3600, help="images of the demo data")
    parser.add_argument("--only", choices=("digits", "demo"), help="one of the two data sets")
    parser.add_argument("--draws", type=int, default=2, help="draws of changed labels")
    parser.add_argument("--cleanlab-python", help="interpreter of an environment with cleanlab")
    report.add_options(parser, "suspects")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as drawn:
        sources = []
        # fmt: off
        if args.only != "demo":
            sources.append(Source(
                name="digits as files",
                folder=write_digits(Path(root) / "digits"),
                recipe=Recipe(
                    model="simple_cnn", image_size=24, num_epochs=6, seeds=(0,), folds=3,
                    augmentation="none",
                ),
                num_test=797,
            ))
        if args.only != "digits":
            demo = drawn.enter_context(ours.data_folder(args.dataset, args.num_images))
            sources.append(Source(
                name="demo, drawn poses",
                folder=demo,
                recipe=dataclasses.replace(
                    NAMED_RUNS["demo"].recipe, seeds=(0,), folds=3
                ),
                num_test=400,
                is_trained_again=False,
            ))
        # fmt: on
        outcomes = {
            source.name: [measure(source, seed, args.cleanlab_python) for seed in range(args.draws)]
            for source in sources
        }
        tables = [
            table
            for source in sources
            for table in tables_of(source, outcomes[source.name], _num_changed(source))
        ]
    report.write_report(
        args.report,
        title="Label suspects: how many wrong labels are found, and what leaving them out gains",
        module="benchmarks.suspects",
        repetitions=f"{args.draws} draws of test images and changed labels; mean ± standard "
        "deviation over draws; one core",
        goals=[_goal(name, own) for name, own in outcomes.items()]
        + [_cleanlab_goal([own for all_own in outcomes.values() for own in all_own])],
        tables=tables,
        notes=[
            f"{PART_CHANGED:.0%} of the labels were changed to another class, drawn evenly, so "
            "mistakes are easier to see here than between classes that people confuse.",
            "The demo's own labels may have mistakes, which count as false alarms here.",
            "The test images have right labels and were neither trained nor validated on. All "
            "members of a run vote on them.",
        ],
    )


def _num_changed(source: Source) -> int:
    num_rows = len(read_label_rows(source.folder / "train_solution.csv").rows)
    return round(PART_CHANGED * (num_rows - source.num_test))


def _goal(name: str, outcomes: list[Outcome]) -> report.Goal:
    _, precision, recall = (
        statistics.mean(own.found["label_suspects.csv"][n] for own in outcomes) for n in range(3)
    )
    return report.Goal(
        text=f"{name}: at least two of three suspects were changed, and two of three that were "
        "changed are suspects",
        measured=f"precision {precision:.3f}, recall {recall:.3f}",
        is_reached=precision >= 2 / 3 and recall >= 2 / 3,
    )


def _cleanlab_goal(outcomes: list[Outcome]) -> report.Goal:
    overlaps = [own.overlap for own in outcomes if own.overlap is not None]
    lowest = min(overlaps, default=0.0)
    return report.Goal(
        text="of the rows that cleanlab's confident_learning or we name, both name 90 % (a row "
        "whose label is likelier than what is suggested is none of ours)",
        measured=f"{lowest:.1%} at the least of {len(overlaps)} draws",
        is_reached=lowest >= 0.9 if overlaps else None,
    )


if __name__ == "__main__":
    main()
