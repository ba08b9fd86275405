"""What was tried for `demo`: each variant with the same epochs and seeds on the demo data.

python -m benchmarks.variants
python -m benchmarks.variants --only demo adamw --seeds 0 1 2
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import networks, ours, report
from pose.data.loaded import load_data
from pose.data.tensors import training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS
from pose.training.augment import PRESETS
from pose.training.loop import train
from pose.training.state import start_state
from pose.training.step import Step
from pose_models import MODELS, ImageClassifier
from pose_models.preprocess import Preprocess

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """`demo`, except for these settings.

    Attributes:
        recipe: settings of the recipe.
        preset: ranges of the augmentation.
        network: of `(in_channels, num_classes)`.
    """

    about: str
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: Callable[[int, int], nn.Module] = MODELS["pose_net"].network


VARIANTS = {
    "demo": Variant(about="as it is"),
    "adamw": Variant(about="AdamW, 2e-3", recipe={"optimizer": "adamw", "learning_rate": 2e-3}),
    "no_ema": Variant(about="without averaged weights", recipe={"ema_decay": 0.0}),
    "flips": Variant(about="flips that obey mirrors", preset={"flip": True}),
    "geometry": Variant(
        about="more zoom, shift, rotation", preset={"zoom": 0.25, "shift": 0.12, "rotation": 18}
    ),
    "color": Variant(
        about="more colour", preset={"brightness": 0.4, "contrast": 0.4, "saturation": 1.0}
    ),
    "no_color": Variant(
        about="no colour", preset={"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    ),
    "erasing": Variant(about="random erasing of half", recipe={"random_erasing": 0.5}),
    "mixup": Variant(about="mixup 0.2", recipe={"mixup_alpha": 0.2}),
    "cutmix": Variant(about="cutmix 1.0", recipe={"cutmix_alpha": 1.0}),
    "batch_64": Variant(about="batch 64", recipe={"batch_size": 64}),
    "small": Variant(about="80 px, 16 epochs", recipe={"image_size": 80, "num_epochs": 16}),
    "squeeze": Variant(about="squeeze-excitation", network=networks.SqueezeExcitationNet),
    "coordinates": Variant(about="coordinate channels", network=networks.CoordinateNet),
    "zero_start": Variant(about="branches start at zero", network=networks.ZeroStartNet),
    "max_and_mean": Variant(about="maximum and mean pooling", network=networks.MaxAndMeanNet),
    "quadrants": Variant(about="means of quadrants", network=networks.QuadrantNet),
    "strided": Variant(
        about="stem of one, three strided blocks", network=networks.StridedBlocksNet
    ),
}


def train_variant(
    folder: Path, variant: Variant, seed: int, cache_root: Path
) -> tuple[float, float, float]:
    """Best validation macro-F1, that of the training images at the end, and seconds."""
    recipe = dataclasses.replace(NAMED_RUNS["demo"].recipe, **variant.recipe)
    if variant.preset:
        PRESETS["variant"] = dataclasses.replace(PRESETS[recipe.augmentation], **variant.preset)
        recipe = dataclasses.replace(recipe, augmentation="variant")
    loaded = load_data(folder, recipe.image_size, cache_root)
    data = training_data(loaded, recipe, MemberKey(seed), CPU)
    labels = loaded.dataset.classes.labels

    def build() -> ImageClassifier:
        return ImageClassifier(
            Preprocess(recipe.image_size), variant.network(3, len(labels)), labels
        )

    state = start_state(build, recipe, seed, CPU)
    started = time.perf_counter()
    train(Step(state, data, recipe, pick_precision("auto", CPU)))
    return state.best_val_f1, state.history[-1]["train_f1"], time.perf_counter() - started


def main() -> None:
    """Train them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-images", type=int, default=3000, help="20 % of them validate")
    report.add_options(parser, "variants")
    args = parser.parse_args()
    keep_freed_memory()
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in args.only}
    with (
        ours.data_folder(args.dataset, args.num_images) as folder,
        tempfile.TemporaryDirectory() as cache_root,
    ):
        # Seed by seed, so that a machine that drifts does so for all variants.
        for seed in args.seeds:
            for name in args.only:
                result = train_variant(folder, VARIANTS[name], seed, Path(cache_root))
                results[name].append(result)
                print(f"  seed {seed}, {name}: val F1 {result[0]:.4f}", flush=True)
    rows = []
    for name, values in results.items():
        scores, train_scores, seconds = zip(*values, strict=True)
        mean = statistics.mean(scores)
        rows.append(
            (
                mean,
                [
                    VARIANTS[name].about,
                    f"{mean:.4f}",
                    f"{min(scores):.4f}-{max(scores):.4f}",
                    f"{statistics.mean(train_scores):.4f}",
                    report.spread(seconds),
                ],
            )
        )
    rows.sort(key=lambda row: -row[0])
    report.write_report(
        args.report,
        title="What was tried for `demo`",
        module="benchmarks.variants",
        repetitions=f"seeds {', '.join(map(str, args.seeds))}; the best epoch is chosen on the "
        "validation images, so all scores flatter alike",
        goals=[],
        tables=[
            report.Table(
                columns=(
                    "`demo` with",
                    "val macro F1, mean",
                    "lowest-highest",
                    "train macro F1 at the end",
                    "seconds per seed",
                ),
                rows=[row for _, row in rows],
            )
        ],
        notes=["One score's standard error from 600 validation images is 0.01."],
    )


if __name__ == "__main__":
    main()
