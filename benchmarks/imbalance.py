"""Two classes, 83 % and 17 %: `champion` against `simple_cnn_v2`, given the same time.

`simple_cnn_v2` runs as it is frozen, and with the loss balanced over the classes.

The demo data with the poses in `MINORITY` as one class and all others as the other, thinned out
to 83/17. All train under the same time limit on the same split, seed by seed.

    python -m benchmarks.imbalance
"""

import argparse
import csv
import dataclasses
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ours, report
from pose.config import Recipe
from pose.data.loaded import load_data
from pose.data.tensors import training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS
from pose.seeds.train import build_fitted
from pose.training.loop import train
from pose.training.predict import predict_logits
from pose.training.state import start_state
from pose.training.step import Step

CPU = torch.device("cpu")
# Traffic signs by pose; each class and its mirror image are in it.
MINORITY = ("Traffic_AllStop", "Traffic_LeftTurn", "Traffic_RightTurn", "T")
MINORITY_SHARE = 0.17
# Recipes by name; `champion` is the last.
RECIPES = {
    "simple_cnn_v2": NAMED_RUNS["simple_cnn_v2"].recipe,
    "simple_cnn_v2, balanced": dataclasses.replace(
        NAMED_RUNS["simple_cnn_v2"].recipe, class_weighting="balanced"
    ),
    "champion": NAMED_RUNS["champion"].recipe,
}


def write_imbalanced(demo: Path, folder: Path) -> list[int]:
    """Copy images of `demo` into a data folder of two classes; returns the classes' sizes."""
    with open(demo / "classes.csv", encoding="utf-8", newline="") as handle:
        names = {row["label"]: row["name"] for row in csv.DictReader(handle)}
    with open(demo / "train_solution.csv", encoding="utf-8", newline="") as handle:
        rows = [(row["id"], int(names[row["label"]] in MINORITY)) for row in csv.DictReader(handle)]
    few = [row for row in rows if row[1]]
    many = [row for row in rows if not row[1]]
    # Whichever class is too large for the share gives images away, evenly over the ids.
    num_few = min(len(few), round(len(many) * MINORITY_SHARE / (1 - MINORITY_SHARE)))
    num_many = min(len(many), round(num_few * (1 - MINORITY_SHARE) / MINORITY_SHARE))
    kept = thin(few, num_few) + thin(many, num_many)
    (folder / "train_images").mkdir(parents=True)
    (folder / "test_images").mkdir()
    for name, _ in kept:
        shutil.copy(demo / "train_images" / f"{name}.jpg", folder / "train_images")
    with open(folder / "train_solution.csv", "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("id", "label"), *sorted(kept)])
    return [num_many, num_few]


def thin(rows: list[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """`count` of the rows, evenly spread."""
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).round().astype(int)]


def train_recipe(
    folder: Path, recipe: Recipe, seed: int, limit: float, cache_root: Path
) -> dict[str, Any]:
    """Train and score the best weights on the validation rows."""
    recipe = dataclasses.replace(recipe, split_seed=0, patience=0)
    loaded = load_data(folder, recipe.image_size, cache_root)
    data = training_data(loaded, recipe, MemberKey(seed), CPU)
    labels = loaded.dataset.classes.labels
    precision = pick_precision("auto", CPU)
    state = start_state(lambda: build_fitted(recipe, labels, data), recipe, seed, CPU)
    train(Step(state, data, recipe, precision), time_limit=limit)
    model = state.scored_model()
    model.load_state_dict(state.best_weights)
    guesses = predict_logits(model, data.images, data.val_rows, precision).argmax(dim=1)
    truth = data.labels[data.val_rows]
    return {
        "val_f1": state.best_val_f1,
        "recalls": [float((guesses[truth == c] == c).float().mean()) for c in range(len(labels))],
        "epochs": state.num_epochs_done,
        "seconds": state.seconds,
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=3000, help="images of the demo data")
    parser.add_argument("--seconds", type=float, default=90, help="seconds of training for each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    report.add_options(parser, "imbalance")
    args = parser.parse_args()
    keep_freed_memory()
    results: dict[str, list[dict[str, Any]]] = {run: [] for run in RECIPES}
    with (
        ours.data_folder(args.dataset, args.num_images) as demo,
        tempfile.TemporaryDirectory() as root,
    ):
        folder = Path(root) / "imbalanced"
        sizes = write_imbalanced(demo, folder)
        for seed in args.seeds:
            for run, recipe in RECIPES.items():
                result = train_recipe(folder, recipe, seed, args.seconds, Path(root) / "cache")
                results[run].append(result)
                print(f"  seed {seed}, {run}: {result}", flush=True)
    scores = {run: [result["val_f1"] for result in results[run]] for run in RECIPES}
    recalls = {run: min(min(r["recalls"]) for r in results[run]) for run in RECIPES}
    rivals = [scores[run] for run in RECIPES if run != "champion"]
    overrun = max(
        abs(result["seconds"] / args.seconds - 1) for run in RECIPES for result in results[run]
    )
    rows = [
        [
            run,
            *(f"{score:.4f}" for score in scores[run]),
            f"{statistics.mean(scores[run]):.4f}",
            " / ".join(
                f"{statistics.mean(r['recalls'][c] for r in results[run]):.3f}" for c in (0, 1)
            ),
            report.spread([r["epochs"] for r in results[run]]),
            report.spread([r["seconds"] for r in results[run]], 1),
        ]
        for run in RECIPES
    ]
    report.write_report(
        args.report,
        title="Two classes, 83 % and 17 %, at equal time",
        module="benchmarks.imbalance",
        repetitions=f"{len(args.seeds)} seeds in turn, {args.seconds:g} s of training each; "
        f"{sizes[0]} and {sizes[1]} images, of which 20 % validate",
        goals=[
            report.Goal(
                text="`champion` beats `simple_cnn_v2` by macro F1, seed by seed",
                measured=f"{min(scores['champion']):.4f} and more, against "
                f"{max(map(max, rivals)):.4f} and less",
                is_reached=all(
                    ours > max(theirs)
                    for ours, *theirs in zip(scores["champion"], *rivals, strict=True)
                ),
            ),
            *(
                report.Goal(
                    text=f"`{run}` does not predict one class only",
                    measured=f"lowest recall of a class {recall:.3f}",
                    is_reached=recall > 0,
                )
                for run, recall in recalls.items()
            ),
            report.Goal(
                text="training ends within 5 % of its time limit",
                measured=f"{100 * overrun:.1f} % off at most",
                is_reached=overrun <= 0.05,
            ),
        ],
        tables=[
            report.Table(
                columns=(
                    "run",
                    *(f"val macro F1, seed {seed}" for seed in args.seeds),
                    "mean",
                    "recall of 83 % / 17 %",
                    "epochs",
                    "seconds",
                ),
                rows=rows,
            )
        ],
    )


if __name__ == "__main__":
    main()
