"""A head whose neck is a linear layer, as in torchreid's OSNet."""

from __future__ import annotations

from typing import Any

from fastreid.config import CfgNode, configurable
from fastreid.layers import pooling
from torch import Tensor, nn

from lrreid_ext.registry import REID_HEADS_REGISTRY, suggest

DEFAULT_EMBEDDING_DIM = 512


def add_config(cfg: CfgNode) -> None:
    """Keys of heads with a linear neck."""
    # Dropout before the classifier, for heads that have one.
    cfg.MODEL.HEADS.DROPOUT = 0.0


def require_linear_classifier(cfg: CfgNode, head: str) -> None:
    """Refuse a config that asks a head with a plain classifier for a margin softmax.

    Raises:
        ValueError: names the key.
    """
    if cfg.MODEL.HEADS.CLS_LAYER != "Linear":
        raise ValueError(
            f"MODEL.HEADS.CLS_LAYER {cfg.MODEL.HEADS.CLS_LAYER!r}: {head} has a linear classifier; "
            "set it to 'Linear', or use EmbeddingHead"
        )


@REID_HEADS_REGISTRY.register()
class LinearNeckHead(nn.Module):
    """Pool - linear - batch norm - ReLU - embedding - [dropout] - linear classifier.

    The neck of OSNet (Zhou et al., ICCV 2019) as torchreid builds it, under its parameter names:
    ``fc.0.*``, ``fc.1.*`` and ``classifier.*``. One embedding serves the losses and the test; it is
    not normalised.

    Args:
        feat_dim: channels of the backbone's map.
        num_classes: training identities.
        embedding_dim: length of the embedding; 0 means 512.
        pool_type: one of ``fastreid.layers.pooling``.
        dropout: share of the embedding dropped before the classifier.

    Raises:
        ValueError: an unknown pooling.
    """

    @configurable
    def __init__(
        self,
        *,
        feat_dim: int,
        num_classes: int,
        embedding_dim: int = DEFAULT_EMBEDDING_DIM,
        pool_type: str = "GlobalAvgPool",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pool_type not in pooling.__all__:
            raise ValueError(
                f"MODEL.HEADS.POOL_LAYER: no pooling {pool_type!r}."
                f"{suggest(pool_type, pooling.__all__)} There are {', '.join(pooling.__all__)}"
            )
        embedding_dim = embedding_dim or DEFAULT_EMBEDDING_DIM
        self.pool_layer = getattr(pooling, pool_type)()
        neck = nn.Linear(feat_dim, embedding_dim)
        self.fc = nn.Sequential(
            neck,
            nn.BatchNorm1d(embedding_dim),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding_dim, num_classes)
        for linear in (neck, self.classifier):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        require_linear_classifier(cfg, cls.__name__)
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "embedding_dim": cfg.MODEL.HEADS.EMBEDDING_DIM,
            "pool_type": cfg.MODEL.HEADS.POOL_LAYER,
            "dropout": cfg.MODEL.HEADS.DROPOUT,
        }

    def forward(
        self, features: Tensor, targets: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Embed a batch.

        Args:
            features: (B, feat_dim, H, W).
            targets: (B,) int64; not used, the classifier has no margin.

        Returns:
            In evaluation the (B, embedding_dim) embeddings; in training a dict of ``cls_outputs``
            and ``pred_class_logits`` (B, num_classes) and ``features``, the embeddings.
        """
        return self.represent(features) if self.training else self.embed(features)

    def embed(self, features: Tensor) -> Tensor:
        """The (B, embedding_dim) embeddings of a map (B, feat_dim, H, W)."""
        return self.fc(self.pool_layer(features).flatten(1))

    def represent(self, features: Tensor) -> dict[str, Tensor]:
        """What :meth:`forward` returns in training, in either mode (a frozen teacher needs it)."""
        embedding = self.embed(features)
        logits = self.classifier(self.dropout(embedding))
        return {"cls_outputs": logits, "pred_class_logits": logits, "features": embedding}
