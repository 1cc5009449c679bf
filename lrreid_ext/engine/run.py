"""Train or evaluate as a config file says, in one process or several."""

from __future__ import annotations

import logging
import os
import pydoc
import sys
from collections.abc import Sequence

import torch
from fastreid.utils import comm
from fastreid.utils.logger import setup_logger
from torch.multiprocessing import ProcessRaisedException

from lrreid_ext.config import CfgNode, get_cfg, load_cfg
from lrreid_ext.devices import device_type, usable_device
from lrreid_ext.engine.launch import launch
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import USER_ERRORS, ConfigError
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.files import write_text

__all__ = ["run_config", "start_log"]

logger = logging.getLogger(__name__)


def run_config(
    config_file: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    evaluate: bool = False,
    resume: bool = False,
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
) -> None:
    """Train by a config, with the evaluations it asks for; or evaluate only.

    Args:
        config_file: the YAML.
        overrides: words ``KEY VALUE ...``.
        evaluate: train nothing; evaluate MODEL.WEIGHTS, or OUTPUT_DIR's last checkpoint.
        resume: continue from OUTPUT_DIR's last checkpoint.
        processes, machines, machine_rank, url: see :func:`lrreid_ext.engine.launch.launch`.

    Raises:
        UserError: the config, the weights or the data can't be used.
    """
    cfg = load_cfg(str(config_file), overrides)
    gpu = device_type(cfg.MODEL.DEVICE) == "cuda" and torch.cuda.is_available()
    backend = "nccl" if gpu else "gloo"
    try:
        launch(_run, processes, machines, machine_rank, url, (cfg, evaluate, resume), backend)
    except ProcessRaisedException as error:
        # The last line of its message is `module.Class: text` of the error in the other process.
        name, _, text = str(error).strip().splitlines()[-1].partition(": ")
        kind = pydoc.locate(name)
        if isinstance(kind, type) and issubclass(kind, USER_ERRORS):
            raise kind(text) from error
        raise


def _run(cfg: CfgNode, evaluate: bool, resume: bool) -> None:
    """What each process does."""
    get_cfg(cfg.PLUGINS)  # a process started for it has imported no plugin yet
    cfg = _prepare(cfg, evaluate)
    if evaluate:
        evaluate_trained(cfg)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()


def _prepare(cfg: CfgNode, evaluate: bool) -> CfgNode:
    """Choose the device, start the log, and write the config of a training beside it."""
    cfg.defrost()
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    if os.path.exists(cfg.OUTPUT_DIR) and not os.path.isdir(cfg.OUTPUT_DIR):
        raise ConfigError(f"OUTPUT_DIR: {cfg.OUTPUT_DIR} is a file, not a folder")
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    start_log(cfg.OUTPUT_DIR)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not evaluate
    logger.info("%s, torch %s, on %s", sys.argv[0], torch.__version__, cfg.MODEL.DEVICE)
    if comm.is_main_process() and not evaluate:
        # Unsorted: the order of PHASES is the order they run in.
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump(sort_keys=False))
    return cfg


def start_log(output_dir: str) -> None:
    """Log to the screen and to ``log.txt`` in this run's folder, and no longer to an earlier's."""
    setup_logger.cache_clear()
    for name in ("fastreid", "lrreid_ext"):
        logging.getLogger(name).handlers.clear()
        setup_logger(output_dir, comm.get_rank(), name=name)
