"""The folder that one member leaves behind: its names, and what can be read back.

<output_root>/<run_name>/seed_<seed>/, or seed_<seed>_fold_<fold>/
  last_ckpt.pth           to continue from; previous_ckpt.pth is that of the epoch before
  training_history.csv    one row per epoch
  training_history.png
  confusion_matrix.png    of the best epoch, on the validation images
  val_predictions.csv     id, label, pred and one probability per class
  pose_cnn.pth            best weights by val_f1 (a state dict)
  config.json             all that rebuilds the model around the weights
"""

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.errors import InputError, one_line
from pose.files import ANY_SIZE, atomic_path, read_bytes, write_text
from pose.history import COLUMNS, Row
from pose.model_card import ModelCard, read_card
from pose.weights import load_saved
from pose_models import Framing, ImageClassifier, build_model

CHECKPOINT = "last_ckpt.pth"
PREVIOUS_CHECKPOINT = "previous_ckpt.pth"
WEIGHTS = "pose_cnn.pth"
CONFIG = "config.json"
HISTORY = "training_history.csv"
HISTORY_PLOT = "training_history.png"
CONFUSION_PLOT = "confusion_matrix.png"
VAL_PREDICTIONS = "val_predictions.csv"
# What a finished seed is recorded with.
RESULTS = (
    CHECKPOINT,
    HISTORY,
    HISTORY_PLOT,
    CONFUSION_PLOT,
    VAL_PREDICTIONS,
    WEIGHTS,
    CONFIG,
)

# A checkpoint is a zip file, as torch writes it, whose comment is the SHA-256 of all before it.
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64
_LENGTH_FIELD = 2


def write_checkpoint(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Replace the checkpoint and keep the one before; a kill at any moment leaves one whole."""
    with atomic_path(folder / CHECKPOINT) as partial:
        with open(partial, "w+b") as handle:
            torch.save(checkpoint, handle)
            _seal(handle)
        if (folder / CHECKPOINT).exists():
            os.replace(folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT)


def checkpoint_bytes(checkpoint: dict[str, Any]) -> bytes:
    """What `write_checkpoint` leaves in a file."""
    handle = io.BytesIO()
    torch.save(checkpoint, handle)
    _seal(handle)
    return handle.getvalue()


def _seal(handle: io.BufferedRandom | io.BytesIO) -> None:
    """Append the digest of what is in the file, as the comment of a zip file that has none."""
    end = handle.seek(0, os.SEEK_END) - _LENGTH_FIELD
    handle.seek(0)
    digest = hashlib.sha256()
    left = end
    while left:
        block = handle.read(min(left, 1 << 20))
        digest.update(block)
        left -= len(block)
    handle.seek(end)
    handle.write(_SEAL_LENGTH.to_bytes(_LENGTH_FIELD, "little"))
    handle.write(_SEAL + digest.hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU; no code from the file is run.

    Raises:
        InputError: the file is not, to the last bit, what was written.
    """
    try:
        return parse_checkpoint(read_bytes(path, ANY_SIZE), str(path))
    except OSError as error:
        raise InputError(f"{path} must be a whole checkpoint, found: {one_line(error)}") from error


def check_seal(data: bytes, name: str) -> None:
    """Hold the bytes of a checkpoint to their checksum.

    Args:
        name: what an error calls them.

    Raises:
        InputError: they are not, to the last bit, what was written.
    """
    body, seal = data[: -_SEAL_LENGTH - _LENGTH_FIELD], data[-_SEAL_LENGTH:]
    length = data[len(body) : -_SEAL_LENGTH]
    expected = _SEAL + hashlib.sha256(body).hexdigest().encode()
    if seal != expected or length != _SEAL_LENGTH.to_bytes(_LENGTH_FIELD, "little"):
        raise InputError(f"{name} must be a whole checkpoint, found one whose checksum is wrong")


def parse_checkpoint(data: bytes, name: str) -> dict[str, Any]:
    """As `read_checkpoint`, from the bytes of a file; errors call it by `name`."""
    check_seal(data, name)
    try:
        checkpoint = load_saved(data)
    except ValueError as error:
        raise InputError(f"{name} must be a whole checkpoint, found: {one_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{name} must hold a training state, found {type(checkpoint).__name__}")
    return checkpoint


class FolderHere:
    """A member's folder for whoever works on it elsewhere.

    Raises:
        InputError: another file than a member leaves.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sees(self, name: str) -> bool:
        """Whether a file of that name is beside the folder."""
        return self._folder.with_name(name).exists()

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None where there is none."""
        path = self._path(name)
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> None:
        """Replace the file; of checkpoints, the one before is kept."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            partial.write_bytes(data)
            if name == CHECKPOINT and path.exists():
                os.replace(path, self._folder / PREVIOUS_CHECKPOINT)

    def _path(self, name: str) -> Path:
        if name not in (*RESULTS, PREVIOUS_CHECKPOINT):
            raise InputError(f"a member's file must be one of {', '.join(RESULTS)}, got {name!r}")
        return self._folder / name


def write_history(folder: Path, history: list[Row]) -> None:
    """Replace `training_history.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / HISTORY, text.getvalue())


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: equal for equal networks, however saved."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def files_sha256(folder: Path) -> str:
    """SHA-256 of what a vote reads of a member besides its weights; empty where that is not there.

    The card holds the weights to theirs; nothing holds the card and the validation predictions.
    """
    digest = hashlib.sha256()
    try:
        for name in (CONFIG, VAL_PREDICTIONS):
            digest.update(hashlib.sha256(read_bytes(folder / name)).digest())
    except OSError:
        return ""
    return digest.hexdigest()


def has_recorded_files(folder: Path, sha256: str) -> bool:
    """Whether what a vote reads of a member besides its weights is what was recorded with it.

    Args:
        sha256: what `files_sha256` was then; empty: it was not hashed yet.
    """
    return not sha256 or sha256 == files_sha256(folder)


def check_files(folder: Path, sha256: str, name: str) -> None:
    """Refuse a folder that lacks them; see `has_recorded_files`.

    Args:
        name: what an error calls the member.

    Raises:
        InputError: the files are others.
    """
    if not has_recorded_files(folder, sha256):
        raise InputError(
            f"{name} must have the {CONFIG} and {VAL_PREDICTIONS} that were recorded with it, "
            "found others: their checksum is wrong; train this seed again, or name another run"
        )


def check_weights(path: Path, sha256: str, name: str) -> None:
    """Hold a file that `write_weights` wrote to the SHA-256 of its weights.

    Args:
        sha256: empty: it was not hashed yet.
        name: what an error calls the model.

    Raises:
        InputError: it is damaged, or another one.
    """
    if not sha256:
        return
    try:
        found = weights_sha256(load_saved(read_bytes(path, ANY_SIZE)))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        found = one_line(error)
    if found != sha256:
        raise InputError(
            f"{name} must have the weights that were registered, found others in its {WEIGHTS}: "
            f"their SHA-256 is not {sha256[:12]}; name another version"
        )


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state dict, atomically."""
    # By a file of Python's: what goes wrong is then said by the system, and not by torch alone.
    with atomic_path(path) as partial, open(partial, "wb") as handle:
        torch.save(dict(weights), handle)


def decoding_of(card: ModelCard) -> tuple[Framing, bool]:
    """How images are framed for the card's model, and whether they are turned as they ask."""
    return Framing.of(card.settings), card.recipe.get("exif", "ignore") == "obey"


def read_model(folder: Path, name: str = "") -> tuple[ImageClassifier, ModelCard]:
    """The trained model in a folder with `config.json` and `pose_cnn.pth`, in evaluation mode.

    Runs no code from the files: the network is rebuilt by its name.

    Args:
        name: what an error calls the model; default: its folder.

    Raises:
        InputError: a file is missing or damaged, from a newer version of this software, or the
            weights are not those that the card is about.
    """
    name = name or str(folder)
    try:
        card = read_card(folder / CONFIG)
        weights = load_saved(read_bytes(folder / WEIGHTS, ANY_SIZE))
        recipe = card.settings
        model = build_model(
            card.model, card.labels, Framing.of(recipe), high_pass=recipe.get("high_pass", False)
        )
        model.load_state_dict(weights)
    except (InputError, OSError) as error:
        # A member that was fetched lies in a folder whose name says nothing to anybody.
        reason = one_line(error, 300).replace(f"{folder}/", "")
        raise InputError(f"{name} must be a whole model, found: {reason}") from error
    # A state dict of another network, or no state dict at all.
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{name} must have the weights of {card.model} in {WEIGHTS}, found: {one_line(error)}"
        ) from error
    if card.weights_sha256 and weights_sha256(weights) != card.weights_sha256:
        raise InputError(
            f"{name} must have the weights that were saved, found others: their SHA-256 is not "
            f"the {card.weights_sha256[:12]} of its {CONFIG}"
        )
    return model.eval(), card


def problem_of(folder: Path) -> str:
    """What is wrong with the results of a finished seed; empty where nothing is.

    Pictures may be missing: one that cannot be drawn costs no seed.
    """
    for name in (CONFIG, WEIGHTS, VAL_PREDICTIONS, HISTORY):
        if not (folder / name).is_file():
            return f"{name} is gone"
    try:
        read_model(folder, WEIGHTS)
    except InputError as error:
        return one_line(error)
    return ""
