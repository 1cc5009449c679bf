"""Two streams of one backbone, for low and high resolution, joined by gates (RIFE).

Mao, Zhang, Yang: "Resolution-invariant Person Re-Identification", IJCAI 2019, Sec. 4.2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones.osnet import OSNet
from fastreid.modeling.backbones.resnet import ResNet
from PIL import Image
from torch import Tensor, nn

from lrreid_ext.data.samples import Batch
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.backbones.pretrained import build_backbone
from lrreid_ext.modeling.inference import evaluating
from lrreid_ext.registry import BACKBONE_REGISTRY

logger = logging.getLogger(__name__)

FUSES = ("blocks", "end")
GATES = ("learned", "equal")

# By how much the high stream's weights are changed where nothing else would make it differ.
NOISE = 0.01


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`DualStream`."""
    # Two streams, low and high, of another backbone (RIFE's dual-stream blocks).
    cfg.MODEL.BACKBONE.DUAL = CfgNode()
    # The backbone that is doubled, by name: fastreid's ResNets and OSNets.
    cfg.MODEL.BACKBONE.DUAL.BASE = "build_resnet_backbone"
    # Where the streams meet: blocks (after each of the four: RIFE) or end (two whole networks).
    cfg.MODEL.BACKBONE.DUAL.FUSE = "blocks"
    # The weights they meet with: learned (Eq. 6) or equal (a half each).
    cfg.MODEL.BACKBONE.DUAL.GATES = "learned"
    # Width of the gates' hidden layer, and weight of their loss (beta of Eq. 9; 0 leaves it out).
    cfg.MODEL.BACKBONE.DUAL.GATE_DIM = 64
    cfg.MODEL.BACKBONE.DUAL.GATE_WEIGHT = 0.1
    # To train in few steps: standardise over the batch what the gates read; let no gradient pass
    # between gates and streams, so that the gates' loss trains the gates, and the others the rest.
    cfg.MODEL.BACKBONE.DUAL.GATE_NORM = False
    cfg.MODEL.BACKBONE.DUAL.DETACH = False
    # Largest native width of the data set in pixels, which has resolution r = 1; 0: that of the
    # training images, measured when training begins.
    cfg.MODEL.BACKBONE.DUAL.WIDEST = 0


class Layout(NamedTuple):
    """Where a network is cut: dotted names of its modules, in the order they run in.

    Attributes:
        stem: what both streams share.
        blocks: the stages after it, each of which becomes a dual-stream block.
    """

    stem: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]


def layout_of(network: nn.Module) -> Layout:
    """Stem and four blocks of one of fastreid's ResNets or OSNets.

    A ResNet's blocks are its four stages, with the non-local layers in them. An OSNet has three
    stages; the last one's two units make a block each, and the final 1x1 convolution belongs to the
    second of them.

    Raises:
        ConfigError: another network.
    """
    if type(network) is ResNet:
        stem = ("conv1", "bn1", "relu", "maxpool")
        return Layout(stem, tuple(_resnet_stage(network, n) for n in (1, 2, 3, 4)))
    if type(network) is OSNet:
        last = [f"conv4.{name}" for name, _ in network.get_submodule("conv4").named_children()]
        blocks = (("conv2",), ("conv3",), tuple(last[:-1]), (last[-1], "conv5"))
        return Layout(("conv1", "maxpool"), blocks)
    raise ConfigError(
        "MODEL.BACKBONE.DUAL.BASE: with MODEL.BACKBONE.DUAL.FUSE blocks only fastreid's ResNets "
        f"(build_resnet_backbone) and OSNets (build_osnet_backbone) can be doubled, not "
        f"{type(network).__name__}; FUSE end takes any backbone that returns one map"
    )


