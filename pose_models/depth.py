"""How deep in a network each of its parameters lies."""

from collections.abc import Iterator

from torch import nn

from pose_models import timm_source

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def depths(network: nn.Module) -> dict[str, int]:
    """The layer of each parameter by its name: 0 at the image, without gaps up to the head.

    timm's networks say it themselves. In others a layer is what is not a container of layers: a
    convolution, a block, a linear layer. Normalisation that stands alone belongs to the layer
    before it, and what a network holds beside its modules, as embeddings of positions, to the
    first.
    """
    if hasattr(network, "group_matcher"):
        return timm_source.depths(network)
    most = sum(p.numel() for p in network.parameters()) / 2
    found: dict[str, int] = {}
    depth = -1
    for name, layer in _layers(network, "", most):
        parameters = dict(layer.named_parameters(prefix=name))
        if depth < 0 or any(p.ndim > 1 for p in parameters.values()):
            depth += bool(parameters)
        found.update(dict.fromkeys(parameters, depth))
    return {name: found.get(name, 0) for name, _ in network.named_parameters()}


def _layers(parent: nn.Module, prefix: str, most: float) -> Iterator[tuple[str, nn.Module]]:
    for name, module in parent.named_children():
        if isinstance(module, CONTAINERS) or _is_trunk(module, most):
            yield from _layers(module, f"{prefix}{name}.", most)
        else:
            yield f"{prefix}{name}", module


def _is_trunk(module: nn.Module, most: float) -> bool:
    """Whether it stands around a container that holds most of the network."""
    return any(
        isinstance(child, CONTAINERS) and sum(p.numel() for p in child.parameters()) > most
        for child in module.children()
    )
