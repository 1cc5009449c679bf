"""The architecture of most methods: front-end, normalise, backbone, head."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastreid.config import configurable
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import Batch
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.backbones import build_backbone
from lrreid_ext.modeling.contract import BackboneWithLosses, StepOutput
from lrreid_ext.modeling.frontends import Frontend, FrontendOutput, build_frontend
from lrreid_ext.modeling.routing import is_exporting, picked
from lrreid_ext.registry import LOSS_REGISTRY, META_ARCH_REGISTRY, REID_HEADS_REGISTRY, lookup

Loss = Callable[[dict[str, Any], Tensor], Tensor]
Step = Callable[[Batch], StepOutput]


def build_heads(cfg: CfgNode) -> nn.Module:
    """The head named in ``MODEL.HEADS.NAME``."""
    return lookup(REID_HEADS_REGISTRY, cfg.MODEL.HEADS.NAME, "MODEL.HEADS.NAME")(cfg)


def build_losses(cfg: CfgNode) -> dict[str, Loss]:
    """The identity losses named in ``MODEL.LOSSES.NAME``, by the name they are logged under."""
    return {
        loss_key(name): lookup(LOSS_REGISTRY, name, "MODEL.LOSSES.NAME")(cfg)
        for name in cfg.MODEL.LOSSES.NAME
    }


def loss_key(name: str) -> str:
    """The key a loss is logged under: ``loss_batch_hard_triplet`` for BatchHardTripletLoss."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z0-9]+", name.removesuffix("Loss"))
    return "_".join(["loss", *words]).lower()


def take(outputs: dict[str, Any], rows: slice | Tensor, total: int) -> dict[str, Any]:
    """Some rows of everything in a head's outputs for ``total`` images that has a row for each."""

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == total:
            return value[rows]
        if isinstance(value, (list, tuple)):
            return [taken(v) for v in value]
        return value

    return {key: taken(value) for key, value in outputs.items()}


