"""The identity losses that ``MODEL.LOSSES.NAME`` can name.

Each is called as ``loss(outputs, targets)`` and returns a scalar that is already multiplied by its
``SCALE``. The first four are fastreid's formulas under the names that fastreid's own configs use.
Two of its traits, kept for comparable results: ``CrossEntropyLoss`` divides by the number of
samples whose loss isn't exactly 0, and ``TripletLoss`` without ``HARD_MINING`` takes a missing
negative to be at distance 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.losses import (
    cross_entropy_loss,
    pairwise_circleloss,
    pairwise_cosface,
    triplet_loss,
)
from torch import Tensor
from torch.nn.functional import normalize

from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.losses.functional import (
    batch_hard_triplet,
    sequence_triplet,
    smooth_cross_entropy,
    widen,
)
from lrreid_ext.registry import LOSS_REGISTRY

Outputs = Mapping[str, Any]


@LOSS_REGISTRY.register()
class CrossEntropyLoss:
    """fastreid's cross entropy of ``cls_outputs``; ``eps`` < 0 smooths adaptively by ``alpha``."""

    @configurable
    def __init__(self, *, eps: float = 0.0, alpha: float = 0.2, scale: float = 1.0) -> None:
        self.eps, self.alpha, self.scale = eps, alpha, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.CE
        return {"eps": node.EPSILON, "alpha": node.ALPHA, "scale": node.SCALE}

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        logits = outputs["cls_outputs"]
        with torch.autocast(logits.device.type, enabled=False):
            return self.scale * cross_entropy_loss(widen(logits), targets, self.eps, self.alpha)


@LOSS_REGISTRY.register()
class TripletLoss:
    """fastreid's triplet loss of ``features``: hard or softly weighted mining, margin 0: soft."""

    @configurable
    def __init__(
        self,
        *,
        margin: float = 0.3,
        norm_feat: bool = False,
        hard_mining: bool = True,
        scale: float = 1.0,
    ) -> None:
        self.margin, self.norm_feat = margin, norm_feat
        self.hard_mining, self.scale = hard_mining, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.TRI
        return {
            "margin": node.MARGIN,
            "norm_feat": node.NORM_FEAT,
            "hard_mining": node.HARD_MINING,
            "scale": node.SCALE,
        }

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        features = outputs["features"]
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * triplet_loss(
                widen(features), targets, self.margin, self.norm_feat, self.hard_mining
            )


@LOSS_REGISTRY.register()
class CircleLoss:
    """fastreid's pairwise circle loss of ``features``."""

    @configurable
    def __init__(self, *, margin: float = 0.25, gamma: float = 128, scale: float = 1.0) -> None:
        self.margin, self.gamma, self.scale = margin, gamma, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.CIRCLE
        return {"margin": node.MARGIN, "gamma": node.GAMMA, "scale": node.SCALE}

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        features = outputs["features"]
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * pairwise_circleloss(
                widen(features), targets, self.margin, self.gamma
            )


@LOSS_REGISTRY.register()
class Cosface:
    """fastreid's pairwise CosFace loss of ``features``."""

    @configurable
    def __init__(self, *, margin: float = 0.25, gamma: float = 128, scale: float = 1.0) -> None:
        self.margin, self.gamma, self.scale = margin, gamma, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.COSFACE
        return {"margin": node.MARGIN, "gamma": node.GAMMA, "scale": node.SCALE}

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        features = outputs["features"]
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * pairwise_cosface(widen(features), targets, self.margin, self.gamma)


@LOSS_REGISTRY.register()
class SmoothCrossEntropyLoss:
    """Cross entropy of ``cls_outputs`` smoothed as in PS-HRNet Eq. 8-9.

    See :func:`lrreid_ext.modeling.losses.functional.smooth_cross_entropy`.
    """

    @configurable
    def __init__(self, *, eps: float = 0.1, scale: float = 1.0) -> None:
        self.eps, self.scale = eps, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"eps": cfg.MODEL.LOSSES.CE.EPSILON, "scale": cfg.MODEL.LOSSES.CE.SCALE}

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        return self.scale * smooth_cross_entropy(outputs["cls_outputs"], targets, self.eps)


class _BatchHard:
    """Options of the batch-hard losses, from ``MODEL.LOSSES.TRI`` (``HARD_MINING`` is implied)."""

    @configurable
    def __init__(self, *, margin: float = 0.3, norm_feat: bool = False, scale: float = 1.0) -> None:
        self.margin, self.norm_feat, self.scale = margin, norm_feat, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES.TRI
        return {"margin": node.MARGIN, "norm_feat": node.NORM_FEAT, "scale": node.SCALE}

    def _prepared(self, features: Tensor) -> Tensor:
        return normalize(widen(features), dim=1) if self.norm_feat else features


@LOSS_REGISTRY.register()
class BatchHardTripletLoss(_BatchHard):
    """Batch-hard triplet loss of ``features``, on unit length if ``norm_feat``.

    See :func:`lrreid_ext.modeling.losses.functional.batch_hard_triplet`; unlike ``TripletLoss`` it
    is exact for near features and defined for identities with one image.
    """

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        features = self._prepared(outputs["features"])
        return self.scale * batch_hard_triplet(features, targets, self.margin)


@LOSS_REGISTRY.register()
class SequenceTripletLoss(_BatchHard):
    """Batch-hard triplet loss averaged over ``sequences`` (PS-HRNet Eq. 7, as a mean).

    Needs a head that returns ``sequences``, such as ``HRNetReIDHead``.
    """

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        if "sequences" not in outputs:
            raise ConfigError(
                "MODEL.LOSSES.NAME: SequenceTripletLoss needs a head that returns 'sequences' "
                f"(HRNetReIDHead); this one returns {', '.join(sorted(outputs))}"
            )
        sequences = [self._prepared(s) for s in outputs["sequences"]]
        return self.scale * sequence_triplet(sequences, targets, self.margin)
