"""config.json: what rebuilds a trained model around its weights, and what it reached."""

import dataclasses
from pathlib import Path
from typing import Any

from pose.files import write_text
from pose.records import read_record, record_text

FORMAT = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One member, without its weights.

    Attributes:
        model: name of the architecture.
        image_size: height and width that the network sees, in pixels.
        labels: the label of each column of the logits.
        names: one per class, for people.
        mirrors: class index of each class's mirror image, or -1.
        run: name of the run that it belongs to.
        fold: the fold that validated it, counted from 1; 0: its run has no folds.
        val_f1: best validation macro-F1, at `best_epoch` (counted from 1).
        dataset_digest: of the data that it was trained on.
        recipe: every setting by name.
        weights_sha256: of the weights' names, types, shapes and values; empty in models from
            before 0.2, whose weights cannot be checked.
    """

    model: str
    image_size: int
    labels: tuple[str, ...]
    names: tuple[str, ...]
    mirrors: tuple[int, ...]
    run: str
    seed: int
    val_f1: float
    best_epoch: int
    dataset_digest: str
    recipe: dict[str, Any]
    weights_sha256: str = ""
    fold: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's settings by name; `image_size` among them, whatever wrote the card."""
        return {**self.recipe, "image_size": self.image_size}


def write_card(path: Path, card: ModelCard) -> None:
    """Write `card` as JSON."""
    write_text(path, record_text(card, FORMAT))


def read_card(path: Path) -> ModelCard:
    """What `write_card` wrote, in this version or an earlier one.

    Raises:
        InputError: the file is missing or damaged, or from a newer version of this software.
    """
    return read_record(path, FORMAT, f"{path} must be a whole model card", _make)


def _make(values: dict[str, Any]) -> ModelCard:
    for name in ("labels", "names", "mirrors"):
        values[name] = tuple(values[name])
    return ModelCard(**values)
