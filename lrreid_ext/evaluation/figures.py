"""Figures of ranked queries as results files hold them: in percent, null where there are none."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrreid_ext.config import CfgNode
from lrreid_ext.evaluation.bootstrap import bootstrap_intervals
from lrreid_ext.evaluation.ranking import RankStatistics
from lrreid_ext.evaluation.single_shot import SingleShot
from lrreid_ext.evaluation.verification import Verification

__all__ = [
    "figures_of",
    "flat_figures",
    "interval_settings",
    "intervals_of",
    "percent",
    "rate_name",
    "rates_of",
]


def figures_of(statistics: SingleShot | RankStatistics, ranks: Sequence[int]) -> dict[str, Any]:
    """One group's figures under one protocol.

    Args:
        statistics: of the group's queries.
        ranks: k of each Rank-k.

    Returns:
        ``unmatched``, and ``Rank-<k>`` for each rank; of single-shot trials ``Rank-<k>_std`` and
        ``trials`` (a row of all ranks each), else ``mAP`` and ``mINP``.
    """
    figures: dict[str, Any] = {"unmatched": statistics.unmatched}
    if isinstance(statistics, SingleShot):
        means, deviations = statistics.mean(ranks), statistics.std(ranks)
        for rank, mean, deviation in zip(ranks, means, deviations, strict=True):
            figures[f"Rank-{rank}"] = percent(mean)
            figures[f"Rank-{rank}_std"] = percent(deviation)
        figures["trials"] = [[percent(v) for v in trial] for trial in statistics.cmc(ranks)]
        return figures
    for rank, value in zip(ranks, statistics.cmc(ranks), strict=True):
        figures[f"Rank-{rank}"] = percent(value)
    figures["mAP"] = percent(statistics.mean_ap)
    figures["mINP"] = percent(statistics.mean_inp)
    return figures


def intervals_of(
    statistics: SingleShot | RankStatistics,
    ranks: Sequence[int],
    pids: NDArray[np.int64],
    *,
    repeats: int,
    level: float,
    by: str,
    seed: int,
) -> dict[str, list[float | None]]:
    """Each figure's confidence interval as ``<figure>_ci``.

    A single-shot figure's is over the queries' means over the trials.

    Args:
        statistics, ranks: as :func:`figures_of` takes them.
        pids: (Q,) identities of the queries.
        repeats, level, by, seed: see
            :func:`lrreid_ext.evaluation.bootstrap.bootstrap_intervals`.
    """
    valid = statistics.valid
    names = [f"Rank-{rank}" for rank in ranks]
    if isinstance(statistics, SingleShot):
        first = statistics.first_rank[:, valid]
        columns = [(first <= rank).mean(axis=0) for rank in ranks]
    else:
        columns = [statistics.first_rank[valid] <= rank for rank in ranks]
        columns += [statistics.ap[valid], statistics.inp[valid]]
        names += ["mAP", "mINP"]
    found = bootstrap_intervals(
        np.stack(columns, axis=1), pids[valid], repeats=repeats, level=level, by=by, seed=seed
    )
    return {
        f"{name}_ci": [percent(end) for end in ends]
        for name, ends in zip(names, found, strict=True)
    }


def interval_settings(cfg: CfgNode) -> dict[str, Any] | None:
    """What TEST.CI says of confidence intervals; None without any."""
    ci = cfg.TEST.CI
    if not ci.REPEATS:
        return None
    return {"level": ci.LEVEL, "repeats": ci.REPEATS, "by": ci.BY, "seed": cfg.TEST.SEED}


def flat_figures(results: Mapping[str, Any]) -> OrderedDict[str, float]:
    """The figures of a results file as ``protocol/group/figure``, without those that are null."""
    flat: OrderedDict[str, float] = OrderedDict()
    for protocol in results["protocols"]:
        for name, entry in results["groups"].items():
            for figure, value in entry[protocol].items():
                if isinstance(value, float):
                    flat[f"{protocol}/{name}/{figure}"] = value
    return flat


def rates_of(
    found: Verification | None,
    fars: Sequence[float],
    pids: NDArray[np.int64],
    ci: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """True accept rates in percent as ``TAR@<FAR>``, and of how many pairs they are.

    Args:
        found: None where there are no genuine or no impostor pairs.
        fars: the false accept rates.
        pids: (Q,) identities of the queries.
        ci: of :func:`interval_settings`.

    Returns:
        ``TAR@1e-4`` ..., ``genuine_pairs`` and ``impostor_pairs``, and with ``ci`` each rate's
        interval as ``TAR@1e-4_ci``: other people at the same threshold. Where fewer than 1 / FAR
        impostor pairs exist, none of them may be accepted.
    """
    rates = [float("nan")] * len(fars) if found is None else found.tar
    named = {rate_name(far): percent(rate) for far, rate in zip(fars, rates, strict=True)}
    pairs = (found.genuine, found.impostors) if found else (0, 0)
    figures = {**named, "genuine_pairs": pairs[0], "impostor_pairs": pairs[1]}
    if found is None or ci is None:
        return figures
    having = found.genuine_by_query > 0
    counts = found.genuine_by_query[having]
    shares = found.accepted_by_query[having] / counts[:, None]
    ends = bootstrap_intervals(shares, pids[having], weights=counts, **ci)
    return figures | {
        f"{rate_name(far)}_ci": [percent(end) for end in row]
        for far, row in zip(fars, ends, strict=True)
    }


def rate_name(far: float) -> str:
    """What a true accept rate is called: ``TAR@1e-4``."""
    return f"TAR@{np.format_float_scientific(far, trim='-', exp_digits=1)}"


def percent(share: float | np.floating[Any]) -> float | None:
    """Share to percent, to six decimals; None for NaN."""
    value = float(share)
    return None if math.isnan(value) else round(100 * value, 6)
