"""The SRGAN generator (Ledig et al., CVPR 2017), and CSR-GAN's cascade of several."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.frontends.base import (
    Frontend,
    FrontendOutput,
    Pairs,
    to_pixels,
    to_unit,
)
from lrreid_ext.modeling.frontends.restoration import check_loss, conv3x3, init_last
from lrreid_ext.modeling.inference import evaluating
from lrreid_ext.modeling.losses.functional import image_loss, no_loss, widen
from lrreid_ext.modeling.routing import is_exporting, picked
from lrreid_ext.registry import FRONTEND_REGISTRY

__all__ = ["MODES", "CascadedSRGAN", "SRGANGenerator"]

MODES = ("joint", "stagewise")


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`CascadedSRGAN`."""
    # Stages of 2x (1 to 4); residual blocks and width of each generator (SRGAN: 16,
    # 64).
    cfg.MODEL.SR.CASCADE = CfgNode()
    cfg.MODEL.SR.CASCADE.STAGES = 3
    cfg.MODEL.SR.CASCADE.BLOCKS = 16
    cfg.MODEL.SR.CASCADE.WIDTH = 64
    # Each generator adds to its input's bicubic enlargement. SRGAN's doesn't; small ones learn
    # sooner that way.
    cfg.MODEL.SR.CASCADE.RESIDUAL = False
    # joint (a stage reads the output of the one before, and all losses reach all stages) or
    # stagewise (each stage learns by itself on reduced HR images).
    cfg.MODEL.SR.CASCADE.MODE = "joint"


class _Block(nn.Module):
    """Convolution, batch norm, PReLU, convolution, batch norm, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(width, width),
            nn.BatchNorm2d(width),
            nn.PReLU(),
            conv3x3(width, width),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same."""
        return x + self.body(x)


