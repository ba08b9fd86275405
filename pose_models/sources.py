"""Models by name."""

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import nn

from pose_models import timm_source
from pose_models.classifier import ImageClassifier
from pose_models.errors import ModelError
from pose_models.framing import Framing, as_framing
from pose_models.pose_net import PoseNet
from pose_models.preprocess import Preprocess
from pose_models.simple_cnn import SimpleCNN
from pose_models.train_mode import AS_IT_IS, TrainMode, set_train_mode

TORCHVISION_PREFIX = "torchvision/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """How to build the network behind a name.

    Attributes:
        network: of `(in_channels, num_classes)`.
        image_size: height and width that it was made for.
        high_pass: whether it sees the high-pass channel besides RGB.
        about: one line for lists.
    """

    network: Callable[[int, int], nn.Module]
    about: str
    image_size: int = 96
    high_pass: bool = False


MODELS: dict[str, ModelEntry] = {
    "simple_cnn": ModelEntry(
        network=lambda channels, classes: SimpleCNN(channels, classes, conv_bias=True),
        image_size=128,
        about="the original's first network, 0.46 M parameters",
    ),
    "simple_cnn_v2": ModelEntry(
        network=lambda channels, classes: SimpleCNN(channels, classes, conv_bias=False),
        image_size=128,
        high_pass=True,
        about="the original's second network, on RGB and a high-pass channel",
    ),
    "pose_net": ModelEntry(
        network=PoseNet,
        about="a small residual network that sees the whole figure",
    ),
}


def check_model_name(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        ModelError: no model has this name; the message lists the known ones.
    """
    if name in MODELS:
        return
    if name.startswith(timm_source.PREFIX):
        timm_source.check_name(name.removeprefix(timm_source.PREFIX))
        return
    if name.startswith(TORCHVISION_PREFIX):
        from torchvision import models as torchvision_models

        if name.removeprefix(TORCHVISION_PREFIX) in _torchvision_classifiers(torchvision_models):
            return
        names = ", ".join(_torchvision_classifiers(torchvision_models))
        raise ModelError(f"model must be one of torchvision's classifiers ({names}), got {name!r}")
    names = ", ".join(sorted(MODELS))
    raise ModelError(
        f"model must be one of {names}, torchvision/<name> or timm/<name>, got {name!r}"
    )


def list_models(pattern: str = "") -> list[str]:
    """The names of all models that can be built here, or of those that match `pattern`.

    Args:
        pattern: with `*` and `?`, or a part of the name.
    """
    from torchvision import models as torchvision_models

    torchvisions = [TORCHVISION_PREFIX + n for n in _torchvision_classifiers(torchvision_models)]
    wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    names = [*MODELS, *torchvisions, *timm_source.names()]
    return fnmatch.filter(names, wanted)


def own_image_size(name: str) -> int:
    """Height and width that the model was made for, or its pretrained weights were trained at."""
    if name.startswith(timm_source.PREFIX):
        return timm_source.image_size(name.removeprefix(timm_source.PREFIX))
    if name.startswith(TORCHVISION_PREFIX):
        from torchvision import models as torchvision_models

        weights = torchvision_models.get_model_weights(name.removeprefix(TORCHVISION_PREFIX))
        return int(weights["DEFAULT"].transforms().crop_size[0])
    return MODELS[name].image_size


def build_model(
    name: str,
    labels: Sequence[str],
    framing: int | Framing,
    *,
    pretrained: bool = False,
    high_pass: bool = False,
    mode: TrainMode = AS_IT_IS,
) -> ImageClassifier:
    """A new model with random weights from torch's global generator.

    Args:
        labels: one per class, in the order of the logits.
        framing: or the height and width alone that the network sees.
        high_pass: give the network the high-pass channel, if it has none of its own already.
        pretrained: start from ImageNet weights (`torchvision/` and `timm/` models only).
        mode: what it does in training.

    Raises:
        ModelError: no model has this name, it has no pretrained weights, or cannot train so.
    """
    check_model_name(name)
    framing = as_framing(framing)
    if name.startswith(timm_source.PREFIX):
        own_name = name.removeprefix(timm_source.PREFIX)
        preprocess = Preprocess(
            framing, high_pass=high_pass, statistics=timm_source.statistics(own_name)
        )
        network = timm_source.build(
            own_name, preprocess.num_channels, len(labels), framing.size, pretrained, mode
        )
        return ImageClassifier(preprocess, network, tuple(labels))
    if name.startswith(TORCHVISION_PREFIX):
        preprocess = Preprocess(framing, high_pass=high_pass)
        network = _build_torchvision(
            name.removeprefix(TORCHVISION_PREFIX), len(labels), framing.size, pretrained
        )
        if high_pass:
            _add_input_channel(network)
    else:
        preprocess = Preprocess(framing, high_pass=MODELS[name].high_pass or high_pass)
        network = _build_own(name, preprocess.num_channels, len(labels), pretrained)
    set_train_mode(name, network, mode)
    return ImageClassifier(preprocess, network, tuple(labels))


def _build_own(name: str, num_channels: int, num_classes: int, pretrained: bool) -> nn.Module:
    if pretrained:
        raise ModelError(
            f"pretrained weights exist for torchvision/ and timm/ models only, not for {name}: "
            "name one of those as model, or give weights"
        )
    return MODELS[name].network(num_channels, num_classes)


def _torchvision_classifiers(torchvision_models: ModuleType) -> list[str]:
    names: list[str] = torchvision_models.list_models(module=torchvision_models)
    return names


def _build_torchvision(name: str, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    # Imported here: torchvision takes half a second, which other models need not pay.
    from torchvision import models as torchvision_models

    extra = {"image_size": image_size} if name.startswith("vit_") else {}
    if name.startswith("inception_v3") or name == "googlenet":
        # Their auxiliary heads return tuples in training mode.
        extra = {"aux_logits": False, "init_weights": True}
    if not pretrained:
        plain: nn.Module = torchvision_models.get_model(
            name, weights=None, num_classes=num_classes, **extra
        )
        return plain
    if extra and "aux_logits" in extra:
        extra = {"aux_logits": True}
    try:
        network = torchvision_models.get_model(name, weights="DEFAULT", **extra)
    except OSError as error:
        raise ModelError(
            f"pretrained weights of {name} must be in torch's cache or be downloadable, "
            f"found neither ({' '.join(str(error).split())[:120]}): leave pretrained out"
        ) from error
    if "aux_logits" in extra:
        network.aux_logits = False
        network.AuxLogits = network.aux1 = network.aux2 = None
    return _replace_head(network, num_classes)


def _replace_head(network: nn.Module, num_classes: int) -> nn.Module:
    """`network` with a new last layer in place of the one for ImageNet's 1,000 classes."""
    found = [
        (module_name, module)
        for module_name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ]
    module_name, head = found[-1]
    parent = network.get_submodule(module_name.rpartition(".")[0])
    new: nn.Module
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes)
    else:
        height, width = head.kernel_size
        new = nn.Conv2d(head.in_channels, num_classes, (height, width))
    setattr(parent, module_name.rpartition(".")[2], new)
    return network


def _add_input_channel(network: nn.Module) -> None:
    """Give the first convolution a fourth channel, which counts for nothing until it is trained."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        old.in_channels + 1,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    setattr(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
