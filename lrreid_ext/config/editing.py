"""Changes to a config, and differences between two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastreid.config import CfgNode

from lrreid_ext.config.defaults import EMPTY_LISTS_OF_NUMBERS
from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest

__all__ = ["changed", "difference", "flat_config", "keys_of", "merge", "override", "widened"]


def keys_of(cfg: CfgNode) -> list[str]:
    """The dotted names of all keys, those that hold further keys too."""
    keys = []
    for key, value in cfg.items():
        keys.append(key)
        if isinstance(value, CfgNode):
            keys += [f"{key}.{inner}" for inner in keys_of(value)]
    return keys


def merge(cfg: CfgNode, raw: dict[str, Any], where: str) -> None:
    """Set the keys of ``cfg``, which isn't frozen, that ``raw`` holds.

    Args:
        cfg: what is changed.
        raw: branches and values as a YAML has them.
        where: where they come from, for the message.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    try:
        cfg.merge_from_other_cfg(CfgNode(widened(raw, cfg)))
    except (KeyError, ValueError, AssertionError) as error:
        text = str(error.args[0]) if error.args else str(error)
        if isinstance(error, KeyError) and ":" in text:
            key = text.rsplit(":", 1)[1].strip()
            text = f"{key} is not a config key.{suggest(key, keys_of(cfg))}"
        raise ConfigError(f"{where}: {text}") from error


def override(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Set the keys of ``cfg``, which isn't frozen, that a command line names.

    Entries of a phase (``PHASES.student.SOLVER.BASE_LR``) and of a named optimiser, and a recipe's
    options, need not exist yet.

    Args:
        cfg: what is changed.
        opts: keys and values in turn.

    Raises:
        ConfigError: an unknown key, an unknown phase, or a value of the wrong type.
    """
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        if _set_free(cfg, key, text):
            continue
        default: Any = cfg
        for part in key.split("."):
            default = default.get(part) if isinstance(default, CfgNode) else None
        try:
            cfg.merge_from_list([key, _widened_value(key, text, default)])
        except (KeyError, ValueError, AssertionError) as error:
            keys = keys_of(cfg)
            hint = str(error)
            if key not in keys:
                hint = f"{key} is not a config key.{suggest(key, keys)}"
            raise ConfigError(f"command line: {hint}") from error


# Branches that hold any key, and how many parts the name of an entry has at least.
_FREE = {"PHASES.": 3, "DATASETS.OPTIONS.": 4, "SOLVER.OPTIMIZERS.": 4}


def _set_free(cfg: CfgNode, key: str, text: str) -> bool:
    """Set a key of a branch that holds any; whether ``key`` is one."""
    parts = key.split(".")
    if not any(key.startswith(start) and len(parts) >= least for start, least in _FREE.items()):
        return False
    if parts[0] == "PHASES" and parts[1] not in cfg.PHASES:
        raise ConfigError(
            f"command line: {key}: no phase is called {parts[1]!r}."
            f"{suggest(parts[1], cfg.PHASES)} Phases: {', '.join(cfg.PHASES) or 'none'}"
        )
    node, value = cfg, CfgNode._decode_cfg_value(text)
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = CfgNode()
        node = node[part]
    node[parts[-1]] = CfgNode(value) if isinstance(value, dict) else value
    return True


def widened(raw: dict[str, Any], node: CfgNode, where: str = "") -> dict[str, Any]:
    """``raw`` with whole numbers made floats where ``node`` holds a float, as people write them.

    Args:
        raw: branches and values as a YAML has them.
        node: of a config.
        where: its key, with a dot behind it.

    Raises:
        ValueError: something else in a list of numbers or of names; names the key.
    """
    out: dict[str, Any] = {}
    for key, value in raw.items():
        default = node.get(key)
        if isinstance(value, dict) and isinstance(default, CfgNode):
            out[key] = widened(value, default, f"{where}{key}.")
        elif isinstance(default, CfgNode) and value is not None:
            raise ValueError(f"{where}{key}: holds keys of its own, not {value!r}")
        else:
            out[key] = _widened_value(f"{where}{key}", value, default)
    return out


def _widened_value(key: str, value: Any, default: Any) -> Any:
    # A text may be Python's way to write a value: NAMES: ("Market1501",) in fastreid's YAMLs.
    read = CfgNode._decode_cfg_value(value)
    if isinstance(default, float) and type(read) is int:
        return float(read)
    if isinstance(default, (list, tuple)) and isinstance(read, str) and read.startswith("["):
        raise ValueError(f"{key}: {read} can't be read as a list; numbers are written as 2 or 0.5")
    if isinstance(default, (list, tuple)) and isinstance(read, str):
        raise ValueError(f"{key}: a list is needed, such as \"['{read}']\"")
    if isinstance(default, (list, tuple)) and isinstance(read, (list, tuple)):
        if all(map(_is_number, default)) if default else key in EMPTY_LISTS_OF_NUMBERS:
            kind, wrong = "numbers", [one for one in read if not _is_number(one)]
        elif default and all(isinstance(one, str) for one in default):
            kind, wrong = "names", [one for one in read if not isinstance(one, str)]
        else:
            return value
        if wrong:
            raise ValueError(f"{key}: {kind} are needed, not {wrong[0]!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Keys that say where and how fast a run is made, and change nothing in it.
_PLACE = re.compile(
    r"OUTPUT_DIR|DATASETS\.(ROOT|SOURCE)|MODEL\.DEVICE|.*\.NUM_WORKERS|SOLVER\.LOG_PERIOD"
    r"|SOLVER\.CHECKPOINT_PERIOD|PLUGINS|MODEL\.HEADS\.NUM_CLASSES"
)


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
    values: dict[str, str] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            values |= flat_config(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = str(list(value) if isinstance(value, tuple) else value)
    return values


def difference(old_cfg: CfgNode, new_cfg: CfgNode) -> str:
    """The first key in which two configs would train or evaluate differently, with both values; ""
    if there is none."""
    old, new = flat_config(old_cfg), flat_config(new_cfg)
    for key in dict.fromkeys([*new, *old]):
        if not _PLACE.fullmatch(key) and old.get(key) != new.get(key):
            return f"{key} was {old.get(key, 'not set')}, and now is {new.get(key, 'not set')}"
    return ""
