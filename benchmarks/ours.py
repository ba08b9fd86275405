"""Our side of the comparisons: `pose` on a data folder.

Needs no MLflow.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.config import Recipe
from pose.data.folder import read_dataset
from pose.data.tensors import TrainingData
from pose.demo.draw import write_demo
from pose.device import pick_precision
from pose.named_runs import NAMED_RUNS
from pose.training.state import TrainState, start_state
from pose.training.step import Step
from pose_models import build_model


def add_dataset_option(parser: argparse.ArgumentParser) -> None:
    """The option that names a data folder."""
    parser.add_argument(
        "--dataset", type=Path, help="data folder; without it the demo data is drawn and removed"
    )


@contextlib.contextmanager
def data_folder(dataset: Path | None, num_train: int, num_test: int = 0) -> Iterator[Path]:
    """`dataset`, or the demo data drawn into a temporary folder."""
    if dataset is not None:
        yield dataset.absolute()
        return
    with tempfile.TemporaryDirectory() as root:
        print(f"drawing {num_train + num_test} images", flush=True)
        yield write_demo(Path(root) / "demo", num_train, num_test)


def image_paths(folder: Path) -> list[Path]:
    """The labelled images of a data folder that are files of their own."""
    return [file for file in read_dataset(folder).files if isinstance(file, Path)]


def frozen_recipe(model: str, **changes: Any) -> Recipe:
    """The recipe of `ensemble_2` with this model, and other changes."""
    return dataclasses.replace(NAMED_RUNS["ensemble_2"].recipe, model=model, **changes)


def new_state(
    recipe: Recipe, labels: tuple[str, ...], seed: int, device: torch.device
) -> TrainState:
    """A state before its first step; the high-pass statistics are those of the published data."""
    return start_state(
        lambda: build_model(recipe.model, labels, recipe.image_size), recipe, seed, device
    )


def new_step(
    data: TrainingData,
    recipe: Recipe,
    labels: tuple[str, ...],
    *,
    seed: int = 0,
    precision: str = "auto",
) -> Step:
    """The step of a new state in training mode, on the device of the data."""
    device = data.labels.device
    state = new_state(recipe, labels, seed, device)
    state.model.train()
    return Step(state, data, recipe, pick_precision(precision, device))


def full_batches(data: TrainingData, batch_size: int, seed: int = 0) -> Tensor:
    """The training rows in an order of the seed, on the device, `(num_batches, batch_size)`."""
    order = torch.randperm(len(data.train_rows), generator=torch.Generator().manual_seed(seed))
    num_batches = len(order) // batch_size
    rows = data.train_rows[order[: num_batches * batch_size]].to(data.labels.device)
    return rows.view(num_batches, batch_size)


def train_everything(data: TrainingData, num_val: int = 64) -> TrainingData:
    """The same images, all of them training rows; the first few also validate."""
    rows = torch.cat([data.train_rows, data.val_rows]).sort().values
    return dataclasses.replace(data, train_rows=rows, val_rows=rows[:num_val])


def random_data(
    num_images: int, image_size: int, num_classes: int, device: torch.device
) -> TrainingData:
    """Noise with random labels in the device's memory: pixels make no difference to the time."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (num_images, 3, image_size, image_size)
    return TrainingData(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator),
        labels=torch.randint(0, num_classes, shape[:1], device=device, generator=generator),
        train_rows=torch.arange(num_images),
        val_rows=torch.arange(min(64, num_images)),
        mirrors=torch.arange(num_classes, device=device),
    )
