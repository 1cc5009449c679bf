"""Adaptive fusion of several models' distances by native resolution (SING, Jiao et al. 2018)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lrreid_ext.config import CfgNode
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.matching import Side

__all__ = [
    "anchor_weights",
    "areas",
    "check_fusion",
    "chosen_anchors",
    "trained_anchors",
    "weighed",
]

logger = logging.getLogger(__name__)


def areas(native_size: Tensor) -> Tensor:
    """(N,) float32 number of native pixels of images whose sizes are (N, 2)."""
    return native_size.to(torch.float32).prod(dim=1)


def anchor_weights(
    probe_area: Tensor, gallery_area: Tensor, factors: Sequence[float], sigma: float
) -> Tensor:
    """The weight of each anchor's distances for each query (SING, Eq. 7 and 8).

    ``r = sqrt(A_probe / mean A_gallery)`` from native areas, and
    ``w_i = exp(-(r - m_i)^2 / sigma^2)`` with the anchor's ratio ``m_i = 1 / factor``, divided by
    the greatest of the query's weights: that changes no rank.

    Args:
        probe_area: (Q,) native pixels of each query.
        gallery_area: (G,) native pixels of the gallery's images.
        factors: the K anchors' factors, each >= 1.
        sigma: on the scale of r; 0 gives all anchors the same weight.

    Returns:
        (Q, K) float32, 0 to 1.
    """
    if sigma == 0:
        return torch.ones(len(probe_area), len(factors))
    ratio = (probe_area.double() / gallery_area.double().mean()).sqrt()
    anchors = torch.tensor([1 / f for f in factors], dtype=torch.float64)
    exponent = -(((ratio[:, None] - anchors) / sigma) ** 2)
    # A query far from every anchor would get only zeros in float32, and all its distances would
    # tie. Divided by the greatest weight, the ranks stay the same.
    return (exponent - exponent.amax(dim=1, keepdim=True)).exp().float()


def weighed(query: Side, gallery: Side, factors: Sequence[float], sigma: float) -> Side:
    """The queries with weights of their anchors' distances; see :func:`anchor_weights`.

    Args:
        query, gallery: sides with native sizes; the gallery's junk doesn't count.
        factors, sigma: as :func:`anchor_weights` takes them.
    """
    assert query.native_size is not None and gallery.native_size is not None
    counted = torch.from_numpy(~gallery.is_junk)
    weights = anchor_weights(
        areas(query.native_size), areas(gallery.native_size[counted]), factors, sigma
    )
    return query.updated(weights=weights.to(query.features.device))


def trained_anchors(features: Tensor) -> list[int]:
    """Positions of the anchors in features (N, K, D) that aren't NaN throughout."""
    return [k for k in range(features.shape[1]) if not bool(features[:, k].isnan().all())]


def check_fusion(cfg: CfgNode) -> None:
    """Refuse settings of TEST.FUSION that can't be followed.

    Raises:
        ConfigError: names the key.
    """
    factors = [float(f) for f in cfg.MODEL.ANCHORS.FACTORS]
    anchors = [float(f) for f in cfg.TEST.FUSION.ANCHORS]
    if set(anchors) - set(factors) or len(set(anchors)) < len(anchors):
        raise ConfigError(
            f"TEST.FUSION.ANCHORS: {list(cfg.TEST.FUSION.ANCHORS)} must be different ones of "
            f"MODEL.ANCHORS.FACTORS {factors}"
        )
    if cfg.TEST.FUSION.SIGMA < 0:
        raise ConfigError(f"TEST.FUSION.SIGMA: {cfg.TEST.FUSION.SIGMA} must be at least 0")


def chosen_anchors(cfg: CfgNode, features: Tensor) -> list[int]:
    """Positions of the anchors to fuse: those of TEST.FUSION.ANCHORS that are trained.

    Where none of those is trained yet, or none is named, all that are trained; a warning says which
    of the named ones are missing.

    Args:
        cfg: MODEL.ANCHORS.FACTORS and TEST.FUSION.ANCHORS.
        features: (N, K, D) of the K anchors of FACTORS; an untrained one's are NaN throughout.

    Raises:
        ConfigError: what :func:`check_fusion` finds, or another number of anchors.
    """
    check_fusion(cfg)
    factors = [float(f) for f in cfg.MODEL.ANCHORS.FACTORS]
    if features.shape[1] != len(factors):
        raise ConfigError(
            f"MODEL.ANCHORS.FACTORS: names {len(factors)} anchors, but the model gives features of "
            f"{features.shape[1]}"
        )
    trained = trained_anchors(features)
    named = [factors.index(float(f)) for f in cfg.TEST.FUSION.ANCHORS]
    missing = [f"x{factors[k]:g}" for k in named if k not in trained]
    if missing:
        logger.warning("TEST.FUSION.ANCHORS: not trained, and left out: %s", ", ".join(missing))
    return [k for k in named if k in trained] or trained
