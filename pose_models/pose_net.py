"""A residual network that sees the whole figure."""

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class PoseNet(nn.Module):
    """A stem down to a quarter of the size and three residual stages; 1.25 million parameters.

    A stage of full width at half the size would cost more than it gives: its normalisation and
    ReLU run on four times as many elements.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm_relu(in_channels, 32), _conv_norm_relu(32, 64))
        self.stages = nn.Sequential(
            ResidualBlock(64, 64, 1),
            ResidualBlock(64, 128, 2),
            ResidualBlock(128, 256, 2),
        )
        self.head = nn.Linear(256, num_classes)

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        logits: Tensor = self.head(self.stages(self.stem(channels)).mean(dim=(2, 3)))
        return logits


def _conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halves height and width."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
