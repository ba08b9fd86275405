"""Fine-tuning to other classes, beside training from scratch on the same few images.

A network learns half of the demo's poses; then few images of each of the others are learned, from
scratch and from its weights, by the recipe of `finetune` and with one part of it left out at a
time. All is scored on images of the new classes on which nothing is trained; the best epoch is
chosen on them too, for every side alike.

    python -m benchmarks.finetune
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import ours, report
from pose.config import Recipe
from pose.data.loaded import load_data
from pose.data.tensors import TrainingData, framing_of, training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS
from pose.training.loop import train
from pose.training.model import build_for_training
from pose.training.state import start_state
from pose.training.step import Step
from pose.weights import match, start_from
from pose_models import ImageClassifier

CPU = torch.device("cpu")
FINETUNE = dataclasses.replace(NAMED_RUNS["finetune"].recipe, pretrained=False)
CHAMPION = NAMED_RUNS["champion"].recipe
FROM_SCRATCH = dataclasses.replace(FINETUNE, freeze_epochs=0, layer_decay=1.0)
# The recipe, and whether it starts from the weights.
SIDES: dict[str, tuple[Recipe, bool]] = {
    "`champion`, from scratch": (CHAMPION, False),
    "`finetune`, from scratch": (FROM_SCRATCH, False),
    "`finetune`, from the weights": (FINETUNE, True),
    "without layer_decay": (dataclasses.replace(FINETUNE, layer_decay=1.0), True),
    "without freeze_epochs": (dataclasses.replace(FINETUNE, freeze_epochs=0), True),
    "`champion`, from the weights": (CHAMPION, True),
}


def halves(mirrors: Tensor) -> tuple[Tensor, Tensor]:
    """Classes of both halves; a class and its mirror image are in the same."""
    first = torch.where(mirrors < 0, torch.arange(len(mirrors)), mirrors)
    order = torch.minimum(first, torch.arange(len(mirrors))).argsort(stable=True)
    middle = len(order) // 2
    # Not between a class and its mirror image.
    middle += int(mirrors[order[middle - 1]] == order[middle])
    return order[:middle].sort().values, order[middle:].sort().values


def part_of(
    data: TrainingData, classes: Tensor, per_class: int | None, num_val: int | None
) -> TrainingData:
    """The images of `classes`, as classes of their own.

    Args:
        per_class: training images of each; the others validate. None: the split of `data`.
        num_val: validation images of each class at most.
    """
    new = torch.full((len(data.mirrors),), -1)
    new[classes] = torch.arange(len(classes))
    old_mirrors = data.mirrors[classes]
    train_rows, val_rows = [], []
    for label in classes:
        rows = data.train_rows[data.labels[data.train_rows] == label]
        others = data.val_rows[data.labels[data.val_rows] == label]
        if per_class is not None:
            rows, others = rows[:per_class], torch.cat([others, rows[per_class:]])
        train_rows.append(rows)
        val_rows.append(others[:num_val])
    return TrainingData(
        images=data.images,
        labels=new[data.labels].clamp(min=0),
        train_rows=torch.cat(train_rows),
        val_rows=torch.cat(val_rows),
        mirrors=torch.where(old_mirrors < 0, -1, new[old_mirrors]),
    )


def learn(
    data: TrainingData, recipe: Recipe, seed: int, weights: dict[str, Tensor] | None
) -> tuple[float, dict[str, Tensor]]:
    """The best macro F1 on the validation rows, and the network's weights then."""
    labels = tuple(map(str, range(len(data.mirrors))))

    def build() -> ImageClassifier:
        model = build_for_training(recipe, labels)
        if weights is not None:
            start_from(model.network, match(model.network, weights))
        return model

    state = start_state(build, recipe, seed, CPU)
    train(Step(state, data, recipe, pick_precision("auto", CPU)))
    model = state.scored_model()
    model.load_state_dict(state.best_weights)
    return state.best_val_f1, model.network.state_dict()


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-train", type=int, default=2400)
    parser.add_argument("--per-class", type=int, default=20, help="images of each new class")
    parser.add_argument("--num-val", type=int, default=60, help="images of each class to score on")
    parser.add_argument("--first-epochs", type=int, default=20, help="of the first half")
    parser.add_argument("--num-epochs", type=int, default=10, help="of the new classes")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    report.add_options(parser, "finetune")
    args = parser.parse_args()
    keep_freed_memory()
    first = dataclasses.replace(CHAMPION, image_size=args.image_size, num_epochs=args.first_epochs)
    with (
        ours.data_folder(args.dataset, args.num_train) as folder,
        tempfile.TemporaryDirectory() as root,
    ):
        loaded = load_data(folder, framing_of(first), Path(root))
        everything = training_data(loaded, first, MemberKey(0), CPU)
        known, new = halves(everything.mirrors)
        source = part_of(everything, known, None, args.num_val)
        target = part_of(everything, new, args.per_class, args.num_val)
        source_f1, weights = learn(source, first, 0, None)
        print(f"  first half: {source_f1:.4f} on {len(source.val_rows)} images", flush=True)
        scores: dict[str, list[float]] = {}
        for name, (recipe, is_continued) in SIDES.items():
            own = dataclasses.replace(
                recipe, image_size=args.image_size, num_epochs=args.num_epochs
            )
            scores[name] = [
                learn(target, own, seed, weights if is_continued else None)[0]
                for seed in args.seeds
            ]
            print(f"  {name}: {scores[name]}", flush=True)
    write(args, scores, source, target, source_f1)


def write(
    args: argparse.Namespace,
    scores: dict[str, list[float]],
    source: TrainingData,
    target: TrainingData,
    source_f1: float,
) -> None:
    """The report of one run of all sides."""
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    ours_mean = means["`finetune`, from the weights"]
    scratch = max(mean for name, mean in means.items() if "scratch" in name)
    report.write_report(
        args.report,
        title="Fine-tuning to other classes",
        module="benchmarks.finetune",
        repetitions=f"seeds {' '.join(map(str, args.seeds))}, {args.num_epochs} epochs each",
        goals=[
            report.Goal(
                text="`finetune` from the weights beats both recipes from scratch, same images",
                measured=f"mean macro F1 {ours_mean:.4f} against {scratch:.4f}",
                is_reached=ours_mean > scratch,
            )
        ],
        tables=[
            report.Table(
                columns=("recipe", "macro F1, mean", "by seed"),
                rows=[
                    [name, f"{means[name]:.4f}", " ".join(f"{value:.4f}" for value in values)]
                    for name, values in scores.items()
                ],
            )
        ],
        notes=[
            f"The weights: `champion` on {len(source.train_rows)} images of {len(source.mirrors)} "
            f"classes, macro F1 {source_f1:.4f} on others. They are the same for all seeds.",
            f"The new classes: {len(target.mirrors)}, {args.per_class} images each; scored on "
            f"{len(target.val_rows)} others, on which the epoch is chosen too.",
            "Drawn figures: first and new classes look alike but for the pose.",
        ],
    )


if __name__ == "__main__":
    main()
