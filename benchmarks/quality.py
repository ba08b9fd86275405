"""Validation macro-F1 of `simple_cnn`, trained the original's way and ours, seed by seed.

The original's way: Pillow and torchvision transforms image by image, NCHW float32, ReLU before
pooling. Ours: the decoded cache, batched augmentation, channels_last, bfloat16 where the hardware
has it. Both: the same images and split, `ensemble_2` augmentation where a flip keeps the label (as
the original's did), Adam at 0.001, batch 64, the same number of epochs; each seed's best epoch.

    python -m benchmarks.quality
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import original, ours, report
from pose.data.loaded import LoadedData, load_data
from pose.data.tensors import TrainingData, training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.training.loop import train
from pose.training.predict import score_logits
from pose.training.step import Step

CPU = torch.device("cpu")


def train_original(
    loaded: LoadedData,
    data: TrainingData,
    seed: int,
    *,
    num_epochs: int,
    image_size: int,
    num_workers: int,
) -> list[float]:
    """Validation macro-F1 after each epoch."""
    torch.manual_seed(seed)
    network = original.OriginalCNN(len(loaded.dataset.classes), high_pass=False)
    optimizer = original.build_optimizer(network)

    def images(rows: torch.Tensor, preset: str) -> original.OriginalImages:
        return original.OriginalImages(
            [loaded.dataset.files[row] for row in rows.tolist()],
            data.labels[rows].numpy(),
            preset=preset,
            image_size=image_size,
            high_pass=False,
        )

    batches = original.epoch_batches(
        images(data.train_rows, "ensemble_2"), shuffle=True, num_workers=num_workers
    )
    val_batches = original.epoch_batches(
        images(data.val_rows, "none"), shuffle=False, num_workers=num_workers
    )
    scores = []
    for _ in range(num_epochs):
        network.train()
        for batch_images, labels in batches:
            original.train_step(network, optimizer, batch_images, labels)
        logits = original.predict_logits(network, val_batches)
        scores.append(score_logits(logits, data.labels[data.val_rows], "val")["val_f1"])
    return scores


def train_ours(
    loaded: LoadedData, data: TrainingData, seed: int, *, num_epochs: int, image_size: int
) -> list[float]:
    """Validation macro-F1 after each epoch."""
    recipe = ours.frozen_recipe(
        "simple_cnn", image_size=image_size, num_epochs=num_epochs, patience=0
    )
    state = ours.new_state(recipe, loaded.dataset.classes.labels, seed, CPU)
    train(Step(state, data, recipe, pick_precision("auto", CPU)))
    return [row["val_f1"] for row in state.history]


def describe(scores: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.4f}{spread}"


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=3000, help="20 % of them validate")
    parser.add_argument("--num-epochs", type=int, default=8)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64, help="the original's is 128")
    parser.add_argument("--num-workers", type=int, default=2, help="the original's workers")
    report.add_options(parser, "quality")
    args = parser.parse_args()
    keep_freed_memory()  # also for the original's side, whose time is not measured here
    sizes = {"num_epochs": args.num_epochs, "image_size": args.image_size}
    ways: dict[str, list[list[float]]] = {"original": [], "ours": []}
    with (
        ours.data_folder(args.dataset, args.num_images) as folder,
        tempfile.TemporaryDirectory() as cache_root,
    ):
        loaded = load_data(folder, args.image_size, Path(cache_root))
        shared_split = ours.frozen_recipe("simple_cnn", split_seed=0)
        data = training_data(loaded, shared_split, MemberKey(0), CPU)
        data = dataclasses.replace(data, mirrors=torch.arange(len(loaded.dataset.classes)))
        for seed in range(args.num_seeds):
            ways["original"].append(
                train_original(loaded, data, seed, num_workers=args.num_workers, **sizes)
            )
            ways["ours"].append(train_ours(loaded, data, seed, **sizes))
            for way, scores in ways.items():
                print(f"  seed {seed}, {way}: best {max(scores[-1]):.4f}", flush=True)
    best = {way: [max(epochs) for epochs in scores] for way, scores in ways.items()}
    difference = statistics.mean(best["ours"]) - statistics.mean(best["original"])
    noise = None
    if args.num_seeds > 1:
        variance = sum(statistics.variance(scores) for scores in best.values())
        noise = (variance / args.num_seeds) ** 0.5
    rows = [
        [way, *(f"{score:.4f}" for score in scores), describe(scores)]
        for way, scores in best.items()
    ]
    report.write_report(
        args.report,
        title="Nothing is lost: F1 the original's way and ours",
        module="benchmarks.quality",
        repetitions=f"{args.num_seeds} seeds each way in turn, {args.num_epochs} epochs of "
        f"{len(data.train_rows)} images at {args.image_size} px, {len(data.val_rows)} validate",
        goals=[
            report.Goal(
                text="our F1 is not below the original's by more than 2 standard errors",
                measured=f"{difference:+.4f}, standard error {noise:.4f}"
                if noise is not None
                else f"{difference:+.4f} on one seed",
                is_reached=difference >= -2 * noise if noise is not None else None,
            )
        ],
        tables=[
            report.Table(
                columns=(
                    "best val macro F1",
                    *(f"seed {seed}" for seed in range(args.num_seeds)),
                    "mean ± std",
                ),
                rows=rows,
            )
        ],
        notes=[
            "The ways draw different random numbers, so a seed's two scores are as far apart as "
            "two seeds of one way."
        ],
    )


if __name__ == "__main__":
    main()
