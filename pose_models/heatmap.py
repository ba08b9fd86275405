"""What a network looked at: Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose_models.classifier import ImageClassifier


def heat_maps(model: ImageClassifier, images: Tensor, classes: Tensor) -> Tensor:
    """Where the evidence for a class lies, in the last map that still has places.

    For any network whose features are maps; nothing about the model is changed.

    Args:
        model: in evaluation mode.
        images: `(N, 3, H, W)` as the model takes them, on its device.
        classes: `(N,)` int64, the class of each image to look for.

    Returns:
        `(N, image_size, image_size)` float32 in 0..1; all 0 where nothing speaks for the class.

    Raises:
        ValueError: the network has no map of more than one place.
    """
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            maps[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in model.network.modules()]
    try:
        with torch.enable_grad():
            # A leaf that needs gradients, so that frozen weights have a graph as well.
            channels = model.preprocess(images).detach().requires_grad_()
            logits = model.network(channels)
            if not maps:
                raise ValueError("the network must have maps of more than one place, found none")
            own = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(own, maps[0])
    finally:
        for hook in hooks:
            hook.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps[0].detach()).sum(dim=1, keepdim=True).relu().float()
    size = (model.preprocess.image_size,) * 2
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False)[:, 0]
    # The smallest normal number: a map of zeros stays one.
    peak = heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    scaled: Tensor = heat / peak
    return scaled
