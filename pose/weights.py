"""Weights that training starts from: read without running code, fitted by name and shape."""

import dataclasses
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pose.config import Recipe
from pose.errors import InputError, first_few, one_line, printable
from pose.files import ANY_SIZE, atomic_path, make_folder, read_bytes, reason_of

# A model that is registered in MLflow instead of a file.
REGISTERED = "models:/"
# Where training programs put a state dict among other things, and what they put before its names.
CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
# With less than this, the network would be a new one with a few foreign parts.
SMALLEST_SHARE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """What of a file's weights a network takes.

    Attributes:
        taken: names in the network, and their values.
        left: names in the file that no part of the network has in that shape.
        missing: names in the network that stay as they were; the head is one where classes differ.
        share: part of the network's values that is taken, in 0..1.
    """

    taken: dict[str, Tensor]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    share: float

    def lines(self) -> list[str]:
        """The table for people."""
        table = {"taken": tuple(self.taken), "left": self.left, "missing": self.missing}
        return [
            f"weights: {100 * self.share:.1f} % of the network's values",
            *(
                f"  {name}: {len(names)} tensors"
                + (f" ({first_few(map(printable, names))})" if names else "")
                for name, names in table.items()
            ),
        ]


def local_weights(recipe: Recipe, cache_root: Path) -> Path:
    """The file that the recipe's weights are read from; a registered model's lies in the cache.

    Raises:
        InputError: a registered model that was not brought here.
    """
    assert recipe.weights is not None
    if not recipe.weights.startswith(REGISTERED):
        return Path(recipe.weights).expanduser()
    if not recipe.weights_sha256:
        raise InputError(
            f"weights must be a file here, got {recipe.weights}: only train fetches registered ones"
        )
    return cache_root / "weights" / f"{recipe.weights_sha256}.pth"


def keep_weights(path: Path, cache_root: Path) -> str:
    """Keep a copy of a registered model's weights in the cache; returns the file's SHA-256."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    folder = cache_root / "weights"
    make_folder(folder)
    with atomic_path(folder / f"{digest}.pth") as partial:
        partial.write_bytes(data)
    return digest


def read_weights(recipe: Recipe, cache_root: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by name that the recipe starts from, and the SHA-256 of their file.

    A `.safetensors` file, or a state dict that torch saved, alone or in a training program's
    checkpoint. No code from the file is run.

    Raises:
        InputError: there is no such file, or it is neither, or not the one that was meant.
    """
    path = local_weights(recipe, cache_root)
    try:
        data = read_bytes(path, ANY_SIZE)
    except OSError as error:
        raise InputError(
            "weights must be a file, or models:/<name>/<version> of this tracking store, "
            f"got {recipe.weights!r} ({reason_of(error)})"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if recipe.weights_sha256 not in (None, digest):
        raise InputError(
            f"weights must have the SHA-256 {recipe.weights_sha256}, found {digest} in {path}"
        )
    return _tensors_of(path, data), digest


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file, in the order in which they stand there.

    Raises:
        InputError: there is no such file, or it is not what torch saves a state dict as.
    """
    try:
        data = read_bytes(path, ANY_SIZE)
    except OSError as error:
        raise InputError(f"{path} must be a file of weights ({reason_of(error)})") from error
    return _tensors_of(path, data)


def _tensors_of(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors by name in a file's bytes.

    Raises:
        InputError: there are none.
    """
    try:
        values = _load(path, data)
    except ValueError as error:
        raise InputError(
            f"weights must be a safetensors file or a state dict, found {path}: "
            f"{one_line(error).split('. ')[0]}"
        ) from error
    found = _state_dict(values)
    if not found:
        raise InputError(
            f"weights must be a safetensors file or a state dict, found no named tensors in {path}"
        )
    return found


def load_saved(data: bytes) -> Any:
    """What torch saved as these bytes, on the CPU; no code from them is run.

    Raises:
        ValueError: they are anything else; the message is torch's.
    """
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A text is a program of torch's reader, which stumbles as any program of random words does.
    except Exception as error:
        raise ValueError(one_line(error, 300) or type(error).__name__) from error


def _load(path: Path, data: bytes) -> object:
    if path.suffix != ".safetensors":
        return load_saved(data)
    try:
        import safetensors.torch
    except ImportError:
        raise InputError(
            "weights in a .safetensors file need safetensors: pip install safetensors"
        ) from None
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _state_dict(values: object) -> dict[str, Tensor]:
    """The tensors by name in what a file held; none where there is no state dict."""
    if isinstance(values, Mapping):
        for name in CONTAINERS:
            if isinstance(values.get(name), Mapping):
                return _state_dict(values[name])
    else:
        return {}
    found = {
        name: value
        for name, value in values.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    for prefix in PREFIXES:
        own = [name for name in found if name.startswith(prefix)]
        # Of our own files, the preprocessing has another one.
        if own and all(n.startswith((prefix, "preprocess.")) for n in found):
            found = {name.removeprefix(prefix): found[name] for name in own}
    return found


def match(network: nn.Module, weights: Mapping[str, Tensor]) -> Transfer:
    """What `network` would take of `weights`: what has its names and shapes.

    Raises:
        InputError: less than half of the network.
    """
    own = network.state_dict()
    taken = {
        name: weights[name]
        for name, value in own.items()
        if name in weights and weights[name].shape == value.shape
    }
    num_values = sum(value.numel() for value in own.values())
    transfer = Transfer(
        taken=taken,
        left=tuple(name for name in weights if name not in taken),
        missing=tuple(name for name in own if name not in taken),
        share=sum(own[name].numel() for name in taken) / num_values,
    )
    if transfer.share < SMALLEST_SHARE:
        raise InputError(
            f"weights must fit at least half of the network, found {100 * transfer.share:.1f} % of "
            f"its values: the network has {_some(transfer.missing, own)}, "
            f"the file {_some(transfer.left, weights)}"
        )
    return transfer


@torch.no_grad()
def start_from(network: nn.Module, transfer: Transfer) -> None:
    """Give `network` the weights that it takes; all others stay as they are."""
    own = network.state_dict()
    for name, value in transfer.taken.items():
        own[name].copy_(value)


def _some(names: tuple[str, ...], values: Mapping[str, Tensor]) -> str:
    return (
        first_few(f"{printable(name)} {tuple(values[name].shape)}" for name in names) or "no more"
    )
