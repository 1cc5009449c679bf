"""Train and evaluate on several random splits of a recipe, and average the results.

tools/splits.py --config-file projects/SING/caviar.yml --splits 0-9 OUTPUT_DIR logs/caviar
tools/splits.py --mean logs/a/results_caviar.json logs/b/results_caviar.json --out logs/mean

Each split is a run of its own in OUTPUT_DIR/split_<number>: the recipe's option `split` is set in
it for every data set that has one. A split that has been evaluated is not run again, one that was
interrupted goes on where it stopped, one that was made with another config is refused, and one that
was evaluated by other TEST keys or weights (evaluated.json tells) is evaluated again. The mean
and standard deviation over splits x trials go into OUTPUT_DIR/results_<test set>.json, which is a
results file like any other.

--mean averages results that stand, of several splits or of runs that differ by their SEED. Results
of other data, galleries or protocols are refused, and so are those of networks that were trained by
other configs; it says whose config isn't at hand (config.yaml beside the checkpoint or the file).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrreid_ext.analysis.runs import CONFIG_FILE, changed, check_same, difference, flat_config
from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.data.recipes import RECIPE_REGISTRY, build_recipe
from lrreid_ext.engine.cli import main as train
from lrreid_ext.engine.trainer import checkpoint_of
from lrreid_ext.errors import USER_ERRORS, ConfigError, ResultsError
from lrreid_ext.files import write_json
from lrreid_ext.registry import registered
from lrreid_ext.results import Results, group_table, mean_of, results_file, results_table

# In a split's folder: what its results come from.
RECORD = "evaluated.json"


def numbers(text: str) -> list[int]:
    """``"0-3,7"`` as 0, 1, 2, 3, 7.

    Raises:
        ConfigError: something else, or a number twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ConfigError(f"--splits {text}: write numbers from 0 and ranges, as in 0-9 or 0,3")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"--splits {text}: names a split twice")
    return found


def split_options(cfg: CfgNode, split: int) -> list[str]:
    """Overrides that choose a split of every data set that has splits.

    Raises:
        ConfigError: a data set that is tested on has none.
    """
    options = []
    for name in dict.fromkeys([*cfg.DATASETS.NAMES, *cfg.DATASETS.TESTS]):
        known = build_recipe(name).options() if registered(RECIPE_REGISTRY, name) else {}
        if "split" in known:
            options += [f"DATASETS.OPTIONS.{name}.split", str(split)]
        elif name in cfg.DATASETS.TESTS:
            raise ConfigError(
                f"DATASETS.TESTS: {name} has no option 'split', so that there is nothing to "
                "average over"
            )
    return options


def finished(folder: Path, tests: Sequence[str], eval_only: bool) -> bool:
    """Whether a split's run has trained to its end and been evaluated."""
    evaluated = all((folder / results_file(name)).is_file() for name in tests)
    return evaluated and (eval_only or (folder / "model_final.pth").is_file())


def evaluation_of(cfg: CfgNode, tests: Sequence[str]) -> dict[str, Any]:
    """What the results in a split's folder come from: the config, and digests of the weights and of
    the results files themselves, "" for one that isn't there."""
    path = cfg.MODEL.INIT.WEIGHTS if cfg.TEST.INITIAL else checkpoint_of(cfg)
    results = {name: _digest(Path(cfg.OUTPUT_DIR) / results_file(name)) for name in tests}
    return {"config": flat_config(cfg), "weights": _digest(Path(path)), "results": results}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def evaluated_otherwise(cfg: CfgNode, tests: Sequence[str], eval_only: bool) -> str:
    """Why the results in a split's folder aren't those that ``cfg`` would give; "" if they are.

    Args:
        cfg: the split's, OUTPUT_DIR being its folder.
        tests: names of its results.
        eval_only: nothing was trained there, so that nothing but the record tells.
    """
    try:
        record = json.loads((Path(cfg.OUTPUT_DIR) / RECORD).read_text(encoding="utf-8"))
        made, weights, results = (record[key] for key in ("config", "weights", "results"))
    except FileNotFoundError:
        return f"there is no {RECORD} to say what was evaluated" if eval_only else ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{RECORD} can't be read"
    why = difference(CfgNode(made), cfg)
    if why:
        return why
    now = evaluation_of(cfg, tests)
    if weights != now["weights"]:
        return f"{cfg.MODEL.WEIGHTS or 'the checkpoint'} has other weights now"
    return "" if results == now["results"] else f"its results aren't those that {RECORD} tells of"


def run_splits(args: argparse.Namespace) -> tuple[list[str], Path] | int:
    """Run what isn't finished.

    Returns:
        The test sets' names and the folder of all splits; or the status of the one that failed.
    """
    cfg = load_cfg(args.config_file, args.opts)
    out, tests = Path(cfg.OUTPUT_DIR), list(cfg.DATASETS.TESTS)
    if not tests:
        raise ConfigError("DATASETS.TESTS: is empty; a mean is over test results")
    for split in numbers(args.splits):
        folder = out / f"split_{split}"
        options = [*args.opts, *split_options(cfg, split), "OUTPUT_DIR", str(folder)]
        own = load_cfg(args.config_file, options)
        evaluate = ["--eval-only", *options]
        if not args.eval_only:
            check_same(folder, own, f"split {split}", "name another OUTPUT_DIR")
            # What training began with is not what it made.
            evaluate += ["MODEL.WEIGHTS", ""]
            own = changed(own, ("MODEL.WEIGHTS", ""))
        stands = finished(folder, tests, args.eval_only)
        why = evaluated_otherwise(own, tests, args.eval_only) if stands else ""
        if stands and not why:
            print(f"split {split}: {folder} stands")
            continue
        if why:
            print(f"split {split}: evaluated again, for {why}")
        words = ["--config-file", args.config_file, "--num-gpus", str(args.processes)]
        status = 0
        if not args.eval_only and not stands:
            resume = ["--resume"] * (folder / "last_checkpoint").is_file()
            status = train([*words, *resume, *options])
        # Training evaluates only where TEST.EVAL_PERIOD says so.
        if not status and (why or not finished(folder, tests, args.eval_only)):
            status = train([*words, *evaluate])
        if not status:
            write_json(folder / RECORD, evaluation_of(own, tests))
        if status:
            print(f"split {split} stopped; the same command goes on with it", file=sys.stderr)
            return status
    return tests, out