def _resnet_stage(network: ResNet, stage: int) -> tuple[str, ...]:
    non_local = list(getattr(network, f"NL_{stage}_idx"))
    names: list[str] = []
    for i in range(len(getattr(network, f"layer{stage}"))):
        names.append(f"layer{stage}.{i}")
        if i in non_local:
            names.append(f"NL_{stage}.{non_local.index(i)}")
    return tuple(names)


class Gate(nn.Module):
    """Predicts the weight of one stream's map from that map: GAP - FC - ReLU - FC - sigmoid.

    Runs in float32 also in mixed precision.

    Args:
        channels: of the map.
        hidden: width of the hidden layer.
        norm: standardise each channel's mean over the batch first. Resolution changes those means
            little; standardised, the gate learns many times faster.
    """

    def __init__(self, channels: int, hidden: int = 64, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False) if norm else nn.Identity()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to weights (B, 1) between 0 and 1, float32."""
        pooled = maps.mean((2, 3), dtype=torch.float32)
        device = maps.device.type
        mixed = torch.amp.is_autocast_available(device)  # the meta device knows none
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            return self.fc2(self.fc1(self.norm(pooled)).relu()).sigmoid()


class DualStream(nn.Module):
    """A backbone doubled into a low- and a high-resolution stream, fused with predicted weights.

    After block t the maps of both streams become one, m_t = wL_t mL_t + wH_t mH_t (Eq. 6), which
    both streams of block t + 1 receive. wL_t comes from a :class:`Gate` on mL_t, wH_t from one on
    mH_t; they needn't add up to 1.

    Names in the state dict are the network's own after ``stem.``, ``low.`` and ``high.``; the gates
    are ``gates.low.<block>.`` and ``gates.high.<block>.``.

    Args:
        low, high: two networks of one architecture, each with its own initial weights. Their parts
            move into this module; the stem is taken from ``low``.
        fuse: ``blocks`` (RIFE: a shared stem, then fusion after each of four blocks) or ``end``
            (two whole networks, fused once).
        gates: ``learned``, or ``equal``: a half each, without gates.
        gate_dim: width of the gates' hidden layer.
        gate_weight: weight of the gates' loss, beta in Eq. 9; 0 leaves the loss out.
        gate_norm: whether gates standardise what they read; see :class:`Gate`.
        detach: cut the gates off: their own loss alone trains them, and it doesn't bend the
            features that they read to tell resolution.
        widest: native width in pixels that has resolution r = 1; 0: see :meth:`prepare`.
        size: height and width of the images; a blank one is tried to learn the maps' channels.

    Attributes:
        blocks: what runs between two fusions, as names in ``low`` and ``high``.
        channels: of each block's map.
        out_channels: of the last one.
        widest: () int64 buffer, so that a checkpoint knows it; 0 until it is known.

    Raises:
        ConfigError: a choice that doesn't exist, or a network that can't be doubled.
    """

    weight_roots = ("stem", "low", "high")
    widest: Tensor

    def __init__(
        self,
        low: nn.Module,
        high: nn.Module,
        *,
        fuse: str = "blocks",
        gates: str = "learned",
        gate_dim: int = 64,
        gate_weight: float = 0.1,
        gate_norm: bool = False,
        detach: bool = False,
        widest: int = 0,
        size: Sequence[int] = (256, 128),
    ) -> None:
        super().__init__()
        _check(fuse, gates, gate_dim, gate_weight, widest)
        # The name "" is a module itself.
        layout = layout_of(low) if fuse == "blocks" else Layout((), (("",),))
        names = [name for block in layout.blocks for name in block]
        self.stem = _part(low, layout.stem)
        self.low = _part(low, names) if fuse == "blocks" else low
        self.high = _part(high, names) if fuse == "blocks" else high
        self._stem_names = layout.stem
        self.blocks = layout.blocks
        self.channels = self._try(size)
        self.out_channels = self.channels[-1]
        self.gates = nn.ModuleDict()
        if gates == "learned":
            for stream in ("low", "high"):
                self.gates[stream] = nn.ModuleList(
                    Gate(c, gate_dim, gate_norm) for c in self.channels
                )
        self.gate_weight = gate_weight
        self.detach = detach
        self._given = widest
        self.register_buffer("widest", torch.tensor(widest))

    def _try(self, size: Sequence[int]) -> tuple[int, ...]:
        """Channels after each block, found with a blank image."""
        parameter = next(self.low.parameters())
        maps = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
        channels = []
        with evaluating(self.stem, self.low):
            maps = _run(self.stem, self._stem_names, maps)
            for names in self.blocks:
                maps = _run(self.low, names, maps)
                if not isinstance(maps, Tensor) or maps.ndim != 4:
                    raise ConfigError(
                        "MODEL.BACKBONE.DUAL.BASE: a backbone that returns one map (B, C, h, w) "
                        f"is needed; {type(self.low).__name__} returns something else"
                    )
                channels.append(maps.shape[1])
        return tuple(channels)

    @property
    def learned(self) -> bool:
        """Whether the streams' weights are predicted, not a half each."""
        return len(self.gates) > 0

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to the last fused map (B, out_channels, h, w)."""
        return self.forward_with_extras(images)[0]

    def forward_with_extras(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The last fused map, and what the losses need.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            The map (B, out_channels, h, w), and ``gates`` (B, T, 2) float32: the weights wL and wH
            of each of the T blocks.
        """
        maps = _run(self.stem, self._stem_names, images)
        gates = []
        for t, names in enumerate(self.blocks):
            low, high = _run(self.low, names, maps), _run(self.high, names, maps)
            weights = self._weigh(t, low, high)
            shares = weights.detach() if self.detach else weights
            shares = shares.to(low.dtype)[:, :, None, None, None]
            maps = shares[:, 0] * low + shares[:, 1] * high
            gates.append(weights)
        return maps, {"gates": torch.stack(gates, 1)}

    def _weigh(self, t: int, low: Tensor, high: Tensor) -> Tensor:
        """(B, 2) float32."""
        if not self.learned:
            return torch.full((len(low), 2), 0.5, device=low.device)
        streams: Any = self.gates
        if self.detach:
            low, high = low.detach(), high.detach()
        return torch.cat([streams["low"][t](low), streams["high"][t](high)], dim=1)

    def resolution(self, native_size: Tensor) -> Tensor:
        """r of each image, (B,) float32 from 0 to 1: its native width over the widest, at most 1.

        Args:
            native_size: (B, 2) int64, height and width.

        Raises:
            ConfigError: the widest isn't known.
        """
        if not int(self.widest):
            raise ConfigError(
                "MODEL.BACKBONE.DUAL.WIDEST: the largest native width isn't known, so that images "
                "have no resolution. Set it, or call prepare(dataset) before training to measure it"
            )
        return (native_size[:, 1] / self.widest.to(native_size.device)).float().clamp(max=1.0)

    def losses(self, extras: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The resolution weighting loss (Eq. 7), summed over blocks and weighted (Eq. 9).

        Args:
            extras: of :meth:`forward_with_extras`.
            batch: ``native_size`` (B, 2) int64, height and width in pixels before resizing.

        Returns:
            ``loss_gates``, () float32: gate_weight times the sum over blocks of the batch's mean of
            (wL - (1 - r))^2 + (wH - r)^2. Nothing where the weights are equal or gate_weight is 0.

        Raises:
            ConfigError: the widest isn't known.
        """
        if not self.learned or self.gate_weight == 0:
            return {}
        r = self.resolution(batch["native_size"])
        targets = torch.stack([1 - r, r], dim=1)[:, None]
        error = (extras["gates"] - targets).square().sum((1, 2)).mean()
        return {"loss_gates": self.gate_weight * error}

    def prepare(self, dataset: Any) -> None:
        """What must happen once before training, when initial weights have been loaded.

        The gates' loss needs the widest training image: measured here, unless it was given. And two
        streams that begin alike and weigh a half each receive the same gradients, so that they
        would stay alike for ever: then the high stream's weights are changed by 1 %, by the same
        noise in every run and process.

        Args:
            dataset: its ``img_items`` are (path, identity, camera); only the files' headers are
                read.

        Raises:
            FileNotFoundError, OSError: an image that can't be read.
        """
        if not self.learned:
            if self._alike():
                self._perturb()
                logger.info(
                    "Both streams begin with the same weights, and weigh the same: those of the "
                    "high one are changed by %.0f %% noise",
                    100 * NOISE,
                )
            return
        if self._given:
            self.widest.fill_(self._given)
            return
        self.widest.fill_(_widest_of(dataset))
        logger.info("Resolution r = 1 is a native width of %d pixels", int(self.widest))

    def _alike(self) -> bool:
        pairs = zip(self.low.parameters(), self.high.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    @torch.no_grad()
    def _perturb(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in self.high.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + NOISE * noise.to(parameter.device))


def _check(fuse: str, gates: str, gate_dim: int, gate_weight: float, widest: int) -> None:
    node = "MODEL.BACKBONE.DUAL"
    for key, value, choices in (("FUSE", fuse, FUSES), ("GATES", gates, GATES)):
        if value not in choices:
            raise ConfigError(f"{node}.{key}: {value!r} is none of {', '.join(choices)}")
    if gate_dim < 1:
        raise ConfigError(f"{node}.GATE_DIM: a width of at least 1 is needed, not {gate_dim}")
    if gate_weight < 0:
        raise ConfigError(f"{node}.GATE_WEIGHT: at least 0 is needed, not {gate_weight}")
    if widest < 0:
        raise ConfigError(f"{node}.WIDEST: a width in pixels is needed, or 0, not {widest}")


def _part(network: nn.Module, names: Sequence[str]) -> nn.ModuleDict:
    """The network's children that the dotted names lie in, under their own names."""
    children = {name.split(".")[0] for name in names}
    return nn.ModuleDict({k: child for k, child in network.named_children() if k in children})


def _run(part: nn.Module, names: Sequence[str], maps: Tensor) -> Tensor:
    for name in names:
        maps = part.get_submodule(name)(maps)
    return maps


def _widest_of(dataset: Any) -> int:
    widest = 0
    for path in sorted({str(item[0]) for item in dataset.img_items}):
        with Image.open(path) as image:
            widest = max(widest, image.width)
    return widest


@BACKBONE_REGISTRY.register()
def build_dual_stream_backbone(cfg: CfgNode) -> DualStream:
    """Two streams of the backbone named in ``MODEL.BACKBONE.DUAL.BASE``; see there.

    The other keys of ``MODEL.BACKBONE`` (DEPTH, WITH_IBN, NORM, FEAT_DIM, PRETRAIN ...) are the
    base's. It is built twice: pretrained weights are the same in both streams, random ones are not.

    Raises:
        ConfigError: a key with a value that can't be used.
        PretrainedError, WeightsError, FileNotFoundError: see
            :func:`~lrreid_ext.modeling.backbones.pretrained.build_backbone`.
    """
    node = cfg.MODEL.BACKBONE.DUAL
    key = "MODEL.BACKBONE.DUAL.BASE"
    if node.BASE == "build_dual_stream_backbone":
        raise ConfigError(f"{key}: {node.BASE} is what doubles; name the backbone to be doubled")
    return DualStream(
        build_backbone(cfg, node.BASE, key),
        build_backbone(cfg, node.BASE, key),
        fuse=node.FUSE,
        gates=node.GATES,
        gate_dim=node.GATE_DIM,
        gate_weight=node.GATE_WEIGHT,
        gate_norm=node.GATE_NORM,
        detach=node.DETACH,
        widest=node.WIDEST,
        size=cfg.INPUT.SIZE_TRAIN,
    )
