"""Losses as pure functions.

Distances and logarithms are taken in float32 at least, whatever precision the network ran in:
under autocast, half-precision features are widened first; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError

__all__ = [
    "IMAGE_LOSSES",
    "batch_hard_triplet",
    "foreground_mse",
    "gaussian_mask",
    "image_loss",
    "l1_image",
    "mse_image",
    "no_loss",
    "pseudo_siamese",
    "sequence_triplet",
    "smooth_cross_entropy",
    "widen",
]


def widen(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is if it already has that precision or more."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_loss(module: nn.Module) -> Tensor:
    """0, which gives every parameter of ``module`` that learns a gradient of 0.

    For a part that no image passed in a step: several processes have to reach the same
    parameters. That its optimiser leaves it as it is, too, is
    :func:`lrreid_ext.modeling.routing.rest`'s work.
    """
    empty = [p.reshape(-1)[:0].sum() for p in module.parameters() if p.requires_grad]
    return torch.stack(empty).sum() if empty else torch.zeros(())


def _unit_difference(images: Tensor, hr: Tensor) -> Tensor:
    if images.shape != hr.shape:
        raise ValueError(
            f"restored images {tuple(images.shape)} and their high-resolution twins "
            f"{tuple(hr.shape)} differ in shape"
        )
    return (widen(images) - widen(hr)) / 255.0


def l1_image(images: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference on the 0-1 scale (PS-HRNet Eq. 5, as a mean).

    Args:
        images: (B, 3, H, W) RGB, 0-255 float.
        hr: the same for the high-resolution twins.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: the shapes differ.
    """
    return _unit_difference(images, hr).abs().mean()


def mse_image(images: Tensor, hr: Tensor) -> Tensor:
    """Mean squared difference on the 0-1 scale (SING Eq. 3, FFSR); see :func:`l1_image`."""
    return _unit_difference(images, hr).square().mean()


IMAGE_LOSSES = {"l1": l1_image, "mse": mse_image}


def image_loss(images: Tensor, hr: Tensor, kind: str) -> Tensor:
    """The pixel loss called ``l1`` or ``mse``; see :func:`l1_image`.

    Raises:
        ValueError: an unknown kind, or shapes that differ.
    """
    if kind not in IMAGE_LOSSES:
        raise ValueError(f"MODEL.SR.LOSS: {kind!r} is not one of {', '.join(IMAGE_LOSSES)}")
    return IMAGE_LOSSES[kind](images, hr)


def foreground_mse(restored: Tensor, hr: Tensor, mask: Tensor) -> Tensor:
    """Mean of the squared masked difference on the 0-1 scale (FFSR Eq. 5, as a mean).

    The mask is squared with the difference, as the paper prints it. The mean is over all B * 3 * H
    * W elements, whatever the mask: with a mask of ones this is :func:`mse_image`.

    Args:
        restored: (B, 3, H, W) RGB, 0-255 float.
        hr: the same for the high-resolution twins.
        mask: (B, 1, H, W), or (1, 1, H, W) for all images alike, in 0-1.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: the shapes differ.
    """
    batch, _, height, width = restored.shape
    if tuple(mask.shape) not in {(batch, 1, height, width), (1, 1, height, width)}:
        raise ValueError(
            f"masks {tuple(mask.shape)} don't fit restored images {tuple(restored.shape)}: they "
            f"must be {(batch, 1, height, width)}, or {(1, 1, height, width)} for all alike"
        )
    return (widen(mask) * _unit_difference(restored, hr)).square().mean()


def gaussian_mask(height: int, width: int, sigma: Sequence[float]) -> Tensor:
    """A Gaussian centred in the image (FFSR, Sec. 4.1), 1 at the centre.

    The centre lies between the middle pixels where a side is even, so that mirroring the image
    doesn't change the mask.

    Args:
        height, width: in pixels.
        sigma: the deviations, as shares of height and width.

    Returns:
        (1, 1, height, width) float32 in 0-1.

    Raises:
        ConfigError: ``sigma`` isn't two positive numbers.
    """
    if len(sigma) != 2 or not min(sigma) > 0:
        raise ConfigError(f"MODEL.SR.MASK_SIGMA must be two positive numbers, not {list(sigma)}")
    rows, columns = (
        torch.exp(-0.5 * (((torch.arange(size) + 0.5) / size - 0.5) / share).square())
        for size, share in zip((height, width), sigma, strict=True)
    )
    return (rows[:, None] * columns)[None, None]


