"""One result from several: the splits of a recipe, or runs that differ by their seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lrreid_ext.errors import ResultsError
from lrreid_ext.evaluation.provenance import provenance
from lrreid_ext.evaluation.report import Results

__all__ = ["aggregate"]

# What must agree for figures to be averaged.
_SHARED = (
    "test_set",
    "protocols",
    "trials",
    "seed",
    "metric",
    "draw",
    "flip",
    "aqe",
    "fusion",
    "rerank",
)

# The same of what the test set and the weights say of themselves.
_SHARED_INFO = ("mixed_gallery", "validation", "fold")
_SHARED_TRAINING = ("data_sets", "fold", "phase")

# Counted, and added up.
_COUNTS = ("queries", "junk", "unmatched")


def aggregate(results: Mapping[str, Results]) -> dict[str, Any]:
    """The mean over several results, with the standard deviation over all that varied.

    Single-shot figures of S splits with T trials each are the mean and the sample standard
    deviation (over S T - 1) of all S T values, as "ten splits x ten trials" is published.
    Multi-shot figures are the mean and deviation (over S - 1) of the S values. Confidence intervals
    within a split say nothing about other splits, and are left out.

    Args:
        results: content of results files, by what they are called in messages.

    Returns:
        The content of a results file, with ``parts`` (what each figure came from) and ``over``:
        ``splits`` where the data differ, ``runs`` where they don't.

    Raises:
        ResultsError: fewer than two results, some measured otherwise than others or with other
            figures, the same data more than once among splits, or trials that a file left out.
    """
    if len(results) < 2:
        raise ResultsError("a mean is over at least two results")
    names, contents = list(results), list(results.values())
    first = contents[0]
    for name, content in zip(names[1:], contents[1:], strict=True):
        for key in _SHARED:
            if content.get(key) != first.get(key):
                raise ResultsError(
                    f"{name}: {key} is {content.get(key)!r}, but {first.get(key)!r} in {names[0]}"
                )
        _check_info(content, first, name, names[0])
        if _recipe(content) != _recipe(first):
            raise ResultsError(
                f"{name}: the data set was built by other options than {names[0]}'s, apart from "
                "the split"
            )
    hashes = [content["manifest_hash"] for content in contents]
    if 1 < len(set(hashes)) < len(hashes):
        twice = next(k for k, h in enumerate(hashes) if h in hashes[:k])
        raise ResultsError(
            f"{names[twice]}: of the same data as {names[hashes.index(hashes[twice])]}, while "
            "others are of other splits"
        )
    splits = len(set(hashes)) > 1
    groups = [g for g in first["groups"] if all(g in content["groups"] for content in contents)]
    for name, content in zip(names[1:], contents[1:], strict=True):
        for group, protocol in product(groups, first["protocols"]):
            own = _figure_names(content["groups"][group][protocol])
            others = _figure_names(first["groups"][group][protocol])
            if own != others:
                raise ResultsError(
                    f"{name}: {protocol}/{group} has the figures {', '.join(own)}, but "
                    f"{', '.join(others)} in {names[0]}; evaluate both by one TEST.RANKS and one "
                    "TEST.ROC"
                )
    info = {k: v for k, v in (first.get("info") or {}).items() if k not in ("split", "training")}
    parts = [
        {
            "name": name,
            "split": (content.get("info") or {}).get("split"),
            "training": (content.get("info") or {}).get("training"),
            **{k: content.get(k) for k in ("manifest_hash", "checkpoint", "commit", "machine")},
        }
        for name, content in zip(names, contents, strict=True)
    ]
    return {
        **{key: first.get(key) for key in _SHARED},
        "manifest_hash": "" if splits else hashes[0],
        "info": info,
        "over": "splits" if splits else "runs",
        "parts": parts,
        "std": "sample standard deviation over all splits or runs, and in single-shot their trials",
        "ci": None,
        "tie_rule": first.get("tie_rule"),
        "groups": {
            group: _group(group, {n: c["groups"][group] for n, c in results.items()}, first)
            for group in groups
        },
        **provenance(),
    }


def _check_info(content: Results, first: Results, name: str, other: str) -> None:
    """Refuse other galleries, other parts of the data, and weights trained on other data."""
    own, theirs = content.get("info") or {}, first.get("info") or {}
    found = [(f"info.{key}", own.get(key), theirs.get(key)) for key in _SHARED_INFO]
    trained, other_trained = own.get("training") or {}, theirs.get("training") or {}
    if bool(trained) != bool(other_trained):
        found.append(("info.training", trained or None, other_trained or None))
    # Files of earlier versions tell less.
    known = [key for key in _SHARED_TRAINING if key in trained and key in other_trained]
    found += [(f"info.training.{key}", trained[key], other_trained[key]) for key in known]
    for key, value, expected in found:
        if value != expected:
            told, wanted = (_told(v) for v in (value, expected))
            raise ResultsError(
                f"{name}: {key} is {told}, but {wanted} in {other}; a mean is over results that "
                "differ by split, seed or weights of one config"
            )


def _told(value: Any) -> str:
    if isinstance(value, Mapping) and "command" in value:
        return f"{value['command']!r}"
    return "not there" if value is None else repr(value)


def _recipe(content: Results) -> Any:
    options = dict((content.get("info") or {}).get("options") or {})
    options.pop("split", None)
    return options


def _figure_names(entry: Mapping[str, Any]) -> list[str]:
    """What one group's entry under one protocol has a mean of, in the order of its trials' rows."""
    spread = ("_std", "_ci", "_pairs")
    return [n for n in entry if n not in (*_COUNTS, "trials") and not n.endswith(spread)]


def _group(group: str, entries: Mapping[str, Mapping[str, Any]], first: Results) -> dict[str, Any]:
    """One group's figures."""
    out: dict[str, Any] = {k: sum(e.get(k, 0) for e in entries.values()) for k in _COUNTS[:2]}
    for protocol in first["protocols"]:
        figures = {name: entry[protocol] for name, entry in entries.items()}
        out[protocol] = _figures(group, protocol, figures)
    return out


def _figures(group: str, protocol: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"unmatched": sum(e.get("unmatched", 0) for e in entries.values())}
    names = _figure_names(next(iter(entries.values())))
    trials: list[Sequence[float | None]] = []
    if protocol == "single_shot":
        for source, entry in entries.items():
            if "trials" not in entry:
                raise ResultsError(
                    f"{source}: {group} has no figures per trial; take the results file that the "
                    "evaluation wrote"
                )
            trials += entry["trials"]
    for k, name in enumerate(names):
        values = [row[k] for row in trials] or [entry.get(name) for entry in entries.values()]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        found[name] = round(float(np.mean(known)), 6) if whole else None
        several = whole and len(known) > 1
        found[f"{name}_std"] = round(float(np.std(known, ddof=1)), 6) if several else None
    if trials:
        found["trials"] = trials
    return found
