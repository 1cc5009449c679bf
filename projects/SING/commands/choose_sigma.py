"""Choose sigma of SING's adaptive fusion by cross validation on training identities.

Train a model with anchors once per fold, each leaving another part of the identities out,

  tools/train_net.py --config-file CONFIG DATASETS.FOLD "[0, 3]" OUTPUT_DIR logs/fold0
  tools/train_net.py --config-file CONFIG DATASETS.FOLD "[1, 3]" OUTPUT_DIR logs/fold1
  tools/train_net.py --config-file CONFIG DATASETS.FOLD "[2, 3]" OUTPUT_DIR logs/fold2

and hand over the folders:

  lrreid choose-sigma logs/fold0 logs/fold1 logs/fold2 --out logs/sigma

Every sigma is tried with every subset of the anchors (SING, Table 4) on the identities that each
run left out. Prints the means over the folds and the config line to use, and writes sigma.csv,
.svg, .png, and sigma.json with where the figures came from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from lrreid_ext.config import CfgNode, changed
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.features import extract_features
from lrreid_ext.evaluation.fusion import chosen_anchors, trained_anchors
from lrreid_ext.options import add_data_set, add_run, at_least
from lrreid_ext.report.plots import write_figure
from lrreid_ext.results.provenance import provenance
from lrreid_ext.trained import load_model, run_cfg, run_names
from projects.SING.fusion import (
    SIGMAS,
    Curves,
    best_sigma,
    draw,
    fold_curves,
    fold_of,
    subset_name,
    table,
)


class Scored(NamedTuple):
    """One run's curves.

    Attributes:
        curves: what its left-out identities scored.
        factors: its anchors' factors.
        deployed: positions of the anchors that its config fuses.
        note: where the figures came from.
    """

    curves: Curves
    factors: tuple[float, ...]
    deployed: tuple[int, ...]
    note: dict[str, Any]


def check_folds(cfgs: dict[str, CfgNode]) -> list[str]:
    """Refuse runs that are no folds of one cross validation.

    Args:
        cfgs: the runs' configs by name.

    Returns:
        Lines that a reader should see.

    Raises:
        ConfigError: a run without a fold, one fold twice, different numbers of folds, or data sets
            or seeds (which decide who is in a fold) that differ.
    """
    seen: dict[int, str] = {}
    first = next(iter(cfgs))
    for name, cfg in cfgs.items():
        fold = list(cfg.DATASETS.FOLD)
        if len(fold) != 2:
            raise ConfigError(
                f"{name}: DATASETS.FOLD is {fold}, so that it left no identities out; train with "
                "DATASETS.FOLD [i, k], which leaves the i-th of k parts out"
            )
        if fold[0] in seen:
            raise ConfigError(f"{name}: DATASETS.FOLD is {fold}, as in {seen[fold[0]]}")
        seen[fold[0]] = name
        for key, value, other in (
            ("number of folds", fold[1], list(cfgs[first].DATASETS.FOLD)[1]),
            ("DATASETS.NAMES", list(cfg.DATASETS.NAMES), list(cfgs[first].DATASETS.NAMES)),
            ("SEED", cfg.SEED, cfgs[first].SEED),
        ):
            if value != other:
                raise ConfigError(f"{name}: {key} is {value}, but {other} in {first}")
    folds = list(cfgs[first].DATASETS.FOLD)[1]
    lacking = folds - len(seen)
    return [f"note: {lacking} of {folds} folds are not among the runs"] if lacking else []


def score(
    text: str,
    opts: Sequence[str],
    data_set: str = "",
    *,
    sigmas: Sequence[float] = SIGMAS,
    ranks: Sequence[int] = (1,),
) -> Scored:
    """Extract a run's features once, and score them with every sigma and subset.

    Args:
        text: the run, as :func:`lrreid_ext.trained.load_model` takes it.
        opts: overrides of its config.
        data_set: whose training identities to score; "" is the run's DATASETS.NAMES, if it is one.
        sigmas, ranks: see :func:`projects.SING.fusion.fold_curves`.

    Raises:
        ConfigError: several data sets and none named, or a model without two anchors to fuse.
    """
    run = load_model(text, "", opts)
    names = list(run.cfg.DATASETS.NAMES)
    if not data_set and len(names) != 1:
        raise ConfigError(f"{run.name}: DATASETS.NAMES is {names}; name one with --data-set")
    settings: tuple[tuple[str, Any], ...] = (
        ("TEST.ON_FOLD", True),
        ("TEST.HR", False),
        ("TEST.FACTORS", []),
    )
    cfg = changed(run.cfg, *settings)
    test_set = build_test_set(cfg, data_set or names[0])
    features = extract_features(cfg, run.module, test_set)
    assert features is not None  # this is the only process
    trained = trained_anchors(features.features) if features.features.ndim == 3 else []
    if len(trained) < 2:
        raise ConfigError(
            f"{run.name}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} gives no features "
            "of two trained anchors or more, so that there is nothing to fuse"
        )
    deployed = tuple(sorted(trained.index(k) for k in chosen_anchors(cfg, features.features)))
    if len(deployed) < 2:
        raise ConfigError(
            f"{run.name}: TEST.FUSION.ANCHORS names a single anchor, which needs no sigma"
        )
    features = replace(features, features=features.features[:, trained])
    factors = tuple(float(cfg.MODEL.ANCHORS.FACTORS[k]) for k in trained)
    test = cfg.TEST
    curves = fold_curves(
        fold_of(features, test_set, test.METRIC), factors, sigmas,
        ranks=ranks, trials=test.TRIALS, seed=test.SEED,
    )  # fmt: skip
    if np.isnan(curves.mean_ap).any():
        raise ConfigError(
            f"{run.name}: no left-out identity is in both query and gallery of {test_set.name}; "
            "leave more of them out with a smaller k in DATASETS.FOLD"
        )
    note = {
        "test_set": test_set.name,
        "manifest_hash": test_set.manifest_hash,
        "fold": list(cfg.DATASETS.FOLD),
        "trials": test.TRIALS,
        "seed": test.SEED,
        "metric": test.METRIC,
        "flip": bool(test.FLIP.ENABLED),
        "training": run.training,
        **provenance(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE),
    }
    return Scored(curves, factors, deployed, note)


def curve_table(mean: Curves, factors: Sequence[float], chosen: float) -> str:
    """Single-shot Rank-k in percent: rows are values of sigma, columns subsets of anchors.

    Single anchors, which sigma doesn't matter to, have the same figure in each row.
    """
    headers = ["sigma", *(subset_name(subset, factors) for subset in mean.subsets)]
    rows = [
        [("* " if sigma == chosen else "") + (f"{sigma:g}" if sigma else "0 (equal)")]
        + [f"{100 * value:.1f}" for value in mean.cmc[s, :, 0]]
        for s, sigma in enumerate(mean.sigmas)
    ]
    align = ["right"] * len(headers)
    return tabulate(rows, headers, "simple", colalign=align, disable_numparse=True)


def subset_table(mean: Curves, factors: Sequence[float]) -> str:
    """SING's Table 4 in percent: each subset at its best sigma, and beside it with equal weights.

    The figures at the best sigma flatter it, as they are what it was chosen by.
    """
    equal = mean.sigmas.index(0.0) if 0.0 in mean.sigmas else None
    headers = ["anchors", "best sigma", *(f"Rank-{k}" for k in mean.ranks), "mAP"]
    if equal is not None:
        headers.append(f"equal weights:\nRank-{mean.ranks[0]}")
    rows = []
    for a, subset in enumerate(mean.subsets):
        sigma = best_sigma(mean.sigmas, mean.cmc[:, a, 0])
        s = mean.sigmas.index(sigma)
        figures = [*mean.cmc[s, a], mean.mean_ap[s, a]]
        if equal is not None:
            figures.append(mean.cmc[equal, a, 0])
        label = "any" if len(subset) == 1 else f"{sigma:g}" if sigma else "0 (equal)"
        name = subset_name(subset, factors)
        rows.append([name, label, *(f"{100 * figure:.1f}" for figure in figures)])
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, "simple", colalign=align, disable_numparse=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser)
    parser.add_argument("--out", type=Path, default=Path("logs/sigma"), help="folder to write")
    add_data_set(parser, "the one that was trained on", "whose training identities to score: ")
    parser.add_argument(
        "--sigmas", type=at_least(0, float), nargs="+", default=list(SIGMAS), metavar="S",
        help="values to try; 0 weighs all anchors alike (default: 0, and 13 from 0.02 to 2)",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", type=at_least(1), nargs="+", default=[1, 5], metavar="K",
        help="single-shot ranks to report; the first one chooses (default: 1 5)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Score, choose, print and write."""
    sigmas = sorted(set(args.sigmas))
    runs: dict[str, Scored] = {}
    texts = dict(zip(run_names(args.runs), args.runs, strict=True))
    remarks = check_folds({name: run_cfg(text, args.opts) for name, text in texts.items()})
    for name, text in texts.items():
        runs[name] = score(text, args.opts, args.data_set, sigmas=sigmas, ranks=args.ranks)
        anchors = {(r.factors, r.deployed) for r in runs.values()}
        if len(anchors) > 1:
            raise ConfigError(
                f"{name}: its anchors differ from the other runs'; MODEL.ANCHORS.FACTORS and "
                "TEST.FUSION.ANCHORS must agree"
            )
    (factors, deployed) = anchors.pop()
    mean = Curves.mean([run.curves for run in runs.values()])
    fused = mean.subsets.index(deployed)
    chosen = best_sigma(mean.sigmas, mean.cmc[:, fused, 0])
    name, rank = subset_name(deployed, factors), f"Rank-{args.ranks[0]}"
    print(f"Single-shot {rank} (%) on left-out training identities, mean of {len(runs)} folds:\n")
    print(curve_table(mean, factors, chosen))
    print(f"\n{subset_table(mean, factors)}\n")
    for remark in remarks:
        print(remark)
    best = 100 * mean.cmc[mean.sigmas.index(chosen), fused, 0]
    print(f"Best for {name}: {rank} {best:.1f} % with\n\n    TEST.FUSION.SIGMA {chosen:g}\n")

    content = {
        "sigma": chosen,
        "anchors": [factors[i] for i in deployed],
        "chosen_by": f"mean single-shot {rank} over the folds; of equal ones the largest sigma",
        "runs": {n: r.note for n, r in runs.items()},
    }
    curves = table({n: r.curves for n, r in runs.items()}, factors)
    write_figure(args.out / "sigma", curves, content, draw(mean, factors, chosen))
