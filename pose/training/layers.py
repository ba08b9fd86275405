"""Learning rates that decay from the last layer to the first."""

from typing import Any

from torch import nn

from pose_models.depth import depths


def by_layer(
    groups: list[dict[str, Any]], model: nn.Module, layer_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups of parameters, divided by layers where rates decay with depth.

    `lr_scale` of a group is what its rate is multiplied by: `layer_decay` for each layer between
    it and the head (Clark et al., 2020, arXiv:2003.10555; as in BEiT, arXiv:2106.08254).

    Args:
        model: an `ImageClassifier`, unless `layer_decay` is 1, which changes nothing.
    """
    if layer_decay == 1:
        return groups
    depth_of, parameters = depths(model.network), dict(model.network.named_parameters())
    last = max(depth_of.values())
    scales = {parameters[name]: layer_decay ** (last - depth) for name, depth in depth_of.items()}
    divided: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            scale = scales[parameter]
            own = divided.setdefault((number, scale), {**group, "params": [], "lr_scale": scale})
            own["params"].append(parameter)
    return list(divided.values())