def training_config(file: Path, results: Results) -> Path | None:
    """The config that the weights of a results file were trained with, or None if it isn't at hand.

    It is beside the checkpoint; of weights that were scored while in training, beside the file, or
    above it in the folder of a phase.
    """
    if results.checkpoint:
        checkpoint = Path(results.checkpoint)
        beside = file.parent / checkpoint.name
        places = [path.parent for path in (checkpoint, beside) if path.is_file()]
    else:
        places = [file.parent]
        if results.training and file.parent.name == results.training.phase:
            places.append(file.parent.parent)
    return next((p / CONFIG_FILE for p in places if (p / CONFIG_FILE).is_file()), None)


def trained_as(path: Path) -> CfgNode:
    """A training's config without what may differ among runs of a mean: seeds, splits, files of
    weights, and all of testing, which results tell themselves."""
    cfg = load_cfg(str(path)).clone()
    cfg.defrost()
    cfg.SEED, cfg.TEST, cfg.DATASETS.TESTS = 0, CfgNode(), []
    for options in cfg.DATASETS.OPTIONS.values():
        options.pop("split", None)

    def blank(node: CfgNode) -> None:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                blank(value)
            elif key.endswith("WEIGHTS"):
                node[key] = ""

    blank(cfg)
    return cfg


def check_networks(contents: Mapping[Path, Results]) -> list[str]:
    """Refuse a mean over networks that were trained by different configs.

    Returns:
        A note of the results whose config isn't at hand, if there are any.

    Raises:
        ResultsError: names the files and the first key that differs.
    """
    checkpoints = {content.checkpoint for content in contents.values()}
    if len(checkpoints) == 1 and "" not in checkpoints:
        return []  # one network
    found: dict[Path, CfgNode] = {}
    unknown = []
    for file, content in contents.items():
        path = training_config(file, content)
        try:
            if path is not None:
                found[file] = trained_as(path)
                continue
        except USER_ERRORS as error:
            unknown.append(f"{file} ({error})")
            continue
        unknown.append(str(file))
    for file, cfg in list(found.items())[1:]:
        first = next(iter(found))
        why = difference(found[first], cfg)
        if why:
            raise ResultsError(
                f"{file}: its network was trained by another config than {first}'s: {why}. A mean "
                "is over splits, seeds or weights of one config"
            )
    if not unknown:
        return []
    return [
        f"note: {', '.join(unknown)}: the config of the training is not at hand, so that it isn't "
        "checked to be the others'"
    ]


def mean(files: Sequence[Path], out: Path) -> str:
    """Average results files, write the mean into ``out``, and return its tables.

    Raises:
        ResultsError: see :func:`lrreid_ext.results.mean_of` and
            :func:`check_networks`.
    """
    contents = {file: Results.load(file) for file in files}
    content = mean_of({str(file): results for file, results in contents.items()})
    notes = check_networks(contents)
    path = out / results_file(content.test_set)
    if path.resolve() in [file.resolve() for file in files]:
        raise ResultsError(f"--out {out}: {path} is one of the results to be averaged")
    content.save(path)
    table = results_table([content], names=["mean"], style="plain")
    return "\n".join([f"{group_table(content)}\n\n{table}", *notes, f"{path} written"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, _, details = (__doc__ or "").partition("\n\n")
    out = argparse.ArgumentParser(
        prog="lrreid splits",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--config-file", metavar="FILE", help="YAML to run on every split")
    out.add_argument(
        "--splits", default="0-9", metavar="N", help="numbers and ranges (default: %(default)s)"
    )
    out.add_argument(
        "--eval-only",
        action="store_true",
        help="don't train; evaluate MODEL.WEIGHTS, trained on another data set, on each split",
    )
    out.add_argument(
        "--num-gpus", "--num-processes", type=int, default=1, dest="processes", metavar="N",
        help="processes on this machine: one per GPU, or any number on a CPU",
    )  # fmt: skip
    out.add_argument(
        "--mean", nargs="+", type=Path, default=[], metavar="FILE",
        help="average these results files, run nothing",
    )  # fmt: skip
    out.add_argument("--out", type=Path, metavar="DIR", help="where --mean writes")
    out.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run and average; 0, or 2 for what a user can put right."""
    cli = parser()
    args = cli.parse_args(argv)
    if bool(args.mean) == bool(args.config_file):
        cli.error("give either --config-file or --mean")
    if args.mean and not args.out:
        cli.error("--mean needs --out, the folder to write into")
    try:
        if args.mean:
            print(mean(args.mean, args.out))
            return 0
        done = run_splits(args)
        if isinstance(done, int):
            return done
        tests, out = done
        folders = [out / f"split_{split}" for split in numbers(args.splits)]
        for name in tests:
            print(mean([folder / results_file(name) for folder in folders], out))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
