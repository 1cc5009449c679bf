"""Whether a dual-stream backbone's gates learned resolution: the weights wL and wH against r.

The gates of RIFE (Mao et al., IJCAI 2019, Eq. 6 and 7) should weigh the low stream by 1 - r and the
high one by r. Here they are read off a trained model on people it never saw, at several degrees of
degradation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrreid_ext.config import CfgNode, changed
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.data.samples import QUERY_HR, Batch, Sample, TestSet, factor_group
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.features import extract_features
from lrreid_ext.files import csv_text
from lrreid_ext.modeling.backbones import DualStream
from lrreid_ext.report.plots import legends_below, line, new_figure
from lrreid_ext.results.provenance import provenance

__all__ = [
    "FACTORS",
    "LEARNED",
    "GateRecords",
    "GateRow",
    "Trend",
    "degraded_twins",
    "draw",
    "measure",
    "read_gates",
    "rows",
    "table",
    "trends",
    "verdict",
]

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)

# From this Spearman correlation on, in the right direction, a stream's weight counts as learned.
LEARNED = 0.5


@dataclass(frozen=True)
class GateRecords:
    """What the gates said of N images, T blocks.

    Attributes:
        gates: (N, T, 2) float32, from 0 to 1: wL and wH.
        r: (N,) native width over the widest, at most 1.
        factor: (N,) by how much each image was reduced, 1 for not at all.
    """

    gates: NDArray[np.float32]
    r: NDArray[np.float32]
    factor: NDArray[np.float64]


@dataclass(frozen=True)
class GateRow:
    """One block's weights over all images of one factor; deviations are those of the images.

    Attributes:
        block: from 1.
        factor: by how much the images were reduced.
        images: how many there are.
        r, r_std: mean and deviation of their resolution.
        wL, wL_std, wH, wH_std: of the weights.
    """

    block: int
    factor: float
    images: int
    r: float
    r_std: float
    wL: float
    wL_std: float
    wH: float
    wH_std: float


@dataclass(frozen=True)
class Trend:
    """Spearman's rank correlation of one block's weights with r, over all images.

    Attributes:
        block: from 1.
        low, high: of wL and of wH, from -1 to 1; None where a weight is the same for all images.
    """

    block: int
    low: float | None
    high: float | None

    @property
    def learned(self) -> bool:
        """Whether wL falls and wH rises with r, both by at least :data:`LEARNED`."""
        return (self.low or 0.0) <= -LEARNED and (self.high or 0.0) >= LEARNED


# ---------------------------------------------------------------- reading
def degraded_twins(test_set: TestSet, factors: Sequence[float], limit: int = 0) -> TestSet:
    """The queries' HR twins reduced by each factor, and nothing else.

    Args:
        test_set: built with the group ``query_hr``, and with those of the factors above 1.
        factors: each at least 1; 1 takes the twins as they are.
        limit: at most this many twins, spread evenly over the set; 0 means all.

    Raises:
        ConfigError: a factor below 1, or a data set that knows no HR twins.
    """
    if bad := [f for f in factors if not f >= 1]:
        raise ConfigError(f"--factors: a degradation factor is at least 1, not {bad[0]:g}")
    samples: list[Sample] = []
    for factor in dict.fromkeys(float(f) for f in factors):
        group = QUERY_HR if factor == 1 else factor_group(factor)
        twins = [s for s in test_set.samples if s.group == group]
        if not twins:
            raise ConfigError(
                f"{test_set.name}: has no high-resolution twins of its queries, so that none can "
                f"be reduced by {factor:g}; name another set in DATASETS.TESTS"
            )
        chosen = np.linspace(0, len(twins) - 1, min(limit, len(twins)) if limit else len(twins))
        samples += [twins[int(i)] for i in chosen.round()]
    return replace(test_set, samples=samples)


def dual_stream_of(model: nn.Module) -> DualStream:
    """The one dual-stream backbone in a model whose gates are learned.

    Raises:
        ConfigError: there is none, there are several, or its weights are equal.
    """
    backbones = [module for module in model.modules() if isinstance(module, DualStream)]
    if len(backbones) != 1:
        raise ConfigError(
            "MODEL.BACKBONE.NAME: a model with one build_dual_stream_backbone is needed, not with "
            f"{len(backbones)}"
        )
    if not backbones[0].learned:
        raise ConfigError(
            "MODEL.BACKBONE.DUAL.GATES: the streams of this model have equal weights; there are no "
            "gates to look at"
        )
    return backbones[0]


class _Reader(nn.Module):
    """Runs a model and returns its gates, (B, T, 2), instead of what the model returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        gates: Any = dual_stream_of(model).gates
        # In the order (T, 2), so that flattened outputs fold back.
        self._gates = [g for pair in zip(gates["low"], gates["high"], strict=True) for g in pair]

    def forward(self, batch: Batch) -> Tensor:
        with self._watched() as seen:
            self.model(batch)
        if any(len(outputs) != 1 for outputs in seen):
            raise ConfigError(
                f"{type(self.model).__name__} runs its backbone {len(seen[0])} times per batch; "
                "gates can be read where it does so once"
            )
        return torch.cat([outputs[0] for outputs in seen], dim=1).unflatten(1, (-1, 2))

    @contextmanager
    def _watched(self) -> Iterator[list[list[Tensor]]]:
        seen: list[list[Tensor]] = [[] for _ in self._gates]
        handles = [
            gate.register_forward_hook(lambda _m, _i, weight, kept=kept: kept.append(weight))
            for gate, kept in zip(self._gates, seen, strict=True)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def read_gates(cfg: CfgNode, model: nn.Module, test_set: TestSet) -> GateRecords:
    """Run a trained model over images and keep what its gates say.

    Args:
        cfg: how images are read; see :func:`~lrreid_ext.evaluation.features.extract_features`.
        model: holds one dual-stream backbone, and maps a test batch to features.
        test_set: the images, e.g. of :func:`degraded_twins`.

    Raises:
        ConfigError: another backbone, equal gates, or a widest image that isn't known.
    """
    backbone = dual_stream_of(model)
    extracted = extract_features(cfg, _Reader(model), test_set)
    assert extracted is not None  # this is the only process
    r = backbone.resolution(extracted.native_size.to(backbone.widest.device)).cpu()
    factors = np.array([sample.factor for sample in test_set.samples], dtype=np.float64)
    return GateRecords(extracted.features.numpy(), r.numpy(), factors)


# ---------------------------------------------------------------- figures
def measure(
    cfg: CfgNode, model: nn.Module, data_set: str, factors: Sequence[float], limit: int = 0
) -> tuple[list[GateRow], dict[str, Any], str]:
    """One test set's figures.

    Args:
        cfg, model: of a trained model.
        data_set: the test set's name.
        factors: the HR twins are reduced by each; at least two different ones.
        limit: at most this many twins; 0 means all.

    Returns:
        The rows, where they come from, and the verdict in one line.

    Raises:
        ConfigError: another backbone, a data set without HR twins, or factors that can't be used.
    """
    above = [f for f in factors if f > 1]
    cfg = changed(cfg, ("TEST.HR", True), ("TEST.FACTORS", above))
    test_set = degraded_twins(build_test_set(cfg, data_set), factors, limit)
    records = read_gates(cfg, model, test_set)
    correlations = trends(records)
    facts = {
        "test_set": test_set.name,
        "manifest_hash": test_set.manifest_hash,
        "images": len(test_set.samples),
        "widest": int(dual_stream_of(model).widest),
        "flip": bool(cfg.TEST.FLIP.ENABLED),
        "spearman": [{**asdict(trend), "learned": trend.learned} for trend in correlations],
        "learned_from": LEARNED,
        **provenance(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE),
    }
    return rows(records), facts, verdict(correlations)


def rows(records: GateRecords) -> list[GateRow]:
    """Mean and deviation of the weights by block, then factor in rising order."""
    out = []
    for t in range(records.gates.shape[1]):
        for factor in np.unique(records.factor):
            at = records.factor == factor
            columns = (records.r[at], records.gates[at, t, 0], records.gates[at, t, 1])
            moments = [float(f(c.astype(np.float64))) for c in columns for f in (np.mean, np.std)]
            out.append(GateRow(t + 1, float(factor), int(at.sum()), *moments))
    return out


def trends(records: GateRecords) -> list[Trend]:
    """How each block's weights go with r.

    Raises:
        ConfigError: all images have one resolution.
    """
    if not len(records.r) or np.ptp(records.r) == 0:
        raise ConfigError("--factors: images of at least two different resolutions are needed")
    return [
        Trend(t + 1, *(_spearman(records.r, records.gates[:, t, s]) for s in (0, 1)))
        for t in range(records.gates.shape[1])
    ]


def _spearman(r: NDArray[Any], weights: NDArray[Any]) -> float | None:
    from scipy.stats import spearmanr

    if np.ptp(weights) == 0:
        return None
    return float(spearmanr(r, weights).statistic)


def verdict(trends: Sequence[Trend]) -> str:
    """One line that says in which blocks the gates learned."""

    def figure(value: float | None) -> str:
        return "none" if value is None else f"{value:+.2f}"

    blocks = "; ".join(
        f"block {t.block} {'yes' if t.learned else 'NO'} (wL {figure(t.low)}, wH {figure(t.high)})"
        for t in trends
    )
    count = sum(t.learned for t in trends)
    return f"Gates learned (wL falls, wH rises with r) in {count} of {len(trends)} blocks: {blocks}"


def table(rows: Sequence[GateRow]) -> str:
    """The rows as CSV text, with a line of names."""
    return csv_text(
        [field.name for field in fields(GateRow)],
        [[f"{v:.6g}" if isinstance(v, float) else v for v in astuple(row)] for row in rows],
    )


def draw(rows: Sequence[GateRow]) -> Any:
    """A matplotlib figure: a panel for wL and one for wH against r, a line per block.

    Bands are a deviation to either side; the grey line is the target, 1 - r and r.
    """
    figure, axes = new_figure(columns=2)
    low, high = axes
    span = [min(row.r for row in rows), max(row.r for row in rows)]
    low.plot(span, [1 - r for r in span], color="#888888", linewidth=3, alpha=0.5, label="1 - r")
    high.plot(span, span, color="#888888", linewidth=3, alpha=0.5, label="r")
    for index, block in enumerate(sorted({row.block for row in rows})):
        points = sorted((row for row in rows if row.block == block), key=lambda row: row.r)
        r = [row.r for row in points]
        name = f"block {block}"
        line(low, r, [w.wL for w in points], name, index, [w.wL_std for w in points])
        line(high, r, [w.wH for w in points], name, index, [w.wH_std for w in points])
    for axis, title in ((low, "low stream, wL"), (high, "high stream, wH")):
        axis.set_title(f"weight of the {title}", fontsize="medium")
        axis.set_xlabel("resolution r")
        axis.set_ylim(-0.02, 1.02)
    legends_below(figure, axes)
    return figure
