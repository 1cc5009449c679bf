"""SRGAN's discriminator (Ledig et al., CVPR 2017, Fig. 4)."""

from __future__ import annotations

from torch import Tensor, nn

SLOPE = 0.2


def _unit(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """3x3 convolution, batch norm, leaky ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(SLOPE),
    ]


class Discriminator(nn.Module):
    """Tells HR images from restored ones.

    Eight 3x3 convolutions, of which every second halves the sides and the others (but the first)
    double the width, to 8 times the first one's; batch norm after all but the first; then two dense
    layers. With width 64 on the mean of the map: 5.2 M parameters; as SRGAN has it, on the whole
    map of a 96x96 image, 23.6 M.

    Args:
        width: channels of the first convolution.
        hidden: width of the first dense layer.
        size: height and width of the images, for dense layers on the whole map; None: on its mean,
            for images of any size.
    """

    may_rest = True

    def __init__(
        self, width: int = 64, hidden: int = 1024, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        layers += _unit(width, width, 2)
        for times in (1, 2, 4):
            layers += _unit(times * width, 2 * times * width, 1)
            layers += _unit(2 * times * width, 2 * times * width, 2)
        places = 1
        if size is None:
            layers.append(nn.AdaptiveAvgPool2d(1))
        else:
            height, wide = size
            for _ in range(4):
                height, wide = (height + 1) // 2, (wide + 1) // 2
            places = height * wide
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.judge = nn.Sequential(
            nn.Linear(8 * width * places, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) RGB, 0-255, to (B,) logits, positive for HR."""
        return self.judge(self.features(images / 127.5 - 1))[:, 0]
