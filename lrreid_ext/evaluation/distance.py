"""Distances between features, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")

# Shortest length that a feature is divided by.
EPSILON = 1e-12


def check_features(features: Tensor, group: str) -> Tensor:
    """The features as float32, if they can be ranked.

    Args:
        features: (N, D), or (N, K, D) of K models, any floating or integer type.
        group: what they are, for the message.

    Raises:
        ValueError: of another shape, no rows or no columns, or values that are not finite (the
            message says how many rows).
    """
    if features.ndim not in (2, 3):
        raise ValueError(
            f"{group}: features must be (N, D) or (N, K, D), not {tuple(features.shape)}"
        )
    if features.numel() == 0:
        raise ValueError(f"{group}: no features to compare, shape {tuple(features.shape)}")
    features = features.detach().to(torch.float32)
    # A row's sum is finite only if its values are: one quick pass, the exact one when in doubt.
    flat = features.flatten(1)
    doubtful = flat[~torch.isfinite(flat.sum(dim=1))]
    bad = int((~torch.isfinite(doubtful).all(dim=1)).sum())
    if bad:
        raise ValueError(
            f"{group}: {bad} of {len(features)} features hold NaN or infinite values. "
            "The network diverged, or its weights were not loaded."
        )
    return features


def distance_chunks(
    query: Tensor,
    gallery: Tensor,
    metric: str = "cosine",
    chunk: int = 256,
    weights: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Distances of ``chunk`` queries at a time to the whole gallery.

    Cosine: ``1 - q.g / (|q| |g|)``, 0 to 2. Euclidean: ``|q - g|``, not squared. Of features of K
    models, the sum of the K distances, each weighed by its query's weight (SING, Eq. 6).

    Args:
        query: (Q, D) or (Q, K, D) float32 on any device.
        gallery: (G, D) or (G, K, D) float32 on the same device.
        metric: ``cosine`` or ``euclidean``.
        chunk: rows at a time; bounds the memory to ``chunk * G`` numbers for each model.
        weights: (Q, K), of K models' distances; None weighs them alike.

    Yields:
        The rows, and their distances (rows, G) float32. The memory is used again for the next
        rows: whoever keeps it must copy it, and may write into it.

    Raises:
        ValueError: an unknown metric, a chunk below 1, or features of different widths.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    if query.shape[1:] != gallery.shape[1:]:
        raise ValueError(
            f"query features have {_values(query)} values, gallery features {_values(gallery)}"
        )
    if weights is not None and (query.ndim != 3 or weights.shape != query.shape[:2]):
        raise ValueError(
            f"weights {tuple(weights.shape)} don't fit query features {tuple(query.shape)}; "
            "there is one for each query and model"
        )
    if query.ndim == 2:
        yield from _one_model(query, gallery, metric, chunk)
        return
    models = range(query.shape[1])
    parts = [_one_model(query[:, k], gallery[:, k], metric, chunk) for k in models]
    for blocks in zip(*parts, strict=True):
        rows, total = blocks[0]
        if weights is not None:
            total.mul_(weights[rows, :1])
        for k, (_, block) in enumerate(blocks[1:], start=1):
            total.add_(block if weights is None else block.mul_(weights[rows, k : k + 1]))
        yield rows, total


def _values(features: Tensor) -> str:
    return " x ".join(str(n) for n in features.shape[1:])


def _one_model(
    query: Tensor, gallery: Tensor, metric: str, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    if metric == "cosine":
        # The gallery is scaled after the product, by column, so that it needn't be copied.
        query = query / query.norm(dim=1).clamp(min=EPSILON)[:, None]
        scale = -1 / gallery.norm(dim=1).clamp(min=EPSILON)
    else:
        query_square, gallery_square = query.square().sum(1), gallery.square().sum(1)
    # At least two rows: the product of a single one takes another routine, which rounds equal
    # gallery features differently and so breaks ties by position.
    buffer = query.new_empty(max(2, min(chunk, len(query))), len(gallery))
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        block = query[rows]
        if len(block) == 1:
            block = block.expand(2, -1)
        out = torch.mm(block, gallery.T, out=buffer[: len(block)])[: rows.stop - rows.start]
        if metric == "cosine":
            out.mul_(scale).add_(1)
        else:
            out.mul_(-2).add_(gallery_square).add_(query_square[rows, None])
            out.clamp_(min=0).sqrt_()
        yield rows, out


def distance_matrix(
    query: Tensor, gallery: Tensor, metric: str = "cosine", weights: Tensor | None = None
) -> Tensor:
    """All distances (Q, G) float32 at once; see :func:`distance_chunks`."""
    chunks = distance_chunks(query, gallery, metric, weights=weights)
    return torch.cat([block.clone() for _, block in chunks])
