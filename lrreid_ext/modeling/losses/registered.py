"""The identity losses that ``MODEL.LOSSES.NAME`` can name.

Each is called as ``loss(outputs, targets)`` and returns a scalar that is already multiplied by its
``SCALE``. The first four are fastreid's formulas under the names that fastreid's own configs use.
Two of its traits, kept for comparable results: ``CrossEntropyLoss`` divides by the number of
samples whose loss isn't exactly 0, and ``TripletLoss`` without ``HARD_MINING`` takes a missing
negative to be at distance 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

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


class _Loss:
    """A loss with the options of one node of ``MODEL.LOSSES``, which are also its keywords.

    Attributes:
        node: name of the node.
        defaults: keywords of ``__init__`` beside ``scale``; in the config they are upper case.
        reads: which of the head's outputs the loss is of.
        loss: the formula, ``(values, targets, *options) -> scalar``.
    """

    node: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    reads: ClassVar[str] = "features"
    loss: ClassVar[Callable[..., Tensor]]

    @configurable
    def __init__(self, *, scale: float = 1.0, **options: Any) -> None:
        self.scale = scale
        self.options = {**self.defaults, **options}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.LOSSES[cls.node]
        return {name: node[name.upper()] for name in ("scale", *cls.defaults)}

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        values = outputs[self.reads]
        with torch.autocast(values.device.type, enabled=False):
            return self.scale * self.loss(widen(values), targets, *self.options.values())


@LOSS_REGISTRY.register()
class CrossEntropyLoss(_Loss):
    """fastreid's cross entropy of ``cls_outputs``; ``epsilon`` < 0: smoothed by ``alpha``."""

    node, reads, defaults = "CE", "cls_outputs", {"epsilon": 0.0, "alpha": 0.2}
    loss = staticmethod(cross_entropy_loss)


@LOSS_REGISTRY.register()
class TripletLoss(_Loss):
    """fastreid's triplet loss of ``features``: hard or softly weighted mining, margin 0: soft."""

    node, defaults = "TRI", {"margin": 0.3, "norm_feat": False, "hard_mining": True}
    loss = staticmethod(triplet_loss)


@LOSS_REGISTRY.register()
class CircleLoss(_Loss):
    """fastreid's pairwise circle loss of ``features``."""

    node, defaults = "CIRCLE", {"margin": 0.25, "gamma": 128}
    loss = staticmethod(pairwise_circleloss)


@LOSS_REGISTRY.register()
class Cosface(_Loss):
    """fastreid's pairwise CosFace loss of ``features``."""

    node, defaults = "COSFACE", {"margin": 0.25, "gamma": 128}
    loss = staticmethod(pairwise_cosface)


@LOSS_REGISTRY.register()
class SmoothCrossEntropyLoss(_Loss):
    """Cross entropy of ``cls_outputs`` smoothed as in PS-HRNet Eq. 8-9.

    See :func:`lrreid_ext.modeling.losses.functional.smooth_cross_entropy`.
    """

    node, reads, defaults = "CE", "cls_outputs", {"epsilon": 0.1}
    loss = staticmethod(smooth_cross_entropy)


@LOSS_REGISTRY.register()
class BatchHardTripletLoss(_Loss):
    """Batch-hard triplet loss of ``features``, on unit length if ``norm_feat``.

    See :func:`lrreid_ext.modeling.losses.functional.batch_hard_triplet`; unlike ``TripletLoss`` it
    is exact for near features and defined for identities with one image.
    """

    node, defaults = "TRI", {"margin": 0.3, "norm_feat": False}

    @staticmethod
    def loss(values: Tensor, targets: Tensor, margin: float, norm_feat: bool) -> Tensor:
        return batch_hard_triplet(normalize(values) if norm_feat else values, targets, margin)


@LOSS_REGISTRY.register()
class SequenceTripletLoss(BatchHardTripletLoss):
    """The same averaged over ``sequences`` (PS-HRNet Eq. 7, as a mean).

    Needs a head that returns ``sequences``, such as ``HRNetReIDHead``.
    """

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        if "sequences" not in outputs:
            raise ConfigError(
                "MODEL.LOSSES.NAME: SequenceTripletLoss needs a head that returns 'sequences' "
                f"(HRNetReIDHead); this one returns {', '.join(sorted(outputs))}"
            )
        margin, norm_feat = self.options.values()
        sequences = [normalize(widen(s)) if norm_feat else s for s in outputs["sequences"]]
        return self.scale * sequence_triplet(sequences, targets, margin)
