"""CSR-GAN's own wiring: discriminators, VGG, and the losses that they lay on the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import Batch
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.adversary import held
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.modeling.frontends import FrontendOutput, Pairs
from lrreid_ext.modeling.losses.functional import no_loss, widen
from lrreid_ext.modeling.meta_arch import Pipeline, Step
from lrreid_ext.registry import META_ARCH_REGISTRY
from projects.CSRGAN.discriminator import Discriminator
from projects.CSRGAN.vgg import VGG19, check_layer, read_vgg, smallest

DISCRIMINATOR = "discriminator"
COMMON = {"logits": lambda x: x, "probabilities": lambda x: x.softmax(1)}


@META_ARCH_REGISTRY.register()
class CSRGAN(Pipeline):
    """CSR-GAN (Wang et al., IJCAI 2018, "Cascaded SR-GAN for Scale-Adaptive Low Resolution Person
    Re-identification"), on any backbone, with any front-end that learns.

    Steps: ``alone`` trains the re-ID network on the images it is shown, without front-end; ``sr``
    the generators on their pixel loss; ``all`` everything (Eq. 2): identity losses (unique-human,
    Eq. 9) of images that passed the cascade or needed none; and of each stage's output, against the
    HR twin reduced to its size, the pixel loss (Eq. 3), the VGG loss (Eq. 4), and the adversarial
    loss (Eq. 5) of its discriminator; of the last stage's output the common-human loss (Eq. 8). The
    discriminators are another optimiser's, ``discriminator``, and learn by binary cross entropy
    (Eq. 7 as printed has no lower bound).

    In evaluation query and gallery pass the front-end alike, each image as its native size asks
    for; in step ``alone`` none does.

    Args:
        discriminators: one for each stage of the front-end, or none.
        vgg_weight, adversarial_weight, common_weight: of the losses; 0 leaves one out. The pixel
            loss has MODEL.SR.LOSS_WEIGHT, the identity loss its own (MODEL.LOSSES).
        common: what the common-human loss compares, ``logits`` or ``probabilities``.
        vgg_weights, vgg_layer: see :func:`~projects.CSRGAN.vgg.read_vgg`. Read when a training
            needs it, never when a model is evaluated.
        others: see :class:`Pipeline`.

    Raises:
        ConfigError: a number of discriminators that doesn't fit, or an unknown ``common`` or layer.
    """

    @configurable
    def __init__(
        self,
        *,
        discriminators: Sequence[nn.Module] = (),
        vgg_weight: float = 2e-6,
        adversarial_weight: float = 1e-3,
        common_weight: float = 1.0,
        common: str = "logits",
        vgg_weights: str = "",
        vgg_layer: str = "conv5_4",
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if common not in COMMON:
            raise ConfigError(f"CSRGAN.COMMON: {common!r} is not one of {', '.join(COMMON)}")
        check_layer(vgg_layer)
        if len(discriminators) not in (0, self.frontend.stages):
            raise ConfigError(
                f"{len(discriminators)} discriminators for {self.frontend.stages} stages"
            )
        self.discriminators = nn.ModuleList(discriminators)
        self.vgg_weight = vgg_weight
        self.adversarial_weight = adversarial_weight
        self.common_weight = common_weight
        self.common = common
        self.vgg_weights = vgg_weights
        self.vgg_layer = vgg_layer
        # In a list, so that it is no part of the model: half a gigabyte that doesn't change would
        # otherwise be in every checkpoint.
        self._vgg: list[VGG19] = []

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keyword arguments of ``__init__`` from a config."""
        node = cfg.CSRGAN
        parts = super().from_config(cfg)
        frontend = parts["frontend"]
        discriminators: list[nn.Module] = []
        if node.ADVERSARIAL_WEIGHT > 0 and frontend.learns:
            discriminator = node.DISCRIMINATOR
            for size in stage_sizes(cfg, frontend.stages):
                whole = None if discriminator.POOL else size
                discriminators.append(
                    Discriminator(discriminator.WIDTH, discriminator.HIDDEN, whole)
                )
        return {
            **parts,
            "discriminators": discriminators,
            "vgg_weight": node.VGG_WEIGHT,
            "adversarial_weight": node.ADVERSARIAL_WEIGHT,
            "common_weight": node.COMMON_WEIGHT,
            "common": node.COMMON,
            "vgg_weights": node.VGG.WEIGHTS,
            "vgg_layer": node.VGG.LAYER,
        }

    def optimizer_parts(self) -> dict[str, list[str]]:
        """The discriminators have an optimiser of their own."""
        return {DISCRIMINATOR: ["discriminators"]}

    @property
    def needs_vgg(self) -> bool:
        """Whether a loss of step ``all`` looks through VGG-19."""
        return self.frontend.learns and max(self.vgg_weight, self.common_weight) > 0

    @property
    def vgg(self) -> VGG19:
        """The VGG-19 of all stages, read when it is asked for first."""
        if not self._vgg:
            self.use_vgg(read_vgg(self.vgg_weights, self.vgg_layer, classes=self.common_weight > 0))
        return self._vgg[0]

    def use_vgg(self, vgg: VGG19) -> None:
        """Take this VGG-19, and not the one that CSRGAN.VGG.WEIGHTS names."""
        self._vgg[:] = [vgg.to(self.device)]

    def _apply(self, fn: Any, recurse: bool = True) -> CSRGAN:
        for vgg in self._vgg:
            vgg._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def check_phase(self, cfg: CfgNode) -> None:
        """Find before training begins that a phase of step ``all`` lacks its VGG-19.

        Raises:
            ConfigError, FileNotFoundError, WeightsError: see :func:`~projects.CSRGAN.vgg.read_vgg`;
                or images too small for CSRGAN.VGG.LAYER.
        """
        if self.step != "all" or not self.needs_vgg:
            return
        height, width = stage_sizes(cfg, self.frontend.stages)[0]
        least = smallest(self.vgg_layer)
        if self.vgg_weight > 0 and min(height, width) < least:
            raise ConfigError(
                f"CSRGAN.VGG.LAYER: of the first stage's images, {height}x{width} pixels, nothing "
                f"is left at layer {self.vgg_layer}, which needs {least} a side"
            )
        if self.common_weight > 0 and min(cfg.INPUT.SIZE_TRAIN) < 32:
            raise ConfigError(
                f"CSRGAN.COMMON_WEIGHT: VGG-19's classes need images of 32 pixels a side, not of "
                f"{list(cfg.INPUT.SIZE_TRAIN)}; set it to 0"
            )
        _ = self.vgg

    def restore(self, batch: Batch) -> FrontendOutput:
        """The front-end's output; in step ``alone`` the images as they are."""
        if self.step == "alone":
            return FrontendOutput(batch["images"])
        return super().restore(batch)

    @property
    def steps(self) -> dict[str, Step]:
        """Steps ``all`` and ``alone``, and those of :class:`Pipeline`."""
        return {"all": self.train_all, "alone": self.train_alone, **super().steps}

    def train_alone(self, batch: Batch) -> StepOutput:
        """Phase 1: the re-ID network by itself."""
        return self._identified(batch["images"], batch)

    def train_all(self, batch: Batch) -> StepOutput:
        """Phase 3: every loss (Eq. 2); the optimiser ``discriminator`` follows its own."""
        restored = self.restore(batch)
        step = self._identified(restored.images, batch)
        if not any(p.requires_grad for p in self.frontend.parameters()):
            return step
        output, hr, share = self.supervised(restored, batch)
        pairs = self.frontend.pairs(output, hr)
        if self.sr_weight > 0:
            pixels = self.frontend.losses(output, hr)
            step.losses |= {name: share * self.sr_weight * loss for name, loss in pixels.items()}
        step.losses |= {name: share * loss for name, loss in self.stage_losses(pairs).items()}
        if self.discriminators:
            loss, accuracy = self.discriminator_loss(pairs)
            step.other_losses[DISCRIMINATOR] = {"loss_discriminator": share * loss}
            step.figures["discriminator_accuracy"] = accuracy
        return step

    def _identified(self, images: Tensor, batch: Batch) -> StepOutput:
        outputs, losses = self.identify(images, batch)
        identity, figures = self.identity_losses(outputs, batch["targets"])
        return StepOutput({**losses, **identity}, figures)

    def stage_losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """The losses of VGG-19 and of the discriminators on each stage's output, weighed.

        No loss is taken of a stage that no image passed, nor an adversarial one of a stage that a
        single image passed, whose discriminator's batch norm may have nothing to normalise by.
        """
        zero = torch.stack([restored[:0].sum() for restored, _ in pairs]).sum()
        losses: dict[str, Tensor] = {}
        if self.needs_vgg:
            vgg_loss, common_human = zero, zero
            for stage, (restored, real) in enumerate(pairs):
                last = stage == len(pairs) - 1 and self.common_weight > 0
                if len(restored) and (last or self.vgg_weight > 0):
                    maps, hr_maps = self.vgg(restored), self._looked_at(real)
                    vgg_loss = vgg_loss + F.mse_loss(widen(maps), widen(hr_maps))
                    if last:
                        with torch.no_grad():
                            classes = self._classes(hr_maps)
                        common_human = common_human + F.mse_loss(self._classes(maps), classes)
            if self.vgg_weight > 0:
                losses["loss_vgg"] = self.vgg_weight * vgg_loss
            if self.common_weight > 0:
                losses["loss_common_human"] = self.common_weight * common_human
        if self.discriminators:
            adversarial = zero
            with held(self.discriminators):
                for discriminator, (restored, _) in zip(self.discriminators, pairs, strict=True):
                    if len(restored) > 1:
                        adversarial = adversarial + bce(discriminator(restored), 1.0)
            losses["loss_adversarial"] = self.adversarial_weight * adversarial
        return losses

    def discriminator_loss(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The discriminators' loss, added up over the stages, and the share that they get right,
        the mean over the stages that at least two images passed (a half if there is none)."""
        terms, right = [], []
        for discriminator, (restored, real) in zip(self.discriminators, pairs, strict=True):
            if len(restored) < 2:
                # Every process and every step has to reach the same parameters.
                terms.append(no_loss(discriminator))
                continue
            of_real, of_restored = discriminator(real), discriminator(restored.detach())
            terms.append(bce(of_real, 1.0) + bce(of_restored, 0.0))
            right.append(
                torch.cat([of_real.detach() > 0, of_restored.detach() <= 0]).float().mean()
            )
        accuracy = torch.stack(right).mean() if right else terms[0].new_tensor(0.5)
        return torch.stack(terms).sum(), accuracy

    def _looked_at(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.vgg(images)

    def _classes(self, maps: Tensor) -> Tensor:
        return COMMON[self.common](widen(self.vgg.classify(maps)))


def bce(logits: Tensor, target: float) -> Tensor:
    """Mean binary cross entropy of (B,) logits that should all say the same."""
    logits = widen(logits)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def stage_sizes(cfg: CfgNode, stages: int) -> list[tuple[int, int]]:
    """Height and width of each stage's output, for images of INPUT.SIZE_TRAIN."""
    height, width = cfg.INPUT.SIZE_TRAIN
    return [(height // 2**k, width // 2**k) for k in reversed(range(stages))]
