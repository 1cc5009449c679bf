"""Sections on where the figures come from: configs, data, code, machines, commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lrreid_ext.config import flat_config, get_cfg
from lrreid_ext.data.recipes.base import file_digest
from lrreid_ext.report.blocks import Block, Details, Note, Table
from lrreid_ext.report.context import Context, Found, Rows
from lrreid_ext.report.scored import ScoredRun
from lrreid_ext.results.provenance import config_hash, provenance, relative_path

__all__ = ["differences", "origins"]


def differences(context: Context) -> Found:
    """Config keys in which the runs differ, or in which a single one differs from the defaults."""
    flat = {run.name: flat_config(run.cfg) for run in context.runs}
    names = list(flat)
    if len(names) == 1:
        flat = {"default": flat_config(get_cfg()), **flat}
        names = ["default", *names]
    keys = dict.fromkeys(key for own in flat.values() for key in own)
    skipped = ("OUTPUT_DIR", "MODEL.WEIGHTS", "TEST.HR", "TEST.FACTORS", "MODEL.DEVICE")
    rows = [
        [key, *(flat[name].get(key, "") for name in names)]
        for key in keys
        if key not in skipped and len({flat[name].get(key, "") for name in names}) > 1
    ]
    whole: list[Block] = [
        Details(f"Whole config of {run.name}", text=run.cfg.dump(sort_keys=False))
        for run in context.runs
    ]
    if not rows:
        return [Note("The runs' configs are the same."), *whole]
    what = (
        "Keys in which the runs' configs differ."
        if len(context.runs) > 1
        else "Keys in which the config differs from the defaults."
    )
    return [Table(what, ["key", *names], rows, words=range(len(names) + 1)), *whole]


def origins(context: Context) -> Found:
    """Data, code, machine and commands."""
    test_set = context.test_set
    here = provenance()
    facts: Rows = [
        ["test set", test_set.name],
        ["manifest", test_set.manifest_hash or "none"],
        ["images", str(test_set.files)],
        *([k, str(v)] for k, v in test_set.info.items() if k in ("recipe", "seed", "split")),
        ["distance", ", ".join(dict.fromkeys(r.metric for r in context.results))],
        ["ties", context.results[0].tie_rule],
        ["this page: command", here["command"]],
        ["this page: commit", here["commit"] or "unknown"],
        ["this page: machine", _machine(here["machine"])],
    ]
    blocks: list[Block] = [Table("Data and this page.", ["what", "value"], facts, words=[1])]
    columns = [_origin(run) for run in context.runs]
    rows: Rows = [[what, *(own[what] for own in columns)] for what in columns[0]]
    names = [run.name for run in context.runs]
    blocks.append(
        Table("How the weights came about.", ["what", *names], rows, words=range(len(names) + 1))
    )
    return blocks


def _origin(run: ScoredRun) -> dict[str, str]:
    told = run.run.training
    epochs = f"{told['epochs']} of {told['of']}" if "epochs" in told else ""
    found = {
        "checkpoint": relative_path(os.path.abspath(run.cfg.MODEL.WEIGHTS)),
        "SHA-256": file_digest(run.cfg.MODEL.WEIGHTS),
        "config hash": config_hash(run.cfg),
        "phase": str(told.get("phase", "")),
        "epochs": epochs,
        "seed": str(told.get("seed", "")),
        "commit": told.get("commit", ""),
        "machine": _machine(told.get("machine", {})),
        "command": told.get("command", ""),
    }
    return {what: text or "unknown" for what, text in found.items()}


def _machine(machine: Mapping[str, Any]) -> str:
    if not machine:
        return ""
    gpu = f", {machine['gpus']} x {machine['gpu']}" if "gpu" in machine else ""
    return (
        f"{machine['processors']} x {machine['cpu']}{gpu}, Python {machine['python']}, PyTorch "
        f"{machine['torch']}"
    )