@META_ARCH_REGISTRY.register()
class Pipeline(nn.Module):
    """Front-end -> normalise -> backbone -> head.

    A batch is what :func:`lrreid_ext.data.paired.select` returns, or in evaluation what
    :class:`lrreid_ext.data.paired.TestDataset` gives; ``images`` are RGB, 0-255, at the input size,
    and are never changed in place.

    Training steps (``PHASES.<name>.STEP``): ``reid`` (default) sums the identity losses and, while
    the front-end learns, its own weighted losses; ``sr`` trains the front-end alone.

    Args:
        frontend, backbone, heads: the parts.
        losses: identity losses, ``(outputs, targets) -> scalar``, by name.
        sr_weight: weight of the front-end's losses; 0 leaves them out.
        sr_apply: ``all`` or ``lr``: which images pass through the front-end.
        pixel_mean, pixel_std: of the re-ID network's input, on the 0-255 scale.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        frontend: Frontend,
        backbone: nn.Module,
        heads: nn.Module,
        losses: dict[str, Loss],
        sr_weight: float = 1.0,
        sr_apply: str = "all",
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        if sr_apply not in ("all", "lr"):
            raise ConfigError(f"MODEL.SR.APPLY: {sr_apply!r} is neither 'all' nor 'lr'")
        self.frontend = frontend
        self.backbone = backbone
        self.heads = heads
        self.losses = losses
        self.sr_weight = sr_weight
        self.sr_apply = sr_apply
        self.step = next(iter(self.steps))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, -1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, -1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keyword arguments of ``__init__`` from a config."""
        return {
            "frontend": build_frontend(cfg),
            "backbone": build_backbone(cfg),
            "heads": build_heads(cfg),
            "losses": build_losses(cfg),
            "sr_weight": cfg.MODEL.SR.LOSS_WEIGHT,
            "sr_apply": cfg.MODEL.SR.APPLY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.pixel_mean.device

    @property
    def steps(self) -> dict[str, Step]:
        """The training steps by name, the default first."""
        return {"reid": self.train_reid, "sr": self.train_sr}

    def set_step(self, step: str) -> None:
        """Choose what :meth:`forward` trains and evaluates; "" is the first of :attr:`steps`."""
        if step and step not in self.steps:
            raise ConfigError(
                f"PHASES.*.STEP: {type(self).__name__} has no step {step!r}, only "
                f"{', '.join(self.steps)}"
            )
        self.step = step or next(iter(self.steps))

    def forward(self, batch: Batch) -> StepOutput | Tensor:
        """In training, what the step gives; in evaluation, features (B, D)."""
        return self.steps[self.step](batch) if self.training else self.embed(batch)

    def embed(self, batch: Batch) -> Tensor:
        """Features (B, D) of a batch, as the head gives them in evaluation mode."""
        return self.heads(self.backbone(self.normalise(self.restore(batch).images)))

    def restore(self, batch: Batch) -> FrontendOutput:
        """Pass the images through the front-end, all of them or the low-resolution ones alone."""
        images, native = batch["images"], batch.get("native_size")
        if self.sr_apply == "all":
            return self.frontend(images, native)
        low = self.low_resolution(batch)
        if is_exporting():
            return FrontendOutput(picked(low, self.frontend(images, native).images, images))
        if bool(low.all()):
            return self.frontend(images, native)
        if not bool(low.any()):
            return FrontendOutput(images)
        restored = self.frontend(images[low], None if native is None else native[low])
        return restored.spread(images, low)

    def low_resolution(self, batch: Batch) -> Tensor:
        """(B,) bool: images reduced by a factor above 1; where the factor is unknown (NaN, or none
        in the batch), those with fewer native rows than the input, or all if that is unknown too.
        """
        images, native = batch["images"], batch.get("native_size")
        if native is None:
            guess = torch.ones(len(images), dtype=torch.bool, device=images.device)
        else:
            guess = native[:, 0] < images.shape[2]
        if "factor" not in batch:
            return guess
        return torch.where(batch["factor"].isnan(), guess, batch["factor"] > 1)

    def restorable(self, batch: Batch) -> Tensor:
        """(B,) bool: images that passed through the front-end and whose HR twin is known."""
        paired = batch.get("has_hr", torch.ones(len(batch["images"]), dtype=torch.bool))
        paired = paired.to(batch["images"].device)
        return paired if self.sr_apply == "all" else paired & self.low_resolution(batch)

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation, out of place."""
        return (images - self.pixel_mean) / self.pixel_std

    def train_reid(self, batch: Batch) -> StepOutput:
        """The backbone's own losses, identity losses, and the front-end's while it learns."""
        restored = self.restore(batch)
        outputs, backbone = self.identify(restored.images, batch)
        identity, figures = self.identity_losses(outputs, batch["targets"])
        frontend = self.frontend_losses(restored, batch)
        return StepOutput({**backbone, **identity, **frontend}, figures)

    def identify(self, images: Tensor, batch: Batch) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Pass images (B, 3, H, W), RGB, 0-255, through backbone and head, in training.

        Returns:
            The head's outputs, and the losses of a
            :class:`~lrreid_ext.modeling.contract.BackboneWithLosses`.
        """
        images = self.normalise(images)
        # Images without a label pass as well; no loss looks at what the head makes of them.
        targets = batch["targets"].clamp(min=0)
        backbone = self.backbone
        if not isinstance(backbone, BackboneWithLosses):
            return self.heads(backbone(images), targets), {}
        features, extras = backbone.forward_with_extras(images)
        learns = any(p.requires_grad for p in self.backbone.parameters())
        losses = backbone.losses(extras, batch) if learns else {}
        return self.heads(features, targets), losses

    def train_sr(self, batch: Batch) -> StepOutput:
        """The front-end's losses alone, not weighed: MODEL.SR.LOSS_WEIGHT sets them against others.

        Raises:
            ConfigError: the front-end has none.
        """
        losses = self.frontend_losses(self.restore(batch), batch, weight=1.0)
        if not losses:
            raise ConfigError(
                f"STEP sr: the front-end {type(self.frontend).__name__} has nothing to learn here "
                "(MODEL.SR.NAME, TRAIN)"
            )
        return StepOutput(losses)

    def identity_losses(
        self, outputs: dict[str, Any], targets: Tensor, chosen: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every loss of MODEL.LOSSES.NAME, and ``cls_accuracy``, the share classified rightly.

        Args:
            outputs: the head's, in training.
            targets: (B,) int64; images of target -1 have no label and don't count.
            chosen: (B,) bool: others that don't count either, if not all do.

        Returns:
            Losses and figures, each by name.
        """
        total, weight = len(targets), 1.0
        counted = targets >= 0 if chosen is None else chosen & (targets >= 0)
        if not bool(counted.all()):
            if not bool(counted.any()):
                # Every process has to give the same losses, also for a batch without a label.
                counted = torch.arange(total, device=targets.device) == 0
                weight = 0.0
            outputs, targets = take(outputs, counted, total), targets[counted].clamp(min=0)
        right = (outputs["pred_class_logits"].detach().argmax(1) == targets).float().mean()
        losses = {name: loss(outputs, targets) for name, loss in self.losses.items()}
        if weight == 0:
            losses = {name: 0.0 * loss for name, loss in losses.items()}
        return losses, {"cls_accuracy": weight * right}

    def frontend_losses(
        self, restored: FrontendOutput, batch: Batch, weight: float | None = None
    ) -> dict[str, Tensor]:
        """The front-end's losses over the images that passed through it and whose HR twin is known.

        Times ``weight``, or else MODEL.SR.LOSS_WEIGHT."""
        learns = any(p.requires_grad for p in self.frontend.parameters())
        weight = self.sr_weight if weight is None else weight
        if not learns or weight == 0:
            return {}
        output, hr, share = self.supervised(restored, batch)
        losses = self.frontend.losses(output, hr)
        return {name: share * weight * loss for name, loss in losses.items()}

    def supervised(
        self, restored: FrontendOutput, batch: Batch
    ) -> tuple[FrontendOutput, Tensor, float]:
        """What the front-end made of the images that passed through it and whose HR twin is known.

        Returns:
            That output, with the batch's masks as ``extras["masks"]``; the HR twins; and what
            losses of the two are multiplied with: 1, or 0 where the batch has no such image. (The
            first image then takes their place: every process has to give the same losses.)
        """
        hr, share = batch["images_hr"], 1.0
        chosen = self.restorable(batch)
        if bool(chosen.all()):
            output = restored
        elif bool(chosen.any()):
            output = restored.rows(chosen)
        else:
            chosen = torch.arange(len(hr), device=hr.device) == 0
            native = None if batch.get("native_size") is None else batch["native_size"][chosen]
            output, share = self.frontend(batch["images"][chosen], native), 0.0
        masks = {"masks": batch["masks"][chosen]} if "masks" in batch else {}
        return FrontendOutput(output.images, {**output.extras, **masks}), hr[chosen], share
