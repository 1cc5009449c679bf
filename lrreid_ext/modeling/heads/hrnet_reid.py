"""The representation head of PS-HRNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.modeling.backbones.hrnet import OUT_CHANNELS
from lrreid_ext.modeling.heads.linear_neck import (
    DEFAULT_EMBEDDING_DIM,
    require_linear_classifier,
)
from lrreid_ext.registry import REID_HEADS_REGISTRY

POOLINGS = ("avg", "max", "both")


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`HRNetReIDHead`."""
    # Pooling (PS-HRNet, Eq. 6: avg, max or both), size pooled to in each branch,
    # and weight of the max pooling.
    cfg.MODEL.HEADS.HRNET = CfgNode()
    cfg.MODEL.HEADS.HRNET.POOLING = "both"
    cfg.MODEL.HEADS.HRNET.SIZES = [4, 2, 2, 1]
    cfg.MODEL.HEADS.HRNET.LAMBDAS = [0.5, 0.2, 0.2, 0.2]


@REID_HEADS_REGISTRY.register()
class HRNetReIDHead(nn.Module):
    """Pools each HRNet branch to a sequence, joins them, and classifies (PS-HRNet III-C, Fig. 4).

    Branch n becomes ``Seq_n = flatten(avg(f_n, s_n) + lambda_n * max(f_n, s_n))``. Eq. 6 prints n
    for the pooled size s_n; the lengths that the paper states need 4, 2, 2, 1 (2048, 1024, 2048,
    1024, and 6144 for their concatenation Seq_5). Seq_5 - linear - l_f - batch norm - dropout -
    linear - l_c, the logits.

    Args:
        num_classes: training identities.
        embedding_dim: length of l_f; 0 means 512.
        dropout: share dropped before the classifier (the paper's network: 0.5).
        pooling: ``avg``, ``max`` or ``both`` (Table V; lambda weighs ``max`` only in ``both``).
        sizes: pooled height and width of each branch.
        lambdas: weight of the max pooling of each branch.

    Attributes:
        sequence_dims: lengths of Seq_1 to Seq_4.

    Raises:
        ValueError: an unknown pooling, or lists of different lengths.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        embedding_dim: int = DEFAULT_EMBEDDING_DIM,
        dropout: float = 0.5,
        pooling: str = "both",
        sizes: Sequence[int] = (4, 2, 2, 1),
        lambdas: Sequence[float] = (0.5, 0.2, 0.2, 0.2),
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(
                f"MODEL.HEADS.HRNET.POOLING: {pooling!r} is not one of {', '.join(POOLINGS)}"
            )
        if not len(sizes) == len(lambdas) == len(OUT_CHANNELS):
            raise ValueError(
                "MODEL.HEADS.HRNET.SIZES and LAMBDAS need one number for each of the "
                f"{len(OUT_CHANNELS)} branches, not {list(sizes)} and {list(lambdas)}"
            )
        self.pooling = pooling
        self.sizes, self.lambdas = tuple(sizes), tuple(lambdas)
        self.sequence_dims = tuple(c * s * s for c, s in zip(OUT_CHANNELS, sizes, strict=True))
        embedding_dim = embedding_dim or DEFAULT_EMBEDDING_DIM
        self.fc = nn.Linear(sum(self.sequence_dims), embedding_dim)
        self.bn = nn.BatchNorm1d(embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding_dim, num_classes)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        require_linear_classifier(cfg, cls.__name__)
        node = cfg.MODEL.HEADS
        return {
            "num_classes": node.NUM_CLASSES,
            "embedding_dim": node.EMBEDDING_DIM,
            "dropout": node.DROPOUT,
            "pooling": node.HRNET.POOLING,
            "sizes": node.HRNET.SIZES,
            "lambdas": node.HRNET.LAMBDAS,
        }

    def _pool(self, x: Tensor, size: int, weight: float) -> Tensor:
        if self.pooling == "avg":
            pooled = F.adaptive_avg_pool2d(x, size)
        elif self.pooling == "max":
            pooled = F.adaptive_max_pool2d(x, size)
        else:
            pooled = F.adaptive_avg_pool2d(x, size) + weight * F.adaptive_max_pool2d(x, size)
        return pooled.flatten(1)

    def represent(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """All that the head computes, in training and evaluation alike.

        Args:
            features: the backbone's four maps, (B, OUT_CHANNELS[n], H_n, W_n).

        Returns:
            ``cls_outputs`` and ``pred_class_logits``: l_c, (B, num_classes); ``features``: Seq_5;
            ``sequences``: the list Seq_1 to Seq_5; ``embedding``: l_f, (B, embedding_dim).

        Raises:
            ValueError: maps of other channels, as another backbone makes them.
        """
        several = isinstance(features, (list, tuple))
        channels = [f.shape[1] for f in features] if several else "one tensor"
        if channels != list(OUT_CHANNELS):
            raise ValueError(
                f"HRNetReIDHead needs four maps of {list(OUT_CHANNELS)} channels, as "
                f"build_hrnet_backbone makes them; got {channels}"
            )
        sequences = [
            self._pool(f, size, weight)
            for f, size, weight in zip(features, self.sizes, self.lambdas, strict=True)
        ]
        sequences.append(torch.cat(sequences, dim=1))
        embedding = self.fc(sequences[-1])
        logits = self.classifier(self.dropout(self.bn(embedding)))
        return {
            "cls_outputs": logits,
            "pred_class_logits": logits,
            "features": sequences[-1],
            "sequences": sequences,
            "embedding": embedding,
        }

    def forward(
        self, features: Sequence[Tensor], targets: Tensor | None = None
    ) -> Tensor | dict[str, Any]:
        """Represent a batch.

        Args:
            features: the backbone's four maps, (B, OUT_CHANNELS[n], H_n, W_n).
            targets: (B,) int64; not used, the classifier has no margin.

        Returns:
            In evaluation [Seq_5; l_f] of unit length, (B, 6656) with the defaults; in training
            what :meth:`represent` returns.
        """
        out = self.represent(features)
        if self.training:
            return out
        return F.normalize(torch.cat([out["features"], out["embedding"]], 1).float(), dim=1)
