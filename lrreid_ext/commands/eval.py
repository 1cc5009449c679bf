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
from pathlib import Path

from lrreid_ext.config import CfgNode
from lrreid_ext.engine.run import run_config
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cache import is_features, load_unchanged, scoring_cfg
from lrreid_ext.evaluation.evaluator import check_config
from lrreid_ext.evaluation.run import features_of, score_features
from lrreid_ext.modeling.contract import Attaches
from lrreid_ext.options import add_processes, data_set_name
from lrreid_ext.registry import EVALUATOR_REGISTRY, lookup
from lrreid_ext.results import results_table
from lrreid_ext.trained import name_and_path, run_cfg, run_names


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
        path = name_and_path(text)[1]
        if is_features(path):
            if args.data_set:
                raise ConfigError(f"--data-set: {path} holds features of one data set already")
            cached, notes = load_unchanged(path)
            for note in notes:
                print(f"note: {path}: {note}; not checked")
            cfg = scoring_cfg(cached, args.opts)
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
            used_cfg, test_set, features, read = features_of(cfg, data_set, args.cache)
            print(f"{name} on {data_set}: features {'read' if read else 'extracted'}")
            results.append(score_features(used_cfg, test_set, features, str(args.out / name)))
            labels.append(f"{name} on {data_set}" if len(tests) > 1 else name)
    print(f"\n{results_table(results, args.columns, names=labels, style='plain')}")
    print(f"written: {args.out}")
