"""What a network computes of a whole batch, in processes that each have a part of it.

While a network runs below `WholeBatch`, torch's batch norm and dropout are those of the whole
batch; its modules, their names and their state stay as they are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pose.training.group import ProcessGroup

# Draw a mask for each image, or one that all share where the first size is not that of the batch.
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class Part(NamedTuple):
    """Which images of a batch a process has.

    Attributes:
        positions: of its images in the batch.
        num_images: of the batch.
        counts: whether they count; a process without images of its own goes along with another's.
    """

    positions: range
    num_images: int
    counts: bool

    @classmethod
    def of(cls, group: ProcessGroup, num_images: int) -> "Part":
        """The part of this process."""
        own = group.share(num_images)
        return cls(own or range(1), num_images, bool(own))

    def of_whole(self, values: Tensor) -> Tensor:
        """The part of `values` `(num_images, ...)`."""
        return values[self.positions.start : self.positions.stop]


class WholeBatch(TorchFunctionMode):
    """Computes statistics over all parts of a batch, and draws for all of it.

    Every process draws the same numbers from torch's global generator, in the order in which one
    process would for the whole batch.
    """

    def __init__(self, group: ProcessGroup, part: Part) -> None:
        super().__init__()
        self._group, self._part = group, part

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(_BatchNorm(*args, **kwargs))
        if func in DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func is torch.Tensor.bernoulli_:
            return self._bernoulli(*args, **kwargs)
        if func is torch.Tensor.to_mkldnn:
            # Statistics are taken in the usual layout.
            return args[0]
        return func(*args, **kwargs)

    def _batch_norm(self, norm: "_BatchNorm") -> Tensor:
        if not norm.training:
            return F.batch_norm(*norm)
        statistics = _Statistics.of(norm.input, self._group, self._part.counts)
        statistics.move(norm)
        return _Normalize.apply(
            norm.input,
            norm.weight,
            norm.bias,
            (statistics, norm.eps, self._group, self._part.counts),
        )

    def _dropout(self, dropout, images: Tensor, p: float = 0.5, training=True, inplace=False):
        if not training or p in (0, 1) or not self._is_of_images(images):
            return dropout(images, p, training, inplace)
        ones = self._whole(images).fill_(1)
        masks = self._part.of_whole(dropout(ones, p, True))
        return images.mul_(masks) if inplace else images * masks

    def _bernoulli(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._is_of_images(values):
            return values.bernoulli_(*args, **kwargs)
        return values.copy_(self._part.of_whole(self._whole(values).bernoulli_(*args, **kwargs)))

    def _is_of_images(self, values: Tensor) -> bool:
        return values.ndim > 0 and len(values) == len(self._part.positions)

    def _whole(self, values: Tensor) -> Tensor:
        """An empty tensor as that of the whole batch would be, in memory too."""
        is_channels_last = values.ndim == 4 and not values.is_contiguous()
        return torch.empty(
            (self._part.num_images, *values.shape[1:]),
            dtype=values.dtype,
            device=values.device,
            memory_format=torch.channels_last if is_channels_last else torch.contiguous_format,
        )


class _BatchNorm(NamedTuple):
    """The arguments of `F.batch_norm`."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _Statistics(NamedTuple):
    """Mean and variance `(C,)` of each channel over all processes, from `count` values."""

    mean: Tensor
    var: Tensor
    count: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, images: Tensor, group: ProcessGroup, counts: bool) -> "_Statistics":
        """Put together from those of all processes (Chan, Golub and LeVeque, 1983)."""
        var, mean = torch.var_mean(images.float(), _all_but_channels(images), correction=0)
        count = mean.new_full((1,), images.numel() / images.shape[1] if counts else 0.0)
        found = group.gather(torch.cat([mean, var, count]))
        means, variances = found[:, : len(mean)], found[:, len(mean) : -1]
        share = found[:, -1:] / found[:, -1].sum()
        mean = (share * means).sum(dim=0)
        var = (share * (variances + (means - mean).square())).sum(dim=0)
        return cls(mean, var, found[:, -1].sum())

    @torch.no_grad()
    def move(self, norm: _BatchNorm) -> None:
        """Move the running statistics towards these, as `F.batch_norm` does."""
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.lerp_(self.mean, norm.momentum)
            norm.running_var.lerp_(self.var * (self.count / (self.count - 1)), norm.momentum)


class _Normalize(torch.autograd.Function):
    """Batch norm by the statistics of all processes.

    Gradients of weight and bias are those of this process's images, as all others are: they are
    added up later.
    """

    @staticmethod
    def forward(ctx, images, weight, bias, others):
        statistics, ctx.eps, ctx.group, ctx.counts = others
        ctx.save_for_backward(images, weight, *statistics)
        mean, var, _ = statistics
        return F.batch_norm(images, mean, var, weight, bias, False, 0.0, ctx.eps)

    @staticmethod
    def backward(ctx, gradient):
        images, weight, mean, var, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (images.ndim - 2))
        axes = _all_but_channels(images)
        invstd = (var + ctx.eps).rsqrt()
        normalized = (images.float() - mean.view(shape)).mul_(invstd.view(shape))
        gradient = gradient.float()
        own = torch.stack([gradient.sum(axes), (gradient * normalized).sum(axes)])
        # Gradients are zero where images do not count, and statistics do not depend on them.
        total = ctx.group.add(own.clone()) / count
        scale = invstd if weight is None else invstd * weight
        change = gradient
        if ctx.counts:
            change = gradient - total[0].view(shape) - normalized.mul_(total[1].view(shape))
        own = (own[1], own[0]) if weight is not None else (None, None)
        return (change * scale.view(shape)).to(images.dtype), *own, None


def _all_but_channels(images: Tensor) -> list[int]:
    return [0, *range(2, images.ndim)]
