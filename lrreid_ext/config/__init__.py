"""Configs: fastreid's keys, ours and those of plugins; files, overrides and phases."""

from fastreid.config import CfgNode

from lrreid_ext.config.editing import (
    changed,
    difference,
    flat_config,
    keys_of,
    merge,
    widened,
)
from lrreid_ext.config.loading import get_cfg, load_cfg
from lrreid_ext.config.phases import Phase, phase_at, phase_cfg, phases_done, phases_of

__all__ = [
    "CfgNode",
    "Phase",
    "changed",
    "difference",
    "flat_config",
    "get_cfg",
    "keys_of",
    "load_cfg",
    "merge",
    "phase_at",
    "phase_cfg",
    "phases_done",
    "phases_of",
    "widened",
]
