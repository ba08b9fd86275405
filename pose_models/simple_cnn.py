"""The two networks of the original competition entry."""

from torch import Tensor, nn

from pose_models.onednn import Conv2d, from_onednn, to_onednn


class ConvBlock(nn.Sequential):
    """Convolution 3x3, batch norm, max-pooling by 2, ReLU.

    The original applied ReLU before pooling. Both orders are the same function, since ReLU is
    monotonic, and this one runs ReLU on a quarter of the elements.
    """

    def __init__(self, in_channels: int, out_channels: int, *, conv_bias: bool) -> None:
        super().__init__(
            Conv2d(in_channels, out_channels, 3, padding=1, bias=conv_bias),
            nn.BatchNorm2d(out_channels),
            nn.MaxPool2d(2),
            # Not in place: oneDNN's pooling needs its result for the gradient.
            nn.ReLU(),
        )


class SimpleCNN(nn.Module):
    """Four convolution blocks, global average pooling, two linear layers.

    `simple_cnn` of the original: 455,682 parameters with 3 channels, bias and 2 classes;
    `simple_cnn_v2`: 455,490 with 4 channels and no bias.

    Attributes:
        predicts_in_onednn: use oneDNN's layout in evaluation too. Off by default, since forward
            hooks and exporters of a finished model expect ordinary tensors.
    """

    predicts_in_onednn = False

    def __init__(self, in_channels: int, num_classes: int, *, conv_bias: bool) -> None:
        super().__init__()
        widths = (in_channels, 32, 64, 128, 256)
        self.features = nn.Sequential(
            *(
                ConvBlock(width_in, width_out, conv_bias=conv_bias)
                for width_in, width_out in zip(widths, widths[1:], strict=False)
            )
        )
        self.classifier = nn.Sequential(
            nn.Linear(256, 256), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(256, num_classes)
        )

    def forward(self, channels: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, num_classes)`."""
        if self.training or self.predicts_in_onednn:
            channels = to_onednn(channels)
        features = from_onednn(self.features(channels))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits
