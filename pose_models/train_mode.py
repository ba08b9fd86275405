"""What a network does in training alone, by option: finished models are built without it."""

import dataclasses

from torch import nn

from pose_models.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMode:
    """What a network is asked to do in training; the defaults leave it as it is.

    Attributes:
        dropout: probability of dropout (Srivastava et al., 2014) where the network has it.
        drop_path: probability of leaving out the last block of residual networks, less for
            blocks before it: stochastic depth (Huang et al., 2016, arXiv:1603.09382).
        checkpointing: compute activations anew in the backward pass instead of keeping them (Chen
            et al., 2016, arXiv:1604.06174).
    """

    dropout: float | None = None
    drop_path: float | None = None
    checkpointing: bool = False


AS_IT_IS = TrainMode()


def set_train_mode(name: str, network: nn.Module, mode: TrainMode) -> None:
    """Have a network of torchvision or our own train in `mode`.

    Raises:
        ModelError: it cannot; the message says which setting to leave out.
    """
    if mode.checkpointing:
        raise ModelError(f"checkpointing must go with a model of timm, got {name}: leave it out")
    if mode.dropout is not None:
        dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        if not dropouts:
            raise has_no("dropout", name)
        for module in dropouts:
            module.p = mode.dropout
    if mode.drop_path is not None:
        _set_drop_path(name, network, mode.drop_path)


def has_no(setting: str, name: str) -> ModelError:
    """The error that a model does not take a setting."""
    return ModelError(f"{setting} must go with a model that has it, got {name}: leave it out")


def _set_drop_path(name: str, network: nn.Module, drop_path: float) -> None:
    # Imported here: torchvision takes half a second, which other models need not pay.
    from torchvision.ops import StochasticDepth

    paths = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    if not paths:
        raise has_no("drop_path", name)
    for number, module in enumerate(paths):
        # From 0 at the first block, as the paper and torchvision have it.
        module.p = drop_path * number / max(1, len(paths) - 1)
