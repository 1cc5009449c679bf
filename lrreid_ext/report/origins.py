"""Sections on where the figures come from: configs, data, code, machines, commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lrreid_ext.config import flat_config, get_cfg
from lrreid_ext.data.recipes import file_digest
from lrreid_ext.report.blocks import Block, Details, Note, Table
from lrreid_ext.report.context import Content, Context, Rows
from lrreid_ext.report.scored import ScoredRun
from lrreid_ext.results.provenance import config_hash, provenance, relative_path

__all__ = ["differences", "origins"]


def differences(context: Context) -> Content:
    """Config keys in which the runs differ, or in which a single one differs from the defaults."""
    flat = {run.name: flat_config(run.cfg) for run in context.runs}
    if len(flat) == 1:
        flat = {"default": flat_config(get_cfg()), **flat}
    names = list(flat)
    keys = dict.fromkeys(key for keys in flat.values() for key in keys)
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
    caption = (
        "Keys in which the runs' configs differ."
        if len(context.runs) > 1
        else "Keys in which the config differs from the defaults."
    )
    return [Table(caption, ["key", *names], rows, words=range(len(names) + 1)), *whole]


def origins(context: Context) -> Content:
    """Data, code, machine and commands."""
    test_set = context.test_set
    page = provenance()
    facts: Rows = [
        ["test set", test_set.name],
        ["manifest", test_set.manifest_hash or "none"],
        ["images", str(test_set.files)],
        *([k, str(v)] for k, v in test_set.info.items() if k in ("recipe", "seed", "split")),
        ["distance", ", ".join(dict.fromkeys(run.results.metric for run in context.runs))],
        ["ties", context.runs[0].results.tie_rule],
        ["this page: command", page["command"]],
        ["this page: commit", page["commit"] or "unknown"],
        ["this page: machine", _machine(page["machine"])],
    ]
    blocks: list[Block] = [Table("Data and this page.", ["what", "value"], facts, words=[1])]
    columns = [_origin(run) for run in context.runs]
    rows: Rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    names = [run.name for run in context.runs]
    blocks.append(
        Table("How the weights were trained.", ["what", *names], rows, words=range(len(names) + 1))
    )
    return blocks


def _origin(run: ScoredRun) -> dict[str, str]:
    training = run.training
    epochs = "" if training.epochs is None else f"{training.epochs} of {training.of}"
    facts = {
        "checkpoint": relative_path(os.path.abspath(run.cfg.MODEL.WEIGHTS)),
        "SHA-256": file_digest(run.cfg.MODEL.WEIGHTS),
        "config hash": config_hash(run.cfg),
        "phase": training.phase,
        "epochs": epochs,
        "seed": "" if training.seed is None else str(training.seed),
        "commit": training.commit,
        "machine": _machine(training.machine),
        "command": training.command,
    }
    return {name: text or "unknown" for name, text in facts.items()}


def _machine(machine: Mapping[str, Any] | None) -> str:
    if not machine:
        return ""
    gpu = f", {machine['gpus']} x {machine['gpu']}" if "gpu" in machine else ""
    return (
        f"{machine['processors']} x {machine['cpu']}{gpu}, Python {machine['python']}, PyTorch "
        f"{machine['torch']}"
    )
