"""FFSR, the auto-encoder with a foreground loss (Mao et al., IJCAI 2019), front-end of RIFE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.frontends.base import FrontendOutput
from lrreid_ext.modeling.frontends.restoration import Restoration, conv3x3, init_last
from lrreid_ext.modeling.losses.functional import foreground_mse, gaussian_mask
from lrreid_ext.registry import FRONTEND_REGISTRY

LAYOUTS = ("paper", "code")
MASKS = ("gaussian", "given", "none")


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`FFSR`."""
    # Layout of the auto-encoder (paper: 12 convolutions; code: 15, as the authors' program).
    # MODEL.SR.WIDTH is the width of its first layer.
    cfg.MODEL.SR.LAYOUT = "paper"
    # What weighs the pixels of the foreground loss (Eq. 5): gaussian, given (an image for
    # each sample, see INPUT.MASKS) or none; and the Gaussian's deviations, as shares of height and
    # width.
    cfg.MODEL.SR.MASK = "gaussian"
    cfg.MODEL.SR.MASK_SIGMA = [0.4, 0.25]


def _unit(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """The convolution, without a bias, then batch norm and ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


def _conv(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    return _unit(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False))


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    """Half the height and width."""
    return _unit(nn.Conv2d(in_channels, out_channels, 2, stride=2, bias=False))


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice the height and width."""
    return _unit(nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False))


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a skip over the three."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, inner, 1),
            _conv(inner, inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        return torch.relu(x + self.body(x))


@FRONTEND_REGISTRY.register()
class FFSR(Restoration):
    """A small auto-encoder with skips whose loss counts the foreground most.

    The paper states the number of convolutions (12), their kinds, and 3.71 GMAC at 384x128.
    Layout ``paper`` is ours that meets these, with 0.43 M parameters; for a width w of 64::

        full size     conv 2x2, stride 2, 3-w
        half          conv 3x3 w-w                                 -> skip
                      conv 2x2, stride 2, w-w
        quarter       conv 3x3 w-2w
                      residual: 1x1 2w-w, 3x3 w-w, 1x1 w-2w
                      transposed conv 2x2, stride 2, 2w-2w
        half          conv 3x3 2w-2w                               <- joined by the skip
                      transposed conv 2x2, stride 2, 3w-w/2
        full size     conv 3x3 w/2-w/2
                      conv 3x3 w/2-3                               + the input

    Layout ``code`` is ours too, and meets 15 convolutions and 7.62 GMAC of the authors' program: it
    adds a residual of 1x1, 3x3, 1x1, all 2w wide, at half size before the skip joins, and the full
    size has w channels where the other has w/2; 0.66 M parameters.

    Batch norm and ReLU follow every convolution but the last, which starts small: the first output
    is the input give or take a few grey levels.

    Args:
        layout: ``paper`` or ``code``.
        width: channels of the first layer, at least 2; all others are scaled with it.
        mask: what weighs the pixels in ``loss_foreground``: ``gaussian``, ``given`` (the batch's
            ``masks``) or ``none`` (all pixels alike: the paper's plain auto-encoder, "AE").
        mask_sigma: the Gaussian's deviations as shares of height and width.
        loss: see :class:`~lrreid_ext.modeling.frontends.restoration.Restoration`.

    Raises:
        ConfigError: an unknown layout or mask, a width below 2, or deviations that aren't two
            positive numbers.
    """

    size_divisor = 4

    @configurable
    def __init__(
        self,
        *,
        layout: str = "paper",
        width: int = 64,
        mask: str = "gaussian",
        mask_sigma: Sequence[float] = (0.4, 0.25),
        loss: str = "mse",
    ) -> None:
        super().__init__(loss)
        if layout not in LAYOUTS:
            raise ConfigError(f"MODEL.SR.LAYOUT: {layout!r} is not one of {', '.join(LAYOUTS)}")
        if mask not in MASKS:
            raise ConfigError(f"MODEL.SR.MASK: {mask!r} is not one of {', '.join(MASKS)}")
        if width < 2:
            raise ConfigError(f"MODEL.SR.WIDTH must be at least 2 for FFSR, not {width}")
        gaussian_mask(1, 1, mask_sigma)  # refuses bad deviations before training begins
        self.mask = mask
        self.mask_sigma = tuple(mask_sigma)
        w, full = width, width if layout == "code" else width // 2
        self.encoder = nn.Sequential(_down(3, w), _conv(w, w))
        inner = [_down(w, w), _conv(w, 2 * w), _Bottleneck(2 * w, w), _up(2 * w, 2 * w)]
        inner.append(_conv(2 * w, 2 * w))
        if layout == "code":
            inner.append(_Bottleneck(2 * w, 2 * w))
        self.inner = nn.Sequential(*inner)
        self.decoder = nn.Sequential(_up(3 * w, full), _conv(full, full))
        self.last = conv3x3(full, 3)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        init_last(self.last)

    def restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB on the 0-1 scale to the same; H and W multiples of 4."""
        skip = self.encoder(images)
        return images + self.last(self.decoder(torch.cat([self.inner(skip), skip], 1)))

    def losses(self, output: FrontendOutput, hr: Tensor) -> dict[str, Tensor]:
        """``loss_sr`` over all pixels alike, and ``loss_foreground`` weighed by the mask.

        The paper trains with the first and then with the second (Eq. 5). Here a phase chooses by
        its LOSS_WEIGHTS: ``{loss_foreground: 0}`` or ``{loss_sr: 0}``. A config that weighs neither
        trains with their sum.

        Args:
            output: what :meth:`forward` returned; with the mask ``given``, its ``extras["masks"]``
                are (B, 1, H, W) in 0-1.
            hr: (B, 3, H, W) RGB, 0-255 float, the high-resolution twins.

        Raises:
            ConfigError: no masks were given.
        """
        foreground = foreground_mse(output.images, hr, self._mask(output))
        return {**super().losses(output, hr), "loss_foreground": foreground}

    def _mask(self, output: FrontendOutput) -> Tensor:
        if self.mask == "gaussian":
            height, width = output.images.shape[-2:]
            return gaussian_mask(height, width, self.mask_sigma).to(output.images.device)
        if self.mask == "none":
            return output.images.new_ones(1, 1, *output.images.shape[-2:])
        if output.extras.get("masks") is None:
            raise ConfigError(
                "MODEL.SR.MASK is 'given', but the batch has no masks: name the folder of masks in "
                "INPUT.MASKS, or set MODEL.SR.MASK to 'gaussian' or 'none'"
            )
        return output.extras["masks"]