class SRGANGenerator(nn.Module):
    """SRGAN's generator for one enlargement by 2 (Ledig et al., Fig. 4)::

        conv 9x9 3-w, PReLU                                        -> long skip
        blocks of conv 3x3, batch norm, PReLU, conv 3x3, batch norm, each with a skip
        conv 3x3, batch norm                                       + long skip
        conv 3x3 w-4w, pixel shuffle, PReLU
        conv 9x9 w-3

    With 16 blocks of width 64, 1.40 M parameters; with a second conv and pixel shuffle, for an
    enlargement by 4, it would be SRResNet's 1.55 M.

    Args:
        blocks: residual blocks.
        width: channels.
        residual: add the output to the input's bicubic enlargement, and begin as that. SRGAN has no
            such skip; with it a small generator needs a few epochs instead of many.
    """

    may_rest = True

    def __init__(self, blocks: int = 16, width: int = 64, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.head = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.body = nn.Sequential(
            *(_Block(width) for _ in range(blocks)), conv3x3(width, width), nn.BatchNorm2d(width)
        )
        self.up = nn.Sequential(conv3x3(width, 4 * width), nn.PixelShuffle(2), nn.PReLU())
        self.last = nn.Conv2d(width, 3, 9, padding=4)
        if residual:
            init_last(self.last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) RGB on the 0-1 scale to (B, 3, 2h, 2w)."""
        low = self.head(images)
        out = self.last(self.up(low + self.body(low)))
        if not self.residual:
            return out
        height, width = images.shape[-2:]
        return resampled(images, (2 * height, 2 * width)) + out


def resampled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic interpolation without antialiasing: to enlarge, or to read an enlarged image again at
    its native pixels.

    An image that was enlarged has no detail that a raster of at least its native size could alias.
    A filter would only blur it: after an enlargement by 2 it leaves 3.5 grey levels of error
    against the native pixels, this 0.65, of which 0.4 are the loader's rounding.

    Args:
        images: (B, 3, H, W).
        size: height and width.

    Returns:
        (B, 3, *size), float32 at least.
    """
    return F.interpolate(widen(images), size=size, mode="bicubic", align_corners=False)


def reduced(hr: Tensor, size: tuple[int, int]) -> Tensor:
    """Images as a camera of fewer pixels sees them: bicubic with antialiasing.

    Args:
        hr: (B, 3, H, W).
        size: height and width.
    """
    if tuple(hr.shape[-2:]) == size:
        return hr
    return F.interpolate(widen(hr), size=size, mode="bicubic", antialias=True)


@FRONTEND_REGISTRY.register()
class CascadedSRGAN(Frontend):
    """CSR-GAN's cascade (Wang et al., IJCAI 2018): generators in series, each enlarging by 2.

    An image passes as many as its native height asks for: with H the input's height and 3 stages,
    all of them up to H / 8, the last two up to H / 4, the last one up to H / 2. Above that, and if
    the native size isn't known, it stays as the loader resized it. It is first reduced to the input
    size of its first stage; the last stage gives the network's size. Images that enter at a stage
    join those from the stage before, so that a batch costs what its images need.

    Two ways to train:

    * ``joint``: a stage reads the output of the one before, and any loss of the last output reaches
      all stages that an image passed.
    * ``stagewise``: each stage by itself learns to enlarge HR images that were reduced to its input
      size. The front-end's output is computed as in evaluation, and passes no gradient to a stage.

    ``extras``: ``entry`` (B,) int64, the first stage of each image, the number of stages if it
    passes none; ``stage0`` ... (B, 3, h, w) RGB, 0-255, each stage's output, in rows that didn't
    pass it 0.

    Args:
        stages: how many, from 1 to 4.
        blocks, width, residual: of each generator, see :class:`SRGANGenerator`.
        mode: ``joint`` or ``stagewise``.
        loss: pixel loss of each stage, ``l1`` or ``mse``, a mean on the 0-1 scale.

    Raises:
        ConfigError: a value out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        stages: int = 3,
        blocks: int = 16,
        width: int = 64,
        residual: bool = False,
        mode: str = "joint",
        loss: str = "mse",
    ) -> None:
        super().__init__()
        if not 1 <= stages <= 4:
            raise ConfigError(f"MODEL.SR.CASCADE.STAGES must be from 1 to 4, not {stages}")
        if blocks < 1 or width < 1:
            raise ConfigError(
                "MODEL.SR.CASCADE.BLOCKS and MODEL.SR.CASCADE.WIDTH must be at least 1, not "
                f"{blocks}, {width}"
            )
        if mode not in MODES:
            raise ConfigError(f"MODEL.SR.CASCADE.MODE: {mode!r} is not one of {', '.join(MODES)}")
        check_loss(loss)
        self.stages = stages
        self.size_divisor = 2**stages
        self.mode = mode
        self.loss = loss
        self.generators = nn.ModuleList(
            SRGANGenerator(blocks, width, residual) for _ in range(stages)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.SR.CASCADE
        return {
            "stages": node.STAGES,
            "blocks": node.BLOCKS,
            "width": node.WIDTH,
            "residual": node.RESIDUAL,
            "mode": node.MODE,
            "loss": cfg.MODEL.SR.LOSS,
        }

    def entry(self, images: Tensor, native_size: Tensor | None) -> Tensor:
        """(B,) int64: the first stage of each image, :attr:`stages` if it passes none."""
        if native_size is None:
            return torch.full((len(images),), self.stages, device=images.device)
        rows = native_size[:, :1].to(images.device)
        times = 2 ** torch.arange(1, self.stages + 1, device=images.device)
        return self.stages - (rows * times <= images.shape[2]).sum(1)

    def size_at(self, images: Tensor, stage: int) -> tuple[int, int]:
        """Height and width of a stage's input, which the one before gives, for a network's input
        as large as ``images``."""
        height, width = images.shape[-2:]
        divisor = 2 ** (self.stages - stage)
        return height // divisor, width // divisor

    def forward(self, images: Tensor, native_size: Tensor | None = None) -> FrontendOutput:
        """Restore a batch; see the class.

        Raises:
            ValueError: images whose sides aren't multiples of :attr:`size_divisor`.
        """
        if images.shape[2] % self.size_divisor or images.shape[3] % self.size_divisor:
            raise ValueError(
                f"images of {tuple(images.shape[2:])} pixels: {self.stages} stages need sides that "
                f"are multiples of {self.size_divisor}"
            )
        entry = self.entry(images, native_size)
        if is_exporting():
            return self._graph(images, entry)
        if self.mode == "joint" or not self.training:
            return self._cascade(images, entry)
        with evaluating(self):
            return self._cascade(images, entry)

    def _cascade(self, images: Tensor, entry: Tensor) -> FrontendOutput:
        extras: dict[str, Tensor] = {"entry": entry}
        out, restored = images, None
        for stage, generator in enumerate(self.generators):
            rows = (entry <= stage).nonzero()[:, 0]
            full = images.new_zeros(len(images), 3, *self.size_at(images, stage + 1))
            if len(rows):
                inputs = to_unit(resampled(images[rows], self.size_at(images, stage)))
                if restored is not None:
                    # Images that passed the stage before: its output.
                    old = (entry[rows] < stage).view(-1, 1, 1, 1)
                    inputs = torch.where(old, to_unit(restored[rows]), inputs)
                restored = full.index_copy(0, rows, to_pixels(generator(inputs)).to(full.dtype))
            else:
                # Every process and every step has to reach the same parameters.
                restored = full + no_loss(generator) if self._learns() else full
                out = out + no_loss(generator) if self._learns() else out
            extras[f"stage{stage}"] = restored
            if stage == self.stages - 1 and len(rows):
                out = out.index_copy(0, rows, restored[rows].to(out.dtype))
        return FrontendOutput(out, extras)

    def _graph(self, images: Tensor, entry: Tensor) -> FrontendOutput:
        """The cascade in evaluation with all images passing all stages."""
        restored = images
        for stage, generator in enumerate(self.generators):
            inputs = resampled(images, self.size_at(images, stage))
            if stage:
                # Images that passed the stage before: its output.
                inputs = picked(entry < stage, restored, inputs)
            restored = to_pixels(generator(to_unit(inputs)))
        return FrontendOutput(picked(entry < self.stages, restored, images))

    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def pairs(self, output: FrontendOutput, hr: Tensor) -> Pairs:
        """Each stage's output and its target, for the images that passed it.

        In ``joint`` mode the outputs are those of :meth:`forward`; in ``stagewise`` mode
        each stage is run on the reduced ``hr``, all of them.

        Args:
            output: what :meth:`forward` returned, of the images whose twins are given.
            hr: (B, 3, H, W) RGB, 0-255 float, the high-resolution twins.

        Returns:
            For each stage two (n, 3, h, w) RGB, 0-255; n may be 0.
        """
        pairs: Pairs = []
        for stage, generator in enumerate(self.generators):
            real = reduced(hr, self.size_at(hr, stage + 1))
            if self.mode == "stagewise":
                # Once for all losses that look at this output.
                key = f"taught{stage}"
                if key not in output.extras:
                    small = reduced(hr, self.size_at(hr, stage))
                    output.extras[key] = to_pixels(generator(to_unit(small)))
                pairs.append((output.extras[key], real))
            else:
                passed = output.extras["entry"] <= stage
                pairs.append((output.extras[f"stage{stage}"][passed], real[passed]))
        return pairs

    def losses(self, output: FrontendOutput, hr: Tensor) -> dict[str, Tensor]:
        """``loss_sr``: the mean pixel loss (Eq. 3) of :meth:`pairs`, added up over the stages,
        without its weight; 0 of a stage that no image passed."""
        terms = [
            image_loss(restored, real, self.loss) if len(restored) else restored.sum()
            for restored, real in self.pairs(output, hr)
        ]
        return {"loss_sr": torch.stack(terms).sum()}
