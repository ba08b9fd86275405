"""Networks with ImageNet's weights that a plan may try: those whose weights can be had."""

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pose.named_runs import AUTO_BASE, NAMED_RUNS
from pose_models import ModelError, build_model

# From torchvision, which is always here. The second one is too slow without a GPU.
SMALL, LARGE = "torchvision/resnet18", "torchvision/convnext_tiny"
# How long a host may be silent that has the weights; without them there is enough to try.
SILENCE = 5.0
# Those that the plan decides about, or that the budget does.
_DECIDED = ("model", "image_size", "num_epochs", "seeds")


def names_for(device_type: str) -> tuple[str, ...]:
    """The networks that are worth their time on a device."""
    return (SMALL, LARGE) if device_type == "cuda" else (SMALL,)


def available(names: Sequence[str], say: Callable[[str], None]) -> tuple[str, ...]:
    """Those whose weights are on this machine, or come when they are asked for.

    Args:
        say: is told why others are not tried.
    """
    found = []
    for name in names:
        try:
            with _silence_ends():
                build_model(name, ("0", "1"), 64, pretrained=True)
        except ModelError as error:
            say(f"not tried: {name} ({error})")
        else:
            found.append(name)
    return tuple(found)


def finetuning() -> dict[str, Any]:
    """How the run `finetune` differs from the one that candidates are changes of."""
    ours, base = NAMED_RUNS["finetune"].recipe, NAMED_RUNS[AUTO_BASE].recipe
    return {
        field.name: value
        for field in dataclasses.fields(ours)
        if field.name not in _DECIDED
        and (value := getattr(ours, field.name)) != getattr(base, field.name)
    }


@contextlib.contextmanager
def _silence_ends() -> Iterator[None]:
    """torch.hub sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
