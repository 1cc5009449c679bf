"""Evaluate trained models, or files of their features, by any protocol.

lrreid eval logs/sing logs/copies --data-set caviar --opts TEST.CI.REPEATS 1000
lrreid eval logs/features/caviar-0123456789abcdef.safetensors --opts TEST.DRAW per_query
lrreid eval --config-file projects/SING/synth.yml MODEL.WEIGHTS model_final.pth TEST.TRIALS 20

A run's features are extracted once and kept in --cache; the next time they are read from there,
unless weights, config or images have changed: then they are extracted anew. With --data-set a model
trained on one data set is tested on others. Of a run's TEST.EVALUATORS those are run that look at
features alone, and always the CrossResolutionEvaluator. Writes results_<test set>.json for each
into --out.

A file of features needs neither images nor network. If its checkpoint or its data set is at hand
and has changed since, the file is refused. Options that decide the features (TEST.FLIP, INPUT ...)
can't be changed for it: name the run instead.

With --config-file, every evaluator of the config is run on MODEL.WEIGHTS, or else on the last
checkpoint in OUTPUT_DIR; results are written into OUTPUT_DIR.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrreid_ext.config import CfgNode, changed, get_cfg
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.data.samples import TestSet
from lrreid_ext.engine.run import run_config
from lrreid_ext.errors import CacheError, ConfigError
from lrreid_ext.evaluation.cache import (
    SUFFIX,
    CachedFeatures,
    cache_key,
    cached_features,
    find_cache,
    load_cache,
    stale,
)
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.evaluation.features import Features
from lrreid_ext.evaluation.run import score_features
from lrreid_ext.modeling.contract import Attaches
from lrreid_ext.options import add_processes, data_set_name
from lrreid_ext.registry import EVALUATOR_REGISTRY, lookup, suggest
from lrreid_ext.results import results_table
from lrreid_ext.results.provenance import tensors_hash
from lrreid_ext.trained import name_and_path, read_weights, run_cfg, run_names

# What of TEST bears on scoring alone, and can be changed for features that stand.
SCORING = (
    "AQE", "CI", "DRAW", "FACTOR_BINS", "FUSION", "METRIC", "PROTOCOLS", "RANKS", "RERANK", "ROC",
    "SEED", "TRIALS",
)  # fmt: skip

logger = logging.getLogger(__name__)


def run_features(
    cfg: CfgNode, data_set: str, cache: Path
) -> tuple[CfgNode, TestSet, Features, bool]:
    """A run's features of one data set, from the cache if they are there.

    The network is built only if they aren't.

    Returns:
        The config with MODEL.WEIGHTS filled in, the test set, its features, and whether they were
        read.

    Raises:
        ConfigError: TEST.INITIAL, which asks for weights that no training made.
    """
    if cfg.TEST.INITIAL:
        raise ConfigError(
            "TEST.INITIAL: the features kept here are those of trained weights; evaluate initial "
            "ones by lrreid eval --config-file, with the same keys"
        )
    weights = read_weights(cfg)
    test_set = build_test_set(weights.cfg, data_set)
    if weights.training:
        test_set = replace(test_set, info={**test_set.info, "training": weights.training})
    key = cache_key(weights.cfg, tensors_hash(weights.state), test_set)
    cached = find_cache(cache, key, test_set)
    if cached is not None:
        return weights.cfg, test_set, cached.features, True
    model = weights.build(data_set)
    features = cached_features(model.cfg, model.module, test_set, cache)
    assert features is not None  # this is the only process
    return model.cfg, test_set, features, False


def file_cfg(cached: CachedFeatures, opts: Sequence[str]) -> CfgNode:
    """A config to score a file of features with.

    Raises:
        ConfigError: an option that decides the features, or isn't one.
    """
    cfg = get_cfg()
    if len(opts) % 2:
        raise ConfigError(f"--opts come in pairs KEY VALUE; {opts[-1]!r} has no partner")
    for key in opts[::2]:
        parts = key.split(".")
        if parts[0] != "TEST" or len(parts) < 2 or parts[1] not in SCORING:
            known = [f"TEST.{name}" for name in SCORING]
            raise ConfigError(
                f"--opts {key}: can't be changed for features that stand in a file."
                f"{suggest(key, known)} Can be: {', '.join(known)}"
            )
    about = cached.about
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"--opts: {error}") from error
    settings = (
        ("MODEL.ANCHORS.FACTORS", list(about["anchors"])),
        ("MODEL.WEIGHTS", about["checkpoint"]),
        ("MODEL.DEVICE", "cuda" if "gpu" in about["machine"] else "cpu"),
        ("TEST.FLIP.ENABLED", about["flip"]),
    )
    return changed(cfg, *settings)


def open_file(path: str) -> CachedFeatures:
    """A file of features, if its checkpoint and data set haven't changed since.

    Raises:
        CacheError: they have.
    """
    cached = load_cache(path)
    differs, unknown = stale(cached)
    if differs:
        raise CacheError(
            f"{path}: {'; '.join(differs)}, so that these features are no longer the model's. Name "
            "the run instead of the file to extract them anew"
        )
    for line in unknown:
        print(f"note: {path}: {line}; not checked")
    return cached


def check_evaluators(cfg: CfgNode) -> None:
    """Say which of TEST.EVALUATORS aren't run, for they need the network.

    Raises:
        ConfigError: one that isn't registered.
    """
    entries = {n: lookup(EVALUATOR_REGISTRY, n, "TEST.EVALUATORS") for n in cfg.TEST.EVALUATORS}
    for name, entry in entries.items():
        if isinstance(entry, Attaches):
            print(
                f"note: TEST.EVALUATORS: {name} runs the network and is left out; "
                "lrreid eval --config-file runs it"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "words", nargs="*", metavar="[NAME=]RUN | KEY VALUE",
        help="folders of trainings, checkpoints, hub:owner/name, or files of features; with "
        "--config-file overrides of the config",
    )  # fmt: skip
    parser.add_argument("--config-file", metavar="FILE", help="evaluate as this YAML says")
    add_processes(parser)
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of all runs' configs"
    )
    parser.add_argument(
        "--data-set", nargs="+", default=[], type=data_set_name, metavar="NAME",
        help="test a run on these, names or recipes' YAML files (default: its DATASETS.TESTS)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("logs/eval"), metavar="DIR",
        help="folder of the results (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, default=Path("logs/features"), metavar="DIR",
        help="folder of the features (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", nargs="+", metavar="C", help="figures of the table, as protocol/group/figure"
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate, and print a table."""
    if args.config_file:
        if args.data_set:
            raise ConfigError("--data-set is for RUNs; with --config-file write DATASETS.TESTS")
        run_config(
            args.config_file, [*args.words, *args.opts], evaluate=True, processes=args.processes
        )
        return
    if not args.words:
        raise ConfigError("name a RUN to evaluate, or a --config-file")
    if args.processes > 1:
        raise ConfigError("--num-processes is for --config-file; RUNs are evaluated in one process")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    results, labels = [], []
    for name, text in zip(run_names(args.words), args.words, strict=True):
        path = str(name_and_path(text)[1])
        if path.endswith(SUFFIX) and is_features(path):
            if args.data_set:
                raise ConfigError(f"--data-set: {path} holds features of one data set already")
            cached = open_file(path)
            cfg = file_cfg(cached, args.opts)
            check_config(cfg)
            results.append(
                score_features(cfg, cached.test_set, cached.features, str(args.out / name))
            )
            labels.append(name)
            continue
        cfg = run_cfg(text, args.opts)
        check_config(cfg)
        check_evaluators(cfg)
        tests = args.data_set or list(cfg.DATASETS.TESTS)
        if not tests:
            raise ConfigError("DATASETS.TESTS: is empty; name a data set with --data-set")
        for data_set in tests:
            used_cfg, test_set, features, read = run_features(cfg, data_set, args.cache)
            print(f"{name} on {data_set}: features {'read' if read else 'extracted'}")
            results.append(score_features(used_cfg, test_set, features, str(args.out / name)))
            labels.append(f"{name} on {data_set}" if len(tests) > 1 else name)
    print(f"\n{results_table(results, args.columns, names=labels, style='plain')}")
    print(f"written: {args.out}")


def is_features(path: str) -> bool:
    """Whether a safetensors file holds features; else it holds weights."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of features")
    try:
        with safe_open(path, "pt") as opened:
            return "lrreid_features" in (opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path}: can't be read as a file of features: {error}") from error
