"""oneDNN's blocked memory layout, for networks that train on a CPU.

PyTorch's own batch norm and max-pooling spend more time on the large maps of the first blocks
than oneDNN's do on tensors in its own layout: a step of `simple_cnn` takes 0.8 of the time. The
values are those of the usual layout, up to rounding.
"""

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with numeric zero padding that also takes tensors in oneDNN's layout."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, H', W')`, in the layout of `x`."""
        if not x.is_mkldnn:
            return super().forward(x)
        # Weights stay as they are, so that their gradients are ordinary tensors.
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        assert not isinstance(self.padding, str)
        return torch.mkldnn_convolution(
            x, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


def to_onednn(x: Tensor) -> Tensor:
    """`x` in oneDNN's layout, in autocast's type; unchanged where that is not possible."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return x.to(dtype).to_mkldnn() if is_supported(dtype) else x


def from_onednn(x: Tensor) -> Tensor:
    """`x` as an ordinary tensor."""
    return x.to_dense() if x.is_mkldnn else x


def is_supported(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this type here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
