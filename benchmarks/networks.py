"""Networks that were tried beside `pose_net` and did not earn their lines."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose_models.pose_net import PoseNet, ResidualBlock


class CoordinateNet(PoseNet):
    """With x and y as two more input channels (Liu et al., 2018, arXiv:1807.03247)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels + 2, num_classes)

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        n, _, height, width = channels.shape
        y = torch.linspace(-1, 1, height).view(1, 1, height, 1).expand(n, 1, height, width)
        x = torch.linspace(-1, 1, width).view(1, 1, 1, width).expand(n, 1, height, width)
        return super().forward(torch.cat([channels, x, y], dim=1))


class ZeroStartNet(PoseNet):
    """Residual branches start at zero (Goyal et al., 2017, arXiv:1706.02677)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        for block in self.stages:
            assert isinstance(block, ResidualBlock)
            nn.init.zeros_(block.norm2.weight)


class SqueezeExcitationNet(PoseNet):
    """Channels are weighted after each block (Hu et al., 2017, arXiv:1709.01507)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width // 8), nn.ReLU(), nn.Linear(width // 8, width), nn.Sigmoid()
            )
            for width in (64, 128, 256)
        )

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        x = self.stem(channels)
        for stage, gate in zip(self.stages, self.gates, strict=True):
            x = stage(x)
            x = x * gate(x.mean(dim=(2, 3)))[:, :, None, None]
        return self.head(x.mean(dim=(2, 3)))


class MaxAndMeanNet(PoseNet):
    """The head sees each feature's maximum as well as its mean."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.head = nn.Linear(512, num_classes)

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        features = self.stages(self.stem(channels))
        return self.head(torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1))


class QuadrantNet(PoseNet):
    """The head sees the means of the four quadrants."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.head = nn.Linear(4 * 256, num_classes)

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        features = self.stages(self.stem(channels))
        return self.head(F.adaptive_avg_pool2d(features, 2).flatten(1))


class StridedBlocksNet(nn.Module):
    """One convolution as stem, then blocks that all halve the size; `num_blocks` of them."""

    def __init__(self, in_channels: int, num_classes: int, num_blocks: int = 3) -> None:
        super().__init__()
        widths = (32, 64, 128, 256, 256)[: num_blocks + 1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            *(ResidualBlock(a, b, 2) for a, b in zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        return self.head(self.stages(self.stem(channels)).mean(dim=(2, 3)))
