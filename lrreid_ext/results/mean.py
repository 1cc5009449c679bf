"""The mean of several results: splits of a recipe, or runs that differ by their seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from lrreid_ext.errors import ResultsError
from lrreid_ext.results.provenance import provenance
from lrreid_ext.results.results import Figure, Figures, Group, Part, Results

# What must agree for figures to be averaged: fields of the results, of their info and training.
_SHARED = (
    *("test_set", "protocols", "trials", "seed", "metric", "draw", "flip", "aqe", "fusion"),
    "rerank",
)
_SHARED_INFO = ("mixed_gallery", "validation", "fold")
_SHARED_TRAINING = ("data_sets", "fold", "phase")


def mean_of(results: Mapping[str, Results]) -> Results:
    """The mean over several results, with the standard deviation over everything that varied.

    Single-shot figures of S splits with T trials each are the mean and the sample standard
    deviation (over S T - 1) of all S T values, as "ten splits x ten trials" is published.
    Multi-shot figures are the mean and deviation (over S - 1) of the S values. A confidence
    interval within one split says nothing about other splits, so the mean has none.

    Args:
        results: by the names that messages use.

    Returns:
        Results with ``parts`` (what was averaged) and ``over``: ``splits`` where the data differ,
        ``runs`` where they don't.

    Raises:
        ResultsError: fewer than two results, results that were measured in different ways or have
            different figures, the same split twice, or no figures per trial.
    """
    if len(results) < 2:
        raise ResultsError("a mean needs at least two results")
    (first_name, first), *rest = results.items()
    groups = [g for g in first.groups if all(g in r.groups for r in results.values())]
    for name, other in rest:
        for key, value, expected in _compared(other, first):
            if value != expected:
                raise ResultsError(
                    f"{name}: {key} is {_text(value)}, but {_text(expected)} in {first_name}; a "
                    "mean is over results that differ by split, seed or weights of one config"
                )
        for group, protocol in product(groups, first.protocols):
            figures, expected = (
                list(r.groups[group].protocols[protocol].named) for r in (other, first)
            )
            if figures != expected:
                raise ResultsError(
                    f"{name}: {protocol}/{group} has the figures {', '.join(figures)}, but "
                    f"{', '.join(expected)} in {first_name}; evaluate both with the same "
                    "TEST.RANKS and TEST.ROC"
                )
    hashes = [r.manifest_hash for r in results.values()]
    splits = len(set(hashes)) > 1
    if splits and len(set(hashes)) < len(hashes):
        names = list(results)
        twice = next(k for k, h in enumerate(hashes) if h in hashes[:k])
        raise ResultsError(
            f"{names[twice]}: has the same data as {names[hashes.index(hashes[twice])]}, while "
            "others are of other splits"
        )
    return Results(
        **{key: getattr(first, key) for key in _SHARED},
        manifest_hash="" if splits else hashes[0],
        info={k: v for k, v in first.info.items() if k != "split"},
        over="splits" if splits else "runs",
        parts=[
            Part(
                name=name,
                split=r.info.get("split"),
                training=r.training,
                manifest_hash=r.manifest_hash,
                checkpoint=r.checkpoint,
                commit=r.commit,
                machine=r.machine,
            )
            for name, r in results.items()
        ],
        std="sample standard deviation over all splits or runs, and in single-shot their trials",
        tie_rule=first.tie_rule,
        groups={
            group: _group(group, {n: r.groups[group] for n, r in results.items()})
            for group in groups
        },
        **provenance(),
    )


def _compared(other: Results, first: Results) -> Iterator[tuple[str, Any, Any]]:
    """Names and both values of what must agree."""
    for key in _SHARED:
        yield key, getattr(other, key), getattr(first, key)
    for key in _SHARED_INFO:
        yield f"info.{key}", other.info.get(key), first.info.get(key)
    if other.training is None or first.training is None:
        yield "info.training", other.training, first.training
    else:
        for key in _SHARED_TRAINING:
            values = getattr(other.training, key), getattr(first.training, key)
            if None not in values:  # files of earlier versions lack some
                yield f"info.training.{key}", *values
    options, expected = (
        {k: v for k, v in (r.info.get("options") or {}).items() if k != "split"}
        for r in (other, first)
    )
    yield "info.options", options, expected


def _text(value: object) -> str:
    return "missing" if value is None else repr(value)


def _group(name: str, entries: Mapping[str, Group]) -> Group:
    first = next(iter(entries.values()))
    return Group(
        sum(e.queries for e in entries.values()),
        sum(e.junk for e in entries.values()),
        {
            p: _figures(name, p, {n: e.protocols[p] for n, e in entries.items()})
            for p in first.protocols
        },
    )


def _figures(group: str, protocol: str, entries: Mapping[str, Figures]) -> Figures:
    trials: list[list[float | None]] = []
    if protocol == "single_shot":
        for source, entry in entries.items():
            if entry.trials is None:
                raise ResultsError(
                    f"{source}: {group} has no figures per trial; take the results file that the "
                    "evaluation wrote"
                )
            trials += entry.trials
    values = [[f.value if f else None for f in entry.named.values()] for entry in entries.values()]
    rows = trials or values
    names = next(iter(entries.values())).named
    return Figures(
        sum(e.unmatched for e in entries.values()),
        {name: _mean([row[k] for row in rows]) for k, name in enumerate(names)},
        trials or None,
    )


def _mean(values: list[float | None]) -> Figure | None:
    """Mean and standard deviation; None if a value is missing."""
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    several = len(present) > 1
    std = round(float(np.std(present, ddof=1)), 6) if several else None
    return Figure(round(float(np.mean(present)), 6), std)
