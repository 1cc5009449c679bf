"""RAIN's own wiring: discriminators at levels of the extractor, and an HR decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastreid.config import configurable
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import Batch
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.adversary import held
from lrreid_ext.modeling.backbones import Level, find_levels, tapped
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.modeling.losses import fool, mean_over, tell_apart
from lrreid_ext.modeling.meta_arch import Pipeline, Step
from lrreid_ext.registry import META_ARCH_REGISTRY
from projects.RAIN.parts import HRDecoder, ResolutionCritic

CRITIC = "critic"


@META_ARCH_REGISTRY.register()
class RAIN(Pipeline):
    """RAIN (Chen et al., AAAI 2019, "Learning Resolution-Invariant Deep Representations for Person
    Re-Identification").

    Step ``joint``: HR and LR images pass the extractor; identity losses (Eq. 3, 6), L1 between what
    the decoder makes of a level and the HR twin (Eq. 2), and for each level the adversarial loss
    (Eq. 1): LR maps are to pass for HR ones. The optimiser ``critic`` trains the discriminators,
    on detached maps. Images without a label (DATASETS.LABELLED) take part in all but the identity
    losses. After training only extractor and head are used.

    A front-end, if there is one, comes before the extractor and is trained along.

    Args:
        levels: what the discriminators read, by name; none: no adversarial loss.
        critics: the discriminator of each level.
        adversarial_weight: of each level's adversarial loss. 0 leaves the extractor alone while
            the discriminators learn all the same, which shows what they could tell.
        critic_weight: of the discriminators' losses.
        decoder_level: what the decoder reads; None: no decoder.
        decoder: the decoder.
        reconstruction_weight: of the L1 loss.
        by_resolution: whether losses of HR and of LR images are means of their own, added up.
        others: see :class:`Pipeline`.
    """

    @configurable
    def __init__(
        self,
        *,
        levels: Mapping[str, Level],
        critics: Mapping[str, nn.Module],
        adversarial_weight: float = 0.01,
        critic_weight: float = 0.01,
        decoder_level: Level | None = None,
        decoder: HRDecoder | None = None,
        reconstruction_weight: float = 1.0,
        by_resolution: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.levels = dict(levels)
        # Names of modules hold no dots.
        self.critics = nn.ModuleDict({plain(name): critic for name, critic in critics.items()})
        self.adversarial_weight = adversarial_weight
        self.critic_weight = critic_weight
        self.decoder_level = decoder_level
        self.decoder = decoder
        self.reconstruction_weight = reconstruction_weight
        self.by_resolution = by_resolution

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keyword arguments of ``__init__`` from a config."""
        parts = super().from_config(cfg)
        node, backbone = cfg.RAIN, parts["backbone"]
        height, width = size = tuple(cfg.INPUT.SIZE_TRAIN)
        levels = find_levels(backbone, node.LEVELS, size, "RAIN.LEVELS")
        level = decoder = None
        if node.RECONSTRUCTION_WEIGHT > 0:
            name = node.DECODER.LEVEL
            level = find_levels(backbone, [name], size, "RAIN.DECODER.LEVEL")[name]
            stride = max(round(height / level.height), round(width / level.width))
            decoder = HRDecoder(level.channels, stride, node.DECODER.WIDTHS)
        return {
            **parts,
            "levels": levels,
            "critics": {
                name: ResolutionCritic(each.channels, node.CRITIC_WIDTH)
                for name, each in levels.items()
            },
            "adversarial_weight": node.ADVERSARIAL_WEIGHT,
            "critic_weight": node.CRITIC_WEIGHT,
            "decoder_level": level,
            "decoder": decoder,
            "reconstruction_weight": node.RECONSTRUCTION_WEIGHT,
            "by_resolution": node.BY_RESOLUTION,
        }

    def optimizer_parts(self) -> dict[str, list[str]]:
        """The discriminators have an optimiser of their own."""
        return {CRITIC: ["critics"]}

    def check_phase(self, cfg: CfgNode) -> None:
        """Raise ConfigError if a phase shows the discriminators images of one resolution only."""
        if self.step == "joint" and self.levels and cfg.INPUT.LR.TRAIN_ON in ("hr", "lr"):
            raise ConfigError(
                f"INPUT.LR.TRAIN_ON {cfg.INPUT.LR.TRAIN_ON!r}: RAIN's discriminators compare HR "
                "and LR images; set it to 'both' or 'mixed', or leave them out (RAIN.LEVELS [])"
            )

    @property
    def steps(self) -> dict[str, Step]:
        """Step ``joint``, and those of :class:`Pipeline`."""
        return {"joint": self.train_joint, **super().steps}

    def train_joint(self, batch: Batch) -> StepOutput:
        """All losses (Eq. 7), each with its weight; the optimiser ``critic`` follows its own.

        Identity losses are logged by resolution, as ``loss_..._h`` and ``loss_..._l``.
        """
        restored = self.restore(batch)
        levels = dict(self.levels)
        if self.decoder_level:
            levels[""] = self.decoder_level  # no level is called so
        height, width = restored.images.shape[-2:]
        with tapped(self.backbone, levels, (height, width)) as maps:
            outputs, losses = self.identify(restored.images, batch)
        low = self.low_resolution(batch) | ~batch["has_hr"]
        identity, figures = self.recognition_losses(outputs, batch["targets"], low)
        losses |= identity
        losses |= self.frontend_losses(restored, batch)
        if self.decoder is not None:
            loss = self.reconstruction_loss(maps.pop(""), batch, low)
            losses["loss_reconstruction"] = self.reconstruction_weight * loss
        step = StepOutput(losses, figures)
        if not self.levels:
            return step
        if self.adversarial_weight > 0:
            with held(self.critics):
                for name in self.levels:
                    loss = self.adversarial_weight * fool(self.critic(name)(maps[name]), low)
                    losses[f"loss_adversarial_{plain(name)}"] = loss
        critic_losses = step.other_losses[CRITIC] = {}
        for name in self.levels:
            logits = self.critic(name)(maps[name].detach())
            loss = self.critic_weight * tell_apart(logits, low)
            critic_losses[f"loss_critic_{plain(name)}"] = loss
            right = (logits.detach().mean((1, 2, 3)) > 0) != low
            figures[f"critic_accuracy_{plain(name)}"] = right.float().mean()
        return step

    def critic(self, level: str) -> nn.Module:
        """The discriminator of a level."""
        return self.critics[plain(level)]

    def recognition_losses(
        self, outputs: dict[str, Any], targets: Tensor, low: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The identity losses of the images that have a label, HR and LR by themselves or not, and
        the figures beside them."""
        if not self.by_resolution:
            return self.identity_losses(outputs, targets)
        losses: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        for name, chosen in (("h", ~low), ("l", low)):
            of_one = self.identity_losses(outputs, targets, chosen)
            for total, values in zip((losses, figures), of_one, strict=True):
                total |= {f"{key}_{name}": value for key, value in values.items()}
        return losses, figures

    def reconstruction_loss(self, maps: Tensor, batch: Batch, low: Tensor) -> Tensor:
        """Mean absolute difference of decoded images and HR twins (Eq. 2), on the scale of the
        extractor's input. Images known only small have no twin to be held against."""
        assert self.decoder is not None
        hr = self.normalise(batch["images_hr"])
        difference = (self.decoder(maps, hr.shape[-2:]) - hr).abs()
        paired = batch["has_hr"]
        if not self.by_resolution:
            return mean_over(difference, paired)
        return mean_over(difference, paired & ~low) + mean_over(difference, paired & low)


def plain(level: str) -> str:
    """A level's name without dots: ``layers_3``."""
    return level.replace(".", "_")
