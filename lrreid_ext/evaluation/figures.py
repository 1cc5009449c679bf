"""Figures of ranked queries: statistics in, results' figures in percent out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.config import CfgNode
from lrreid_ext.evaluation.bootstrap import bootstrap_intervals
from lrreid_ext.evaluation.ranking import RankStatistics
from lrreid_ext.evaluation.single_shot import SingleShot
from lrreid_ext.evaluation.verification import Verification
from lrreid_ext.results import Figure, Figures, Intervals

__all__ = ["add_rates", "figures_of", "intervals_of", "percent", "rate_name"]


def figures_of(
    statistics: SingleShot | RankStatistics,
    ranks: Sequence[int],
    pids: NDArray[np.int64],
    ci: Intervals | None = None,
) -> Figures:
    """One group's figures under one protocol.

    Args:
        statistics: of the group's Q queries.
        ranks: k of each Rank-k.
        pids: (Q,) identities of the queries.
        ci: how to compute confidence intervals; None for none. The interval of a single-shot
            figure is over the queries' means over the trials.

    Returns:
        Rank-k with the deviation over the trials for single-shot; else Rank-k, mAP and mINP.
    """
    valid = statistics.valid
    names = [f"Rank-{rank}" for rank in ranks]
    trials = None
    if isinstance(statistics, SingleShot):
        trials = [[percent(v) for v in trial] for trial in statistics.cmc(ranks)]
        pairs = zip(statistics.mean(ranks), statistics.std(ranks), strict=True)
        figures = [_figure(mean, std) for mean, std in pairs]
        first = statistics.first_rank[:, valid]
        columns = [(first <= rank).mean(axis=0) for rank in ranks]
    else:
        names += ["mAP", "mINP"]
        values = [*statistics.cmc(ranks), statistics.mean_ap, statistics.mean_inp]
        figures = [_figure(value) for value in values]
        columns = [statistics.first_rank[valid] <= rank for rank in ranks]
        columns += [statistics.ap[valid], statistics.inp[valid]]
    if ci is not None:
        ends = bootstrap_intervals(np.stack(columns, axis=1), pids[valid], **asdict(ci))
        figures = [_with_interval(f, end) for f, end in zip(figures, ends, strict=True)]
    return Figures(statistics.unmatched, dict(zip(names, figures, strict=True)), trials)


def intervals_of(cfg: CfgNode) -> Intervals | None:
    """How TEST.CI asks for confidence intervals; None if it doesn't."""
    ci = cfg.TEST.CI
    return Intervals(ci.LEVEL, ci.REPEATS, ci.BY, cfg.TEST.SEED) if ci.REPEATS else None


def add_rates(
    figures: Figures,
    verification: Verification | None,
    fars: Sequence[float],
    pids: NDArray[np.int64],
    ci: Intervals | None = None,
) -> None:
    """Add true accept rates (``TAR@1e-4`` ...) and the numbers of pairs to multi-shot figures.

    Where fewer than 1 / FAR impostor pairs exist, none of them may be accepted.

    Args:
        figures: to add to.
        verification: None if there are no genuine or no impostor pairs.
        fars: the false accept rates.
        pids: (Q,) identities of the queries.
        ci: how to compute confidence intervals: of other people at the same threshold.
    """
    rates = [float("nan")] * len(fars) if verification is None else verification.tar
    rated = [_figure(rate) for rate in rates]
    figures.genuine_pairs = figures.impostor_pairs = 0
    if verification is not None:
        figures.genuine_pairs = verification.genuine
        figures.impostor_pairs = verification.impostors
        if ci is not None:
            paired = verification.genuine_by_query > 0
            counts = verification.genuine_by_query[paired]
            shares = verification.accepted_by_query[paired] / counts[:, None]
            drawn = bootstrap_intervals(shares, pids[paired], weights=counts, **asdict(ci))
            rated = [_with_interval(f, end) for f, end in zip(rated, drawn, strict=True)]
    figures.named |= {rate_name(far): f for far, f in zip(fars, rated, strict=True)}


def rate_name(far: float) -> str:
    """Name of a true accept rate: ``TAR@1e-4``."""
    return f"TAR@{np.format_float_scientific(far, trim='-', exp_digits=1)}"


def percent(share: float | np.floating[Any]) -> float | None:
    """A share in percent, to six decimals; None for NaN."""
    value = float(share)
    return None if math.isnan(value) else round(100 * value, 6)


def _figure(share: float, std: float = math.nan) -> Figure | None:
    value = percent(share)
    return None if value is None else Figure(value, percent(std))


def _with_interval(figure: Figure | None, ends: NDArray[np.float64]) -> Figure | None:
    low, high = percent(ends[0]), percent(ends[1])
    if figure is None or low is None or high is None:
        return figure
    return replace(figure, ci=(low, high))
