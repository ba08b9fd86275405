"""A folder of the original's layout, read without running code: the seeds that one run left.

archive/
  hp_stats.json             of simple_cnn_v2: mean and std of the high-pass channel
  seed_<n>/
    pose_cnn.pth            best weights by val_f1, under whatever names
    training_history.csv    one row per epoch
    training_history.png    optional
    last_ckpt.pth           optional
    hp_stats.json           optional: the seed's own
"""

import dataclasses
import hashlib
import json
import math
import re
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.data.classes import ClassList
from pose.data.table import column_of, read_table
from pose.errors import InputError, first_few, known, one_line, printable
from pose.files import read_bytes
from pose.history import Row
from pose.weights import read_state_dict
from pose_models import MODELS, ImageClassifier, build_model

WEIGHTS = "pose_cnn.pth"
HISTORY = "training_history.csv"
CHECKPOINT = "last_ckpt.pth"
STATISTICS = "hp_stats.json"
# What the original trained.
ARCHITECTURES = ("simple_cnn", "simple_cnn_v2")
# Names that layers of torch give their tensors, whatever the layers are called.
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchivedSeed:
    """One seed of an archive.

    Attributes:
        weights: of the whole model with its preprocessing, under our names.
        history: what is known of each epoch; `epoch` and `val_f1` always are.
    """

    seed: int
    folder: Path
    weights: dict[str, Tensor]
    history: list[Row]

    @property
    def best(self) -> Row:
        """The first epoch with the highest val_f1."""
        return max(self.history, key=lambda row: row["val_f1"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """A run of the original.

    Attributes:
        model: name of the architecture that all seeds have.
        image_size: height and width that the network sees, in pixels.
        seeds: sorted by number.
        notes: what is missing or was assumed, for people.
    """

    folder: Path
    model: str
    image_size: int
    classes: ClassList
    seeds: tuple[ArchivedSeed, ...]
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """16 hexadecimal digits of what the members are: weights, histories, labels, size."""
        digest = hashlib.sha256()
        facts = [self.model, self.image_size, self.classes.labels]
        digest.update(json.dumps([*facts, [(s.seed, s.history) for s in self.seeds]]).encode())
        for seed in self.seeds:
            for value in seed.weights.values():
                digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def read_archive(
    folder: Path, classes: ClassList, image_size: int, model: str | None = None
) -> Archive:
    """All seeds of an archive, each checked to the end before anything is made of it.

    Args:
        classes: in the order of the networks' logits.
        model: one of our networks; None: the one of `ARCHITECTURES` that fits.

    Raises:
        InputError: there are no seeds, or one is broken or of another network; the message names
            its file.
    """
    if model is not None and model not in MODELS:
        raise InputError(f"model must be one of {known(MODELS)}, got {model!r}")
    folders = seed_folders(folder)
    candidates = (model,) if model else ARCHITECTURES
    seeds, notes = [], []
    for seed, own in folders.items():
        fitted = _fit_any(own / WEIGHTS, candidates, classes, image_size)
        # The others are of the network that the first one is.
        candidates = (fitted[0],)
        history = read_history(own / HISTORY)
        notes += _set_statistics(fitted[1], own)
        _check_zip(own / CHECKPOINT)
        weights = {name: value.clone() for name, value in fitted[1].state_dict().items()}
        seeds.append(ArchivedSeed(seed=seed, folder=own, weights=weights, history=history))
    return Archive(
        folder=folder,
        model=candidates[0],
        image_size=image_size,
        classes=classes,
        seeds=tuple(seeds),
        notes=tuple(dict.fromkeys(notes)),
    )


def seed_folders(folder: Path) -> dict[int, Path]:
    """The folders `seed_<n>` of an archive by seed, sorted.

    Raises:
        InputError: there are none, or two of one seed.
    """
    if not folder.is_dir():
        raise InputError(
            f"archive must be a folder with seed_<n>/{WEIGHTS} in it, got {str(folder)!r}, which "
            "is no folder"
        )
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"seed_(\d+)", path.name)
        if not match or not path.is_dir():
            continue
        if int(match[1]) in found:
            raise InputError(
                f"archive must have one folder per seed, found {found[int(match[1])].name} and "
                f"{path.name} in {folder}"
            )
        found[int(match[1])] = path
    if not found:
        inner = sorted({path.parent.name for path in folder.glob("*/seed_*") if path.is_dir()})
        hint = f"; {first_few(map(printable, inner))} in it has: give that one" if inner else ""
        raise InputError(f"archive must have folders seed_<n>, found none in {folder}{hint}")
    return dict(sorted(found.items()))


def read_history(path: Path) -> list[Row]:
    """The epochs of a training history: numbers by column, empty cells left out.

    Raises:
        InputError: it cannot be read, lacks epoch or val_f1, or has a cell that is no number.
    """
    table = read_table(path)
    header = table[0].cells if table else ()
    if len(table) < 2 or None in (column_of(path, header, n) for n in ("epoch", "val_f1")):
        raise InputError(
            f"{path} must have the columns epoch and val_f1 and a row per epoch, found "
            f"{first_few(map(printable, header)) or 'nothing'} and {max(0, len(table) - 1)} rows"
        )
    names = [cell.lower() for cell in header]
    rows: list[Row] = []
    for line in table[1:]:
        if len(line.cells) != len(names):
            raise InputError(
                f"{path} must have {len(names)} columns in every row, found {len(line.cells)} in "
                f"row {line.number}"
            )
        row = {
            n: _number(path, line.number, c) for n, c in zip(names, line.cells, strict=True) if c
        }
        is_next = not rows or row.get("epoch", -1) > rows[-1]["epoch"]
        is_whole = float(row.get("epoch", -1)).is_integer() and row.get("epoch", -1) >= 0
        if not (is_next and is_whole and math.isfinite(row.get("val_f1", math.nan))):
            raise InputError(
                f"{path} must count its epochs upwards and have a val_f1 in each, found another "
                f"thing in row {line.number}"
            )
        rows.append(row)
    return rows


def _number(path: Path, number: int, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(
            f"{path} must have numbers alone, found {printable(cell)[:40]!r} in row {number}"
        ) from None


def _fit_any(
    path: Path, candidates: Sequence[str], classes: ClassList, image_size: int
) -> tuple[str, ImageClassifier]:
    """The first network that the weights fit, with them.

    Raises:
        InputError: none does; the message names the tensor at which the best of them ends.
    """
    _check_zip(path)
    weights = read_state_dict(path)
    misfits = []
    for name in candidates:
        model = build_model(name, classes.labels, image_size)
        own = model.network.state_dict()
        fitted = fit_by_order(own, weights)
        if isinstance(fitted, Misfit):
            misfits.append(fitted)
            continue
        broken = [key for key, value in fitted.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise InputError(f"{path} must have finite weights, found others in {broken[0]}")
        model.network.load_state_dict({**own, **fitted})
        return name, model
    furthest = max(misfits, key=lambda misfit: misfit.num_fitted)
    raise InputError(
        f"{path} must have the tensors of {' or '.join(candidates)} for {len(classes)} classes, "
        f"the first that does not fit is {furthest.text}"
    )


@dataclasses.dataclass(frozen=True)
class Misfit:
    """Where weights stop fitting a network.

    Attributes:
        text: the tensor, and what is wrong with it.
        num_fitted: tensors before it.
    """

    text: str
    num_fitted: int


def fit_by_order(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor] | Misfit:
    """`weights` under the names of `own`: tensors of one shape in the order in which they stand.

    Layers of torch call their tensors by fixed names; where these say something else, it does not
    fit either. Batch norm's counters of batches may be missing.
    """
    waiting: dict[tuple[int, ...], deque[str]] = {}
    for name, value in own.items():
        waiting.setdefault(tuple(value.shape), deque()).append(name)
    fitted: dict[str, Tensor] = {}
    for name, value in weights.items():
        shape = tuple(value.shape)
        if not waiting.get(shape):
            return Misfit(f"{printable(name)} {shape}", len(fitted))
        place = waiting[shape].popleft()
        if _leaf(name) in LEAVES and _leaf(name) != _leaf(place):
            text = f"{printable(name)} {shape}, in whose place a {_leaf(place)} belongs"
            return Misfit(text, len(fitted))
        fitted[place] = value.to(own[place].dtype)
    missing = [n for n in own if n not in fitted and _leaf(n) != "num_batches_tracked"]
    if missing:
        place = missing[0]
        return Misfit(f"a missing one, {place} {tuple(own[place].shape)}", len(fitted))
    return fitted


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _set_statistics(model: ImageClassifier, folder: Path) -> list[str]:
    """Give the model the high-pass channel's statistics of its archive; returns notes."""
    if not model.preprocess.has_high_pass:
        return []
    for path in (folder / STATISTICS, folder.parent / STATISTICS):
        if path.exists():
            mean, std = read_statistics(path)
            model.preprocess.mean[0, 3], model.preprocess.std[0, 3] = mean, std
            return []
    mean, std = (float(value[0, 3]) for value in (model.preprocess.mean, model.preprocess.std))
    return [
        f"no {STATISTICS}: the high-pass channel has the mean {mean:.7f} and standard deviation "
        f"{std:.7f} of the published data"
    ]


def read_statistics(path: Path) -> tuple[float, float]:
    """Mean and standard deviation of the high-pass channel in a JSON object.

    Their names are unknown: there must be one number whose name has `mean` in it, and one with
    `std`.

    Raises:
        InputError: it is not such a file.
    """
    try:
        values = json.loads(read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a JSON file, found: {one_line(error)}") from error
    found = [_only_number(values, word) for word in ("mean", "std")]
    if None in found or not float(found[1] or 0) > 0:
        raise InputError(
            f"{path} must have one number mean and one positive number std, found "
            f"{printable(json.dumps(values))[:100]}"
        )
    return float(found[0] or 0), float(found[1] or 0)


def _only_number(values: Any, word: str) -> float | None:
    """The number whose name has `word` in it, alone or in a list of one; None if there is none."""
    if not isinstance(values, dict):
        return None
    found = [value for name, value in values.items() if word in str(name).lower()]
    if len(found) == 1 and isinstance(found[0], list) and len(found[0]) == 1:
        found = found[0]
    if len(found) != 1 or isinstance(found[0], bool) or not isinstance(found[0], int | float):
        return None
    return float(found[0]) if math.isfinite(found[0]) else None


def _check_zip(path: Path) -> None:
    """Refuse a file of torch's that lost or changed a byte; older ones have no checksums.

    Raises:
        InputError: it is damaged.
    """
    try:
        if not path.is_file() or path.read_bytes()[:2] != b"PK":
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} must be a whole file, found: {one_line(error)}") from error
    if damaged:
        raise InputError(f"{path} must be a whole file, found {printable(damaged)} damaged in it")
