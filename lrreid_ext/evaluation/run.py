"""Evaluating a model on the data sets of a config, by every evaluator of TEST.EVALUATORS."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fastreid.utils import comm
from torch import nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_loader, build_test_set
from lrreid_ext.data.samples import TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cache import cache_key, cached_features, feed, find_cache
from lrreid_ext.evaluation.evaluator import CrossResolutionEvaluator
from lrreid_ext.evaluation.features import Features, extract
from lrreid_ext.modeling.contract import Attaches
from lrreid_ext.registry import EVALUATOR_REGISTRY, lookup
from lrreid_ext.results import Results
from lrreid_ext.results.provenance import tensors_hash
from lrreid_ext.trained import load_trained, read_weights

__all__ = ["evaluate", "evaluate_trained", "features_of", "score", "score_features"]


def evaluate(
    cfg: CfgNode, model: nn.Module, output_dir: str = "", training: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Evaluate a model on every data set of DATASETS.TESTS with every evaluator.

    All processes must call it; each looks at its share of the images.

    Args:
        cfg: the config.
        model: the model.
        output_dir: where the results are written; "" is OUTPUT_DIR.
        training: how the weights were trained; results record it.

    Returns:
        ``{data set: {figure: value}}`` in the main process, empty dicts in the others.
    """
    if comm.get_world_size() > 1:
        # Batch-norm statistics differ between processes until the next step.
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    results: dict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TESTS:
        test_set = build_test_set(cfg, name)
        if training:
            test_set = replace(test_set, info={**test_set.info, "training": training})
        results[name] = score(cfg, model, test_set, output_dir or cfg.OUTPUT_DIR)
    return results


def evaluate_trained(cfg: CfgNode) -> dict[str, Any]:
    """Load MODEL.WEIGHTS, or OUTPUT_DIR's last checkpoint, and evaluate it.

    Raises:
        ConfigError, FileNotFoundError, WeightsError: see :func:`lrreid_ext.trained.load_trained`.
    """
    model = load_trained(cfg)
    return evaluate(model.cfg, model.module, training=model.training)


def score(
    cfg: CfgNode, model: nn.Module, test_set: TestSet, output_dir: str | None
) -> dict[str, Any]:
    """One test set's figures by every evaluator of TEST.EVALUATORS.

    All processes must call it; each looks at its share of the images.

    Args:
        cfg: the keys INPUT.SIZE_TEST and TEST.
        model: the model.
        test_set: the images.
        output_dir: where the evaluators write their results; None for nowhere.

    Returns:
        The figures by name in the main process, an empty dict in the others.
    """
    loader = build_test_loader(cfg, test_set)
    figures: dict[str, Any] = OrderedDict()
    # Weights that no file holds are still in training, and change.
    cache = cfg.TEST.CACHE if cfg.MODEL.WEIGHTS else ""
    for name in cfg.TEST.EVALUATORS:
        evaluator = lookup(EVALUATOR_REGISTRY, name, "TEST.EVALUATORS")(cfg, test_set, output_dir)
        attaches = isinstance(evaluator, Attaches)
        if cache and not attaches:
            figures.update(feed(evaluator, cached_features(cfg, model, test_set, cache)))
            continue
        run = evaluator.attach(model) if attaches else model
        flip = cfg.TEST.FLIP.ENABLED and not attaches
        figures.update(extract(run, loader, evaluator, flip))
    return figures


def score_features(
    cfg: CfgNode, test_set: TestSet, features: Features, output_dir: str | None
) -> Results:
    """One test set's results from features that are extracted already.

    The evaluators of TEST.EVALUATORS that look at features alone write their results as well.

    Args:
        cfg: the keys of TEST.
        test_set: the images.
        features: of its images, in their order.
        output_dir: where the evaluators write their results; None for nowhere.
    """
    results = CrossResolutionEvaluator(cfg, test_set, output_dir).report(features)
    for name in cfg.TEST.EVALUATORS:
        entry = lookup(EVALUATOR_REGISTRY, name, "TEST.EVALUATORS")
        # A class that says it needs the network is not even made.
        if entry is CrossResolutionEvaluator or isinstance(entry, Attaches):
            continue
        evaluator = entry(cfg, test_set, output_dir)
        if not isinstance(evaluator, Attaches):
            feed(evaluator, features)
    return results


def features_of(
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
    cached = find_cache(
        cache, cache_key(weights.cfg, tensors_hash(weights.state), test_set), test_set
    )
    if cached is not None:
        return weights.cfg, test_set, cached.features, True
    model = weights.build(data_set)
    features = cached_features(model.cfg, model.module, test_set, cache)
    assert features is not None  # this is the only process
    return model.cfg, test_set, features, False
