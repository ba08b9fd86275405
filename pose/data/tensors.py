"""The data as a recipe asks for it, and the tensors of one member: its split, on its device."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from pose.config import Recipe
from pose.data.cache import Progress
from pose.data.exclusion import match_excluded
from pose.data.folder import Dataset, read_dataset
from pose.data.loaded import LoadedData, decode_dataset
from pose.data.shards import shards_of
from pose.data.split import split_rows
from pose.data.streamed import Images
from pose.data.twin_search import group_twins
from pose.member_key import MemberKey
from pose_models import Framing


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Images and labels of one split, on the device that trains.

    Attributes:
        images: `(N, 3, S, S)` uint8, S the framing's canvas, on the device, memory-mapped or
            streamed.
        labels: `(N,)` int64, on the device.
        train_rows: `(num_train,)` int64 rows of `images` that train, on the CPU.
        val_rows: `(num_val,)` that validate.
        soft_labels: `(N, num_classes)` float32 on the device, learned in place of the labels;
            None: the labels are.
        shards: rows of `images` that lie together, `(n,)` int64 each, in the order in which they
            lie, on the CPU, for an order by shards; none: all rows in a random order.
        mirrors: `(num_classes,)` int64 class of each class's mirror image, -1: never flipped.
    """

    images: Images
    labels: Tensor
    train_rows: Tensor
    val_rows: Tensor
    mirrors: Tensor
    soft_labels: Tensor | None = None
    shards: tuple[Tensor, ...] = ()


def framing_of(recipe: Recipe) -> Framing:
    """How the recipe's images become what its network sees."""
    return Framing.of(dataclasses.asdict(recipe))


def load_recipe_data(
    folder: Path,
    recipe: Recipe,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
    cache: str = "decoded",
) -> LoadedData:
    """A data folder, decoded and grouped as the recipe says, without what it excludes.

    Args:
        cache: `decoded`, or `stream`: images are decoded when they are needed.

    Raises:
        InputError: nothing to train on, contradictions in the folder, or `exclude` cannot be used.
    """
    # Before anything is decoded: a mistake in it should not be heard of minutes later.
    dataset = read_dataset(folder)
    excluded = excluded_ids(recipe, dataset)
    dataset.raise_if_fatal()
    loaded = decode_dataset(
        dataset,
        framing_of(recipe),
        cache_root=cache_root,
        num_workers=num_workers,
        progress=progress,
        obey_exif=recipe.exif == "obey",
        cache=cache,
    )
    loaded = loaded.excluding(excluded) if excluded else loaded
    return group_twins(loaded) if recipe.group_near_twins else loaded


def excluded_ids(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    """The ids of the data's images that `recipe` excludes, sorted.

    Raises:
        InputError: they cannot be read, or are not of the data.
    """
    if recipe.exclude is None:
        return ()
    return match_excluded(recipe.exclude, recipe.exclude_sha256, frozenset(dataset.ids))


def training_data(
    loaded: LoadedData, recipe: Recipe, member: MemberKey, device: torch.device
) -> TrainingData:
    """The split of `member` on `device`, as `split_rows` makes it."""
    train_rows, val_rows = split_rows(loaded.dataset.labels, recipe, member, loaded.dataset.groups)
    labels = torch.zeros(len(loaded.images), dtype=torch.int64)
    labels[torch.from_numpy(loaded.rows)] = torch.from_numpy(loaded.dataset.labels)
    return TrainingData(
        images=loaded.images,
        labels=labels.to(device),
        train_rows=torch.from_numpy(loaded.rows[train_rows]),
        val_rows=torch.from_numpy(loaded.rows[val_rows]),
        mirrors=torch.tensor(loaded.dataset.classes.mirrors, device=device),
        shards=_shards(loaded) if recipe.shuffle == "shards" else (),
    )


def _shards(loaded: LoadedData) -> tuple[Tensor, ...]:
    places = shards_of(loaded.dataset.files)
    return tuple(torch.from_numpy(loaded.rows[own]) for own in places)
