"""Average query expansion, a few rows at a time.

Each image's features are replaced by a mean of its nearest neighbours', itself included, weighed by
similarity to the power alpha (Chum et al., "Total Recall", 2007; Radenovic et al., "Fine-Tuning CNN
Image Retrieval with No Human Annotation", section 3.4). The host's ``aqe`` gives the same features
but holds all similarities at once, 1.5 GB for Market-1501; this holds ``chunk`` rows of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["expand"]


def expand(
    query: Tensor,
    gallery: Tensor,
    times: int = 1,
    neighbours: int = 5,
    alpha: float = 3.0,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """Query and gallery features after expansion among all of them.

    Args:
        query, gallery: (Q, D) and (G, D) float32 on one device, as they come: the longer a feature,
            the more it weighs.
        times: how often to expand.
        neighbours: how many images are averaged, the image itself being the nearest.
        alpha: power of the cosine similarity. A negative similarity weighs nothing.
        chunk: rows at a time; bounds the memory to ``chunk * (Q + G)`` numbers.

    Returns:
        Features of the same shapes.

    Raises:
        ValueError: fewer than one time, or neighbours that aren't from 1 to Q + G.
    """
    features = torch.cat([query, gallery])
    if times < 1 or not 1 <= neighbours <= len(features):
        raise ValueError(
            f"times {times} must be at least 1, and neighbours {neighbours} from 1 to the "
            f"{len(features)} images"
        )
    for _ in range(times):
        unit = normalize(features, dim=1)
        expanded = torch.empty_like(features)
        for start in range(0, len(unit), chunk):
            rows = slice(start, start + chunk)
            similarity, near = (unit[rows] @ unit.T).topk(neighbours, dim=1)
            weights = similarity.clamp(min=0).pow(alpha)
            # A row of weights times its neighbours' features, for all rows of the chunk at once.
            expanded[rows] = torch.einsum("bk,bkd->bd", weights, features[near]) / neighbours
        features = expanded
    return features[: len(query)], features[len(query) :]
