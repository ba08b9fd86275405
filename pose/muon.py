"""Muon: the optimizer of the convolution kernels in short trainings."""

import torch
from torch import Tensor, nn

# Coefficients and scale of Jordan et al. (2024, kellerjordan.github.io/posts/muon) and
# Liu et al. (2025, arXiv:2502.16982): the update has the size of AdamW's, so one rate serves both.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 4
UPDATE_SCALE = 0.2


def orthogonalize(matrix: Tensor) -> Tensor:
    """The bfloat16 matrix `(m, n)` with the singular vectors of `matrix` and values near 1."""
    x = matrix.bfloat16()
    is_tall = len(x) > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def is_kernel(parameter: Tensor) -> bool:
    """Whether Muon updates it: a convolution kernel over more than an image's channels."""
    return parameter.ndim == 4 and parameter.shape[1] > 4


class Muon(torch.optim.Optimizer):
    """Muon for the convolution kernels, AdamW for everything else.

    Kernels on the image's own channels and depthwise ones are left to AdamW, as are linear
    layers. Biases and normalisation are not decayed. The momentum of a kernel `(out, in, h, w)`
    is made orthogonal as a matrix `(out, h * w * in)`.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        kernels = [p for p in trained if is_kernel(p)]
        others = [p for p in trained if not is_kernel(p)]
        super().__init__(
            [
                {"params": kernels, "muon": True, "weight_decay": weight_decay},
                {
                    "params": [p for p in others if p.ndim > 1],
                    "muon": False,
                    "weight_decay": weight_decay,
                },
                {"params": [p for p in others if p.ndim <= 1], "muon": False, "weight_decay": 0.0},
            ],
            {"lr": learning_rate},
        )

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter from its gradient."""
        for group in self.param_groups:
            update = self._muon_update if group["muon"] else self._adam_update
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update(p), alpha=-group["lr"])

    def _muon_update(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 0.05)
        nesterov = p.grad.lerp(state["momentum"], 0.95).permute(0, 2, 3, 1)
        update = orthogonalize(nesterov.flatten(1)).view_as(nesterov).permute(0, 3, 1, 2)
        out, into = nesterov.flatten(1).shape
        return update.to(p.dtype) * (UPDATE_SCALE * max(out, into) ** 0.5)

    def _adam_update(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state.update(mean=torch.zeros_like(p), square=torch.zeros_like(p), num_steps=0)
        state["num_steps"] += 1
        state["mean"].lerp_(p.grad, 0.1)
        state["square"].lerp_(p.grad.square(), 0.001)
        mean = state["mean"] / (1 - 0.9 ** state["num_steps"])
        square = state["square"] / (1 - 0.999 ** state["num_steps"])
        return mean / (square.sqrt() + 1e-8)
