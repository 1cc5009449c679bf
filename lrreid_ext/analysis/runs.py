"""Trained models by the folder they were trained in."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.devices import usable_device
from lrreid_ext.engine.trainer import load_trained
from lrreid_ext.errors import ConfigError
from lrreid_ext.hub import HUB, download

__all__ = [
    "Run",
    "changed",
    "check_same",
    "difference",
    "flat_config",
    "load_run",
    "run_cfg",
    "run_names",
    "run_parser",
    "run_path",
]

CONFIG_FILE = "config.yaml"

# Keys that say where and how fast a run is made, and change nothing in it.
_PLACE = re.compile(
    r"OUTPUT_DIR|DATASETS\.(ROOT|SOURCE)|MODEL\.DEVICE|.*\.NUM_WORKERS|SOLVER\.LOG_PERIOD"
    r"|SOLVER\.CHECKPOINT_PERIOD|PLUGINS|MODEL\.HEADS\.NUM_CLASSES"
)


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        name: what tables and legends call it.
        cfg: the config it was trained with, MODEL.WEIGHTS being what is loaded here.
        model: on MODEL.DEVICE, in evaluation mode.
        training: how the weights came about, or {}.
    """

    name: str
    cfg: CfgNode
    model: nn.Module
    training: dict[str, Any]


def run_parser(prog: str, doc: str | None, several: bool = True) -> argparse.ArgumentParser:
    """The command line of a tool over several runs, with ``runs`` and ``opts`` in it.

    Args:
        prog: the tool's name.
        doc: its ``__doc__``; the first paragraph describes it, the rest stands below the options.
        several: whether it takes more than one run; otherwise it's ``run``, a string.
    """
    description, _, details = (doc or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "runs" if several else "run", **kind, metavar="[NAME=]RUN",
        help="folder that tools/train_net.py trained into (its last checkpoint is taken), a "
        "checkpoint in it, or hub:owner/name; NAME stands in tables and figures",
    )  # fmt: skip
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="overrides of all runs' configs; behind the RUNs",
    )
    return parser


def run_names(texts: Sequence[str]) -> list[str]:
    """What the runs are called: the name given, or else the last part of the path.

    Raises:
        ConfigError: two runs of one name.
    """
    names = [_split(text)[0] for text in texts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two runs are called {twice[0]!r}; call one of them NAME=RUN")
    return names


def run_path(text: str) -> Path:
    """The path in ``[NAME=]PATH``."""
    return _split(text)[1]


def run_cfg(text: str, opts: Sequence[str] = (), device: str = "") -> CfgNode:
    """The config that a run was trained with.

    Args:
        text: ``[NAME=]FOLDER`` or ``[NAME=]CHECKPOINT``, with the folder's ``config.yaml``; or
            ``[NAME=]hub:owner/name[@revision]`` of the Hugging Face hub, downloaded at need. A
            folder without checkpoints may hold one ``.safetensors`` file.
        opts: ``KEY VALUE`` overrides.
        device: overrules MODEL.DEVICE; "" leaves it.

    Returns:
        The config with OUTPUT_DIR the folder, MODEL.WEIGHTS the checkpoint or "" for the folder's
        last one, and a MODEL.DEVICE that this machine has.

    Raises:
        FileNotFoundError: no such folder or checkpoint, or no ``config.yaml``.
        ConfigError: a config that can't be used, or a hub repository that can't be had.
    """
    path = _split(text)[1]
    if str(path).startswith(HUB):
        path = download(str(path))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run; name the OUTPUT_DIR of a training")
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: holds no {CONFIG_FILE}; name a folder that tools/train_net.py trained into"
        )
    cfg = load_cfg(str(file), opts)
    # The weights that training began with are not those that it made.
    weights = _shared_weights(path) if path.is_dir() else str(path)
    return changed(
        cfg,
        ("OUTPUT_DIR", str(folder)),
        ("MODEL.WEIGHTS", weights),
        ("MODEL.DEVICE", usable_device(device or cfg.MODEL.DEVICE)),
    )


def _shared_weights(folder: Path) -> str:
    """The file in a folder of weights to share; "" in one that was trained into."""
    if (folder / "last_checkpoint").is_file():
        return ""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise ConfigError(f"{folder}: holds several files of weights ({names}); name one")
    return str(files[0]) if files else ""


def load_run(text: str, opts: Sequence[str] = (), device: str = "") -> Run:
    """A run's config and trained model; see :func:`run_cfg`.

    Raises:
        WeightsError: the checkpoint isn't for this model.
    """
    cfg, model, training = load_trained(run_cfg(text, opts, device))
    return Run(_split(text)[0], cfg, model, training)


def changed(cfg: CfgNode, *settings: tuple[str, Any]) -> CfgNode:
    """A frozen copy of a config with some keys set, each by its dotted name."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in settings:
        node = cfg
        *branches, leaf = key.split(".")
        for branch in branches:
            node = node[branch]
        node[leaf] = value
    cfg.freeze()
    return cfg


def flat_config(cfg: CfgNode, prefix: str = "") -> dict[str, str]:
    """Every key's value as text, by its dotted name."""
    found: dict[str, str] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            found |= flat_config(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(list(value) if isinstance(value, tuple) else value)
    return found


def difference(made: CfgNode, wanted: CfgNode) -> str:
    """The first key in which two configs would train or evaluate differently, with both values; ""
    if there is none."""
    old, new = flat_config(made), flat_config(wanted)
    for key in dict.fromkeys([*new, *old]):
        if not _PLACE.fullmatch(key) and old.get(key) != new.get(key):
            return f"{key} was {old.get(key, 'not set')}, and now is {new.get(key, 'not set')}"
    return ""


def check_same(folder: Path, cfg: CfgNode, what: str, way_out: str) -> None:
    """Refuse to take a training that stands in a folder, or its beginning, for another one.

    Args:
        folder: may hold a training.
        cfg: what is to be trained there.
        what: is to be trained there, for the message.
        way_out: what to do, beside removing the folder, for the message.

    Raises:
        ConfigError: the training was made with another config.
    """
    file = folder / CONFIG_FILE
    if not file.is_file() or not (folder / "last_checkpoint").is_file():
        return
    why = difference(load_cfg(str(file)), cfg)
    if why:
        raise ConfigError(
            f"{what}: the run in {folder} was made with another config: {why}. Remove that folder, "
            f"or {way_out}"
        )


def _split(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    # A path may hold the sign itself.
    if not sign or not name or Path(text).exists():
        name, path = "", text
    where = Path(path)
    if name:
        return name, where
    if path.startswith(HUB):
        return path.removeprefix(HUB).partition("@")[0], where
    own = where.resolve()
    return (own.name if own.is_dir() else f"{own.parent.name}/{own.stem}"), where
