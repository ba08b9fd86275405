"""Muon: the optimizer of the convolution kernels in short runs."""

import torch
from torch import Tensor, nn

from pose.device import pick_precision
from pose.training.layers import by_layer
from pose.training.optimizers import AdamW

# Newton-Schulz coefficients of Jordan et al. (2024, kellerjordan.github.io/posts/muon): steep at
# 0, so that three steps are enough, as in their CIFAR-10 speedruns; each further one is 5 % of a
# training step of `pose_net` on a CPU.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3
MOMENTUM = 0.95
# The update gets the size of AdamW's, so that one learning rate serves both (Liu et al., 2025,
# arXiv:2502.16982).
UPDATE_SCALE = 0.2


def is_kernel(parameter: Tensor) -> bool:
    """Whether Muon updates it: a convolution kernel over more than an image's channels."""
    return parameter.ndim == 4 and parameter.shape[1] > 4


def orthogonalize(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """The orthogonal matrix nearest to `matrix` `(m, n)`, roughly, computed in `precision`.

    All singular values become about 1 (0.7 to 1.2), which is all that an update needs.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.to(precision)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class Muon(AdamW):
    """Muon for the convolution kernels of a model, AdamW for everything else.

    Kernels on the image's own channels and depthwise ones are left to AdamW. Biases and
    normalisation are not decayed.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float,
        layer_decay: float = 1.0,
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        others = [p for p in trained if not is_kernel(p)]
        groups = [
            {"params": [p for p in trained if is_kernel(p)], "is_muon": True},
            {"params": [p for p in others if p.ndim > 1], "is_muon": False},
            {"params": [p for p in others if p.ndim <= 1], "is_muon": False, "weight_decay": 0.0},
        ]
        # A model without such kernels, or without linear layers, leaves a group empty.
        groups = [group for group in groups if group["params"]]
        groups = by_layer(groups, model, layer_decay)
        super().__init__(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
        # In bfloat16 where the hardware has it; where it does not, products in it take twenty times
        # as long as in float32, and this would be three quarters of a training step.
        device = next(model.parameters()).device
        is_cpu = device.type == "cpu"
        self.precision = pick_precision("auto", device) if is_cpu else torch.bfloat16

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter; leaves the kernels without gradients."""
        for group in self.param_groups:
            for kernel in group["params"] if group["is_muon"] else ():
                # Frozen, as all but the head may be at first.
                if kernel.grad is None:
                    continue
                self._update(kernel, group["lr"], group["weight_decay"])
                # AdamW skips what has no gradient.
                kernel.grad = None
        return super().step(closure)

    def _update(self, kernel: Tensor, learning_rate: float | Tensor, weight_decay: float) -> None:
        state = self.state[kernel]
        if not state:
            # AdamW asks every state for its `step` when a checkpoint is loaded.
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(kernel))
        state["momentum"].lerp_(kernel.grad, 1 - MOMENTUM)
        nesterov = kernel.grad.lerp(state["momentum"], MOMENTUM)
        update = orthogonalize(nesterov.flatten(1), self.precision)
        size = learning_rate * (UPDATE_SCALE * max(update.shape) ** 0.5)
        update = update.reshape(kernel.shape)
        kernel.mul_(1 - learning_rate * weight_decay)
        if isinstance(size, Tensor):
            # The host would read a tensor given as `alpha`.
            kernel.addcmul_(update.to(kernel.dtype), size, value=-1)
        else:
            kernel.sub_(update, alpha=size)
