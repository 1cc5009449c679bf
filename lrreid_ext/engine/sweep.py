"""Several trainings by one plan: each is trained and evaluated unless that has been done, and
repetitions over random splits or seeds are averaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrreid_ext.config import CfgNode, changed, difference, flat_config, load_cfg
from lrreid_ext.data.recipes import RECIPE_REGISTRY, build_recipe
from lrreid_ext.engine.run import run_config
from lrreid_ext.errors import ConfigError, ResultsError
from lrreid_ext.files import write_json
from lrreid_ext.registry import registered
from lrreid_ext.results import Results, mean_of, results_file
from lrreid_ext.trained import weights_path
from lrreid_ext.weights import CONFIG_FILE

__all__ = ["Training", "average", "complete", "repetitions"]

#: In a training's folder: what its results come from.
RECORD = "evaluated.json"


@dataclass(frozen=True)
class Training:
    """One training with its evaluation.

    Attributes:
        name: what the screen and tables call it.
        config: YAML to run.
        options: overrides, by key; values that are no strings are written as Python has them.
        folder: OUTPUT_DIR.
        evaluate_only: nothing is trained; MODEL.WEIGHTS is evaluated.
    """

    name: str
    config: Path
    options: Mapping[str, Any]
    folder: Path
    evaluate_only: bool = False

    @property
    def overrides(self) -> list[str]:
        """The options as words ``KEY VALUE ...``, OUTPUT_DIR among them."""
        options = {**self.options, "OUTPUT_DIR": str(self.folder)}
        return [
            word
            for key, value in options.items()
            for word in (key, value if isinstance(value, str) else repr(value))
        ]

    def cfg(self) -> CfgNode:
        """The config.

        Raises:
            ConfigError: it can't be used, it tests on no data set, or the folder holds a training
                by another config.
        """
        cfg = load_cfg(str(self.config), self.overrides)
        if not cfg.DATASETS.TESTS:
            raise ConfigError(f"{self.name}: DATASETS.TESTS: is empty; there is nothing to compare")
        file = self.folder / CONFIG_FILE
        begun = file.is_file() and (self.folder / "last_checkpoint").is_file()
        if not self.evaluate_only and begun and (why := difference(load_cfg(str(file)), cfg)):
            raise ConfigError(
                f"{self.name}: the run in {self.folder} was made with another config: {why}. "
                "Remove that folder, or choose another"
            )
        return cfg

    def results(self, test: str) -> Path:
        """The results file of one test set."""
        return self.folder / results_file(test)


def repetitions(
    training: Training, splits: Sequence[int], seeds: Sequence[int] = ()
) -> list[Training]:
    """A training for each split and seed, in a folder below the training's; no splits and no
    seeds: the training itself.

    Args:
        training: to repeat.
        splits: for the option ``split`` of every data set that has one.
        seeds: for the key SEED.

    Raises:
        ConfigError: a data set that is tested on has no splits.
    """
    out = [training]
    if splits:
        out = [_at(each, f"split {k}", _split(each, k)) for each in out for k in splits]
    if seeds:
        out = [_at(each, f"seed {k}", {"SEED": k}) for each in out for k in seeds]
    return out


def _at(training: Training, name: str, options: Mapping[str, Any]) -> Training:
    return replace(
        training,
        name=f"{training.name}, {name}",
        options={**training.options, **options},
        folder=training.folder / name.replace(" ", "_"),
    )


def _split(training: Training, split: int) -> dict[str, Any]:
    """Options that choose a split of every data set that has splits."""
    data = load_cfg(str(training.config), training.overrides).DATASETS
    options = {}
    for name in dict.fromkeys([*data.NAMES, *data.TESTS]):
        if registered(RECIPE_REGISTRY, name) and "split" in build_recipe(name).options():
            options[f"DATASETS.OPTIONS.{name}.split"] = split
        elif name in data.TESTS:
            raise ConfigError(
                f"DATASETS.TESTS: {name} has no option 'split', so that there is nothing to "
                "average over"
            )
    return options


# ---------------------------------------------------------------- train and evaluate
def complete(training: Training, processes: int = 1) -> list[str]:
    """Train and evaluate, unless that has been done.

    A run that was interrupted is resumed. Results by other TEST keys or weights are made again;
    evaluated.json in the folder says which they come from.

    Returns:
        The names of the test sets.

    Raises:
        UserError: the training or its evaluation fails, or see :meth:`Training.cfg`.
    """
    evaluated, cfg = training, training.cfg()
    if not training.evaluate_only:
        # Evaluate what the training made, not what it began with.
        options = {**training.options, "MODEL.WEIGHTS": ""}
        evaluated, cfg = replace(training, options=options), changed(cfg, ("MODEL.WEIGHTS", ""))
    done = _finished(training, cfg)
    why = _evaluated_otherwise(training, cfg) if done else ""
    tests = list(cfg.DATASETS.TESTS)
    if done and not why:
        print(f"== {training.name}: done before, kept in {training.folder}", flush=True)
        return tests
    again = f"evaluated again: {why}" if why else f"into {training.folder}"
    print(f"== {training.name}, {again}", flush=True)
    if not training.evaluate_only and not (training.folder / "model_final.pth").is_file():
        resume = (training.folder / "last_checkpoint").is_file()
        run_config(training.config, training.overrides, resume=resume, processes=processes)
    # Training evaluates only where TEST.EVAL_PERIOD says so.
    if why or not _finished(training, cfg):
        run_config(evaluated.config, evaluated.overrides, evaluate=True, processes=processes)
    write_json(training.folder / RECORD, _evaluation(training, cfg))
    return tests


def _finished(training: Training, cfg: CfgNode) -> bool:
    files = [training.results(test) for test in cfg.DATASETS.TESTS]
    if not training.evaluate_only:
        files.append(training.folder / "model_final.pth")
    return all(file.is_file() for file in files)


def _evaluation(training: Training, cfg: CfgNode) -> dict[str, Any]:
    """What results come from: the config, and digests of the weights and of the results files."""
    weights = cfg.MODEL.INIT.WEIGHTS if cfg.TEST.INITIAL else weights_path(cfg)
    results = {test: _digest(training.results(test)) for test in cfg.DATASETS.TESTS}
    return {"config": flat_config(cfg), "weights": _digest(Path(weights)), "results": results}


def _digest(path: Path) -> str:
    """SHA-256 of a file; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _evaluated_otherwise(training: Training, cfg: CfgNode) -> str:
    """Why the results in the folder are not those that ``cfg`` would give; "" if they are."""
    try:
        record = json.loads((training.folder / RECORD).read_text(encoding="utf-8"))
        config, weights, results = (record[key] for key in ("config", "weights", "results"))
    except FileNotFoundError:
        # Of a training, its checkpoint and config tell the same.
        return f"there is no {RECORD}" if training.evaluate_only else ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{RECORD} can't be read"
    now = _evaluation(training, cfg)
    if why := difference(CfgNode(config), cfg):
        return why
    if weights != now["weights"]:
        return f"{cfg.MODEL.WEIGHTS or 'the checkpoint'} has other weights now"
    return "" if results == now["results"] else f"the results are not those of {RECORD}"


