"""Adaptive fusion of several models' distances by native resolution (SING, Jiao et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrreid_ext.config import CfgNode, ConfigError

__all__ = ["anchor_weights", "areas", "chosen_anchors"]


def areas(native_size: Tensor) -> Tensor:
    """(N,) float32 number of native pixels of images whose sizes are (N, 2)."""
    return native_size.to(torch.float32).prod(dim=1)


def anchor_weights(
    probe_area: Tensor, gallery_area: Tensor, factors: Sequence[float], sigma: float
) -> Tensor:
    """How much each anchor's distances count for each query (SING, Eq. 7 and 8).

    ``r = sqrt(A_probe / mean A_gallery)`` from native areas, and
    ``w_i = exp(-(r - m_i)^2 / sigma^2)`` with the anchor's ratio ``m_i = 1 / factor``. The weights
    of a query are not normalised: a common factor doesn't change its ranks.

    Args:
        probe_area: (Q,) native pixels of each query.
        gallery_area: (G,) native pixels of the gallery's images.
        factors: the K anchors' factors, each >= 1.
        sigma: on the scale of r; 0 weighs all anchors alike.

    Returns:
        (Q, K) float32, 0 to 1.

    Raises:
        ValueError: a negative sigma, a factor below 1, or an area that isn't positive.
    """
    if sigma < 0 or min(factors) < 1:
        raise ValueError(f"sigma {sigma} must be >= 0 and every factor of {list(factors)} >= 1")
    if min(float(probe_area.min()), float(gallery_area.min())) <= 0:
        raise ValueError("native areas must be positive numbers of pixels")
    if sigma == 0:
        return torch.ones(len(probe_area), len(factors))
    ratio = (probe_area.double() / gallery_area.double().mean()).sqrt()
    anchors = torch.tensor([1 / f for f in factors], dtype=torch.float64)
    exponent = -(((ratio[:, None] - anchors) / sigma) ** 2)
    # A query far from every anchor would get nothing but zeros in float32, and all its distances
    # would tie; relative to its nearest anchor its ranks are the same, and the numbers sound.
    return (exponent - exponent.amax(dim=1, keepdim=True)).exp().float()


def chosen_anchors(cfg: CfgNode, trained: int) -> list[int]:
    """Positions of the anchors that TEST.FUSION.ANCHORS names, among the first ``trained`` ones.

    Raises:
        ConfigError: a factor that no anchor has, or whose anchor isn't trained yet.
    """
    factors = [float(f) for f in cfg.MODEL.ANCHORS.FACTORS][:trained]
    wanted = [float(f) for f in cfg.TEST.FUSION.ANCHORS]
    unknown = [f for f in wanted if f not in factors]
    if unknown or len(set(wanted)) < len(wanted):
        raise ConfigError(
            f"TEST.FUSION.ANCHORS: {list(cfg.TEST.FUSION.ANCHORS)} must be different ones of the "
            f"trained anchors' factors {factors} (MODEL.ANCHORS.FACTORS)"
        )
    return [factors.index(f) for f in wanted] if wanted else list(range(len(factors)))
