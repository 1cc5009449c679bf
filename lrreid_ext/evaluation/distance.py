"""Distances between features, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")

# Shortest length that a feature is divided by.
EPSILON = 1e-12

# Numbers in one chunk where its size isn't given: 80 MB of float32. Larger chunks make the product
# no faster, and much smaller ones slow it down, since each reads the whole gallery again.
CHUNK_NUMBERS = 20 * 2**20

# Numbers that a processor's cache holds: what takes several passes takes them over so many.
TILE_NUMBERS = 2**17


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


def comparable(features: Tensor, metric: str, anchors: Sequence[int] = ()) -> Tensor:
    """Features whose L2 distance orders images as a metric does; all models have equal weight.

    Args:
        features: (N, D), or (N, K, D) of a model with K anchors.
        metric: ``cosine``, which scales each feature to length 1, or ``euclidean``.
        anchors: positions of the anchors that count; none means all.

    Returns:
        (N, D) or (N, K D) float32.

    Raises:
        ValueError: features that are not finite.
    """
    if features.ndim == 3 and anchors:
        features = features[:, list(anchors)]  # an anchor that isn't trained gives NaN
    features = check_features(features, "images")
    if metric == "cosine":
        features = features / features.norm(dim=-1, keepdim=True).clamp(min=EPSILON)
    return features.flatten(1)


def chunk_rows(gallery: int) -> int:
    """Queries at a time that keep a chunk within ``CHUNK_NUMBERS`` distances to ``gallery``."""
    return min(1024, max(16, CHUNK_NUMBERS // gallery))


def tiles(rows: slice, block: Tensor, width: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """A chunk of distances in parts that a processor's cache holds; elsewhere whole.

    Args:
        rows: the queries.
        block: (rows, G) their distances.
        width: numbers that are held for each query; at least and by default G.

    Yields:
        Consecutive queries and their distances, a view of ``block``.
    """
    step = max(1, len(block))
    if block.device.type == "cpu":
        step = max(1, TILE_NUMBERS // max(width, block.shape[1]))
    for start in range(0, len(block), step):
        part = block[start : start + step]
        yield slice(rows.start + start, rows.start + start + len(part)), part


def distance_chunks(
    query: Tensor,
    gallery: Tensor,
    metric: str = "cosine",
    chunk: int | None = None,
    weights: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Distances of some queries at a time to the whole gallery.

    Cosine: ``1 - q.g / (|q| |g|)``, 0 to 2. Euclidean: ``|q - g|``, not squared. Of features of K
    models, the sum of the K distances, weighted by query (SING, Eq. 6). Gallery
    images with the same feature are at exactly the same distance, whatever their positions.

    Args:
        query: (Q, D) or (Q, K, D) float32 on any device; finite.
        gallery: (G, D) or (G, K, D) float32 on the same device.
        metric: ``cosine`` or ``euclidean``.
        chunk: rows at a time; bounds the memory to ``chunk * G`` numbers for each model. None: as
            many as fit ``CHUNK_NUMBERS``, but at least 16.
        weights: (Q, K), of K models' distances; None: equal weights.

    Yields:
        The rows, and their distances (rows, G) float32. The memory is used again for the next
        rows: whoever keeps it must copy it, and may write into it.

    Raises:
        ValueError: an unknown metric, features of different widths or too long for float32, or
            weights that are not one for each query and model.
    """
    check_pair(query, gallery, metric)
    models = 1 if query.ndim == 2 else query.shape[1]
    if chunk is None:
        chunk = chunk_rows(len(gallery) * models)
    if weights is not None and (query.ndim != 3 or weights.shape != query.shape[:2]):
        raise ValueError(
            f"weights {tuple(weights.shape)} don't fit query features {tuple(query.shape)}; "
            "there is one for each query and model"
        )
    if query.ndim == 2:
        yield from _one_model(query, gallery, metric, chunk)
        return
    parts = [_one_model(query[:, k], gallery[:, k], metric, chunk) for k in range(models)]
    for blocks in zip(*parts, strict=True):
        rows, total = blocks[0]
        if weights is not None:
            total.mul_(weights[rows, :1])
        for k, (_, block) in enumerate(blocks[1:], start=1):
            total.add_(block if weights is None else block.mul_(weights[rows, k : k + 1]))
        yield rows, total


