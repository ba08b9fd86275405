"""timm's models by name, where timm is installed (`pip install -r requirements-timm.txt`)."""

import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from pose_models.errors import ModelError
from pose_models.train_mode import TrainMode, has_no

PREFIX = "timm/"


def check_name(name: str) -> None:
    """Refuse a name that timm does not know; `name` without the prefix.

    Raises:
        ModelError: timm has no such model, or is not installed.
    """
    timm = _timm()
    if timm.is_model(name):
        return
    similar = timm.list_models(f"*{name.partition('.')[0].partition('_')[0]}*")
    some = ", ".join(similar[:8]) or "convnext_atto, resnet18, vit_tiny_patch16_224"
    raise ModelError(
        f"model must be one of timm's, such as {some} (all: --list-models timm), "
        f"got {PREFIX + name!r}"
    )


def names() -> list[str]:
    """All names with the prefix; none where timm is not installed."""
    try:
        return [PREFIX + name for name in _timm().list_models()]
    except ModelError:
        return []


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in 0..1 that the model's weights were trained with."""
    config = _timm().get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def image_size(name: str) -> int:
    """Height and width that the model's weights were trained at."""
    return int(_timm().get_pretrained_cfg(name).input_size[-1])


def depths(network: Any) -> dict[str, int]:
    """The layer of each parameter of a network of timm by its name, 0 at the image."""
    from timm.models import group_parameters

    found: dict[str, int] = group_parameters(
        network, network.group_matcher(coarse=False), reverse=True
    )
    return found


def build(
    name: str, num_channels: int, num_classes: int, size: int, pretrained: bool, mode: TrainMode
) -> nn.Module:
    """The network behind `name`, `(N, num_channels, size, size)` to `(N, num_classes)`.

    Raises:
        ModelError: the model does not take images of this size or does not train in this mode, or
            its weights are not to be had.
    """
    timm = _timm()
    # timm leaves out what is None.
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": num_channels,
        "drop_rate": mode.dropout,
        "drop_path_rate": mode.drop_path,
    }
    config = timm.get_pretrained_cfg(name)
    if config.fixed_input_size and size != config.input_size[-1]:
        options["img_size"] = size
    if pretrained:
        _check_weights(name, config)
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise _no_weights(name, config, error) from error
    except TypeError as error:
        for option, setting in (("drop_rate", "dropout"), ("drop_path_rate", "drop_path")):
            if f"'{option}'" in str(error):
                raise has_no(setting, PREFIX + name) from error
        raise ModelError(
            f"{PREFIX}{name} takes images of {config.input_size[-1]} px alone, got {size}"
        ) from error
    _set_train_mode(name, network, mode)
    return network


def _set_train_mode(name: str, network: Any, mode: TrainMode) -> None:
    """What timm's arguments alone do not say."""
    # Some take the argument and do nothing with it.
    if mode.drop_path and not any(type(m).__name__ == "DropPath" for m in network.modules()):
        raise has_no("drop_path", PREFIX + name)
    if not mode.checkpointing:
        return
    try:
        network.set_grad_checkpointing(True)
    # timm refuses by an assertion, or has no such method.
    except (AssertionError, AttributeError) as error:
        raise has_no("checkpointing", PREFIX + name) from error


def _timm() -> Any:
    try:
        # Imported here: it takes seconds, which other models need not pay.
        import timm
    except ImportError:
        raise ModelError(
            "models of timm need it installed: pip install -r requirements-timm.txt"
        ) from None
    return timm


def _check_weights(name: str, config: Any) -> None:
    """Say in seconds, not after minutes of retries, that weights are not to be had."""
    if not config.has_weights:
        raise ModelError(f"{PREFIX}{name} has no pretrained weights: leave pretrained out")
    from huggingface_hub import constants, try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return
    if urllib.request.getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=5).close()
    except OSError as error:
        raise _no_weights(name, config, error) from error


def _no_weights(name: str, config: Any, error: OSError) -> ModelError:
    from huggingface_hub import constants

    reason = " ".join(str(error).split())[:120]
    return ModelError(
        f"pretrained weights of {PREFIX}{name} must be in {constants.HF_HUB_CACHE} or be "
        f"downloadable from {constants.ENDPOINT}/{config.hf_hub_id}, found neither ({reason}): "
        "download them elsewhere and give the file as weights, or leave pretrained out"
    )