def batch_hard_triplet(features: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss with Euclidean distances (Hermans et al. 2017, Eq. 5).

    Each sample is an anchor once; its hardest positive is the farthest sample of its identity and
    its hardest negative the nearest sample of another. The result is the mean over all anchors of
    ``max(0, margin + d_positive - d_negative)``, or of ``log(1 + exp(d_positive - d_negative))``
    if ``margin`` is 0.

    An identity's only sample is its own positive, at distance 0. An anchor without a negative
    contributes 0. The gradient is finite everywhere, also between equal features.

    Args:
        features: (B, D) floating point.
        targets: (B,) identities.
        margin: at least 0; 0 means the soft margin.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: shapes that don't fit, or a negative margin.
    """
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            "features must be (B, D) and targets (B,), not "
            f"{tuple(features.shape)} and {tuple(targets.shape)}"
        )
    if margin < 0:
        raise ValueError(f"the triplet margin must not be negative: {margin}")
    with torch.autocast(features.device.type, enabled=False):
        features = widen(features)
        same = targets[:, None] == targets[None, :]
        with torch.no_grad():
            # The expanded form |x|^2 + |y|^2 - 2xy would cancel for near features.
            distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
            positive = distances.masked_fill(~same, -1.0).argmax(1)
            negative = distances.masked_fill(same, float("inf")).argmin(1)
            has_negative = ~same.all(1)
        # vector_norm has gradient 0 at 0.
        d_positive = torch.linalg.vector_norm(features - features[positive], dim=1)
        d_negative = torch.linalg.vector_norm(features - features[negative], dim=1)
        gap = d_positive - d_negative
        loss = F.relu(gap + margin) if margin > 0 else F.softplus(gap)
        return torch.where(has_negative, loss, torch.zeros_like(loss)).mean()


def sequence_triplet(sequences: Sequence[Tensor], targets: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss averaged over several features (PS-HRNet Eq. 7, as a mean).

    Args:
        sequences: (B, D_i) each.
        targets: (B,) identities.
        margin: see :func:`batch_hard_triplet`.

    Raises:
        ValueError: no sequence.
    """
    if not sequences:
        raise ValueError("no sequences to take the triplet loss of")
    return torch.stack([batch_hard_triplet(s, targets, margin) for s in sequences]).mean()


def smooth_cross_entropy(logits: Tensor, targets: Tensor, eps: float) -> Tensor:
    """Cross entropy with label smoothing (PS-HRNet Eq. 8-9, as a mean over the batch).

    The true class of M weighs ``1 - eps * (M - 1) / M``, every other ``eps / M``. fastreid's own
    loss gives the others ``eps / (M - 1)``.

    Args:
        logits: (B, M).
        targets: (B,) int64.
        eps: in [0, 1].

    Raises:
        ValueError: ``eps`` out of range.
    """
    if not 0 <= eps <= 1:
        raise ValueError(f"MODEL.LOSSES.CE.EPSILON must be between 0 and 1, not {eps}")
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(widen(logits), targets, label_smoothing=eps)


def pseudo_siamese(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Distance of a student's outputs to a frozen teacher's (PS-HRNet Eq. 11).

    The sum over the pairs of the mean absolute difference. (The sum that the paper prints would
    grow with the batch and with each output's length.) The teacher gets no gradient.

    Args:
        teacher: tensors of any shape.
        student: as many tensors of the same shapes.

    Raises:
        ValueError: none, or numbers or shapes that differ.
    """
    if not teacher or [t.shape for t in teacher] != [s.shape for s in student]:
        raise ValueError(
            f"teacher outputs {[tuple(t.shape) for t in teacher]} and student outputs "
            f"{[tuple(s.shape) for s in student]} must pair up"
        )
    pairs = zip(teacher, student, strict=True)
    return torch.stack([(widen(s) - widen(t.detach())).abs().mean() for t, s in pairs]).sum()
