"""Configs from YAML files and the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import yaml
from fastreid.config import CfgNode
from fastreid.config import get_cfg as host_cfg

from lrreid_ext.config.defaults import add_config
from lrreid_ext.config.editing import merge, override
from lrreid_ext.devices import device_type
from lrreid_ext.errors import ConfigError
from lrreid_ext.plugins import FILE_SUFFIXES, load_plugins

__all__ = ["get_cfg", "load_cfg"]


def get_cfg(plugins: Sequence[str] = ()) -> CfgNode:
    """A config with the keys of fastreid, ``lrreid_ext``, the bundled projects and ``plugins``."""
    cfg = host_cfg()
    add_config(cfg)
    load_plugins(cfg, plugins)
    return cfg


def load_cfg(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML (with ``_BASE_``), apply ``KEY VALUE`` overrides, and freeze.

    Plugins named in the YAML or in the overrides are imported first, so that their keys exist.

    Raises:
        ConfigError: an unreadable file, an unknown key or a value of the wrong type; the message
            names it, and the nearest key that exists.
    """
    if len(opts) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; {opts[-1]!r} has no partner")
    values = _read(config_file, "--config-file ") if config_file else {}
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == "PLUGINS":
            values["PLUGINS"] = _located(CfgNode._decode_cfg_value(value), "PLUGINS", os.getcwd())
    plugins = values.pop("PLUGINS", [])
    cfg = get_cfg(plugins)
    merge(cfg, values, config_file)
    override(cfg, opts)
    cfg.PLUGINS = plugins
    device_type(cfg.MODEL.DEVICE)
    cfg.freeze()
    return cfg


def _read(path: str, option: str = "") -> dict[str, Any]:
    """The keys of a YAML and of its ``_BASE_``, files in PLUGINS beside the YAML that names them.

    Args:
        path: the YAML.
        option: what named it, for the message.
    """
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "no such file"
        raise ConfigError(f"{option}{path}: {what}")
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds {values!r}"
        raise ConfigError(f"{path}: {what}; a config has keys, such as MODEL and SOLVER")
    folder = os.path.dirname(os.path.abspath(path))
    if "PLUGINS" in values:
        values["PLUGINS"] = _located(values["PLUGINS"], f"{path}: PLUGINS", folder)
    base = values.pop("_BASE_", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: _BASE_: a path is needed, not {base!r}")
    below = _read(os.path.join(folder, os.path.expanduser(base)), f"{path}: _BASE_: ")
    _overlay(below, values, path)
    return below


def _overlay(below: dict[str, Any], values: dict[str, Any], where: str) -> None:
    """Set in ``below`` what ``values`` holds, key by key."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _overlay(below[key], value, f"{where}: {key}")
        elif isinstance(value, dict) and key in below:
            raise ConfigError(f"{where}: {key} holds keys, but {below[key]!r} in its _BASE_")
        else:
            below[key] = value


def _located(names: Any, key: str, folder: str) -> list[str]:
    """Plugins' names, files' paths being made absolute."""
    if not isinstance(names, (list, tuple)):
        raise ConfigError(f"{key}: a list of modules, .py or .yml files is needed, not {names!r}")
    return [
        os.path.normpath(os.path.join(folder, n)) if n.endswith(FILE_SUFFIXES) else n for n in names
    ]