# ---------------------------------------------------------------- mean
def average(files: Sequence[Path], out: Path) -> tuple[Results, list[str]]:
    """Average results files, and write the mean into ``out`` as a results file like any other.

    Returns:
        The mean, and notes for the user.

    Raises:
        ResultsError: results of other data, galleries or protocols, of networks that were trained
            by other configs, or ``out`` would overwrite one of ``files``.
    """
    results = {file: Results.load(file) for file in files}
    mean = mean_of({str(file): each for file, each in results.items()})
    notes = _check_networks(results)
    path = out / results_file(mean.test_set)
    if path.resolve() in [file.resolve() for file in files]:
        raise ResultsError(f"--out {out}: {path} is one of the results to be averaged")
    mean.save(path)
    return mean, [*notes, f"written: {path}"]


def _check_networks(results: Mapping[Path, Results]) -> list[str]:
    """Refuse a mean over networks that were trained by different configs.

    Returns:
        A note of the results whose config isn't at hand, if there are any.
    """
    checkpoints = {each.checkpoint for each in results.values()}
    if len(checkpoints) == 1 and "" not in checkpoints:
        return []  # one network
    first: tuple[Path, CfgNode] | None = None
    unchecked = []
    for file, each in results.items():
        path = _training_config(file, each)
        if path is None:
            unchecked.append(str(file))
            continue
        cfg = _trained_as(path)
        first = first or (file, cfg)
        if why := difference(first[1], cfg):
            raise ResultsError(
                f"{file}: its network was trained by another config than {first[0]}'s: {why}. A "
                "mean is over splits, seeds or weights of one config"
            )
    if not unchecked:
        return []
    return [f"note: {', '.join(unchecked)}: the config of the training is not at hand; not checked"]


def _training_config(file: Path, results: Results) -> Path | None:
    """The config that the weights of a results file were trained with, or None if it isn't at hand.

    It is beside the checkpoint; of weights that were scored while in training, beside the file, or
    above it in the folder of a phase.
    """
    if results.checkpoint:
        checkpoint = Path(results.checkpoint)
        beside = file.parent / checkpoint.name
        folders = [path.parent for path in (checkpoint, beside) if path.is_file()]
    else:
        folders = [file.parent]
        if results.training and file.parent.name == results.training.phase:
            folders.append(file.parent.parent)
    return next((f / CONFIG_FILE for f in folders if (f / CONFIG_FILE).is_file()), None)


def _trained_as(path: Path) -> CfgNode:
    """A training's config without what may differ among repetitions: seeds, splits, files of
    weights, and all of testing, which results files tell themselves."""
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