def check_pair(query: Tensor, gallery: Tensor, metric: str) -> None:
    """Refuse features that can't be compared.

    Raises:
        ValueError: an unknown metric, or features of different widths.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    if query.shape[1:] != gallery.shape[1:]:
        raise ValueError(
            f"query features are {tuple(query.shape[1:])}, gallery features "
            f"{tuple(gallery.shape[1:])}"
        )


def _one_model(
    query: Tensor, gallery: Tensor, metric: str, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    query_square, gallery_square = squared_lengths(query), squared_lengths(gallery)
    for group, squares in (("query", query_square), ("gallery", gallery_square)):
        if long := int((~torch.isfinite(squares)).sum()):
            raise ValueError(
                f"{group}: {long} of {len(squares)} features are too long for distances in "
                "float32; scale them"
            )
    first, again = _repeated(gallery, gallery_square)
    # The gallery is scaled after the product, by column, so that it needn't be copied.
    if metric == "cosine":
        query_scale = 1 / query_square.sqrt().clamp(min=EPSILON)
        gallery_scale = -1 / gallery_square.sqrt().clamp(min=EPSILON)
        one = gallery_scale.new_ones(1)
    # At least two rows: the product of a single one takes another routine, which rounds equal
    # gallery features differently.
    buffer = query.new_empty(max(2, min(chunk, len(query))), len(gallery))
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        block = query[rows]
        block = block * query_scale[rows, None] if metric == "cosine" else block
        if len(block) == 1:
            block = block.expand(2, -1)
        out = torch.mm(block, gallery.T, out=buffer[: len(block)])[: rows.stop - rows.start]
        if metric == "cosine":
            torch.addcmul(one, out, gallery_scale, out=out)  # in one pass
        else:
            out.mul_(-2).add_(gallery_square).add_(query_square[rows, None])
            out.clamp_(min=0).sqrt_()
        if len(again):
            out[:, again] = out[:, first]
        yield rows, out


def squared_lengths(features: Tensor) -> Tensor:
    """Squared length of each feature, (N,) float32, without as much memory again.

    Of whole numbers it is exact, as their products are, so that equal distances come out equal.
    """
    if not len(features):
        return features.new_zeros(0)
    return torch.cat([(part * part).sum(dim=1) for part in features.split(1024)])


def _repeated(features: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (n,) int64 of features and, beside them, of later copies of each.

    A matrix product may round a column by its position, so equal columns are made equal.
    """
    # Few features that differ share the squared length and some of the values.
    witness = squares.double()
    for k, column in enumerate(range(0, features.shape[1], max(1, features.shape[1] // 16))):
        witness += features[:, column] * math.sqrt(k + 2)
    ordered, order = witness.sort()
    same = ordered[1:] == ordered[:-1]
    suspect = torch.zeros_like(order, dtype=torch.bool)
    suspect[1:] |= same
    suspect[:-1] |= same
    places = order[suspect].sort().values
    if not len(places):
        return places, places
    group = features[places].unique(dim=0, return_inverse=True)[1]
    index = torch.arange(len(places), device=places.device)
    first = index.new_full((len(places),), len(places)).scatter_reduce(0, group, index, "amin")
    first = first[group]
    return places[first[first != index]], places[first != index]


def distance_matrix(
    query: Tensor, gallery: Tensor, metric: str = "cosine", weights: Tensor | None = None
) -> Tensor:
    """All distances (Q, G) float32 at once; see :func:`distance_chunks`."""
    chunks = distance_chunks(query, gallery, metric, weights=weights)
    return torch.cat([block.clone() for _, block in chunks])
