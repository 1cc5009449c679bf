"""The command line of training and evaluation."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import torch
from fastreid.utils import comm
from fastreid.utils.logger import setup_logger
from torch.multiprocessing import ProcessRaisedException

from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.data.recipes import ManifestError, RecipeError, recipe_named
from lrreid_ext.devices import device_type, usable_device
from lrreid_ext.engine.checkpoint import WeightsError
from lrreid_ext.engine.launch import launch
from lrreid_ext.engine.trainer import Trainer, eval_only
from lrreid_ext.errors import ConfigError, ImageError
from lrreid_ext.files import write_text
from lrreid_ext.plugins import PluginError

logger = logging.getLogger(__name__)

# What a user can put right; anything else is a fault of the program and shows where it happened.
USER_ERRORS = (
    ConfigError,
    WeightsError,
    ImageError,
    PluginError,
    RecipeError,
    ManifestError,
    FileNotFoundError,
    PermissionError,
)


def data_set_name(text: str) -> str:
    """A command's argument that names a data set: as it is, or the name in a recipe's YAML file.

    Raises:
        argparse.ArgumentTypeError: a file that is no recipe.
    """
    try:
        return recipe_named(text)
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_data_set(parser: argparse.ArgumentParser, default: str, what: str = "") -> None:
    """Add ``--data-set NAME``; ``default`` says what is taken without it."""
    parser.add_argument(
        "--data-set", default="", type=data_set_name, metavar="NAME",
        help=f"{what}a name, or a recipe's YAML file (default: {default})",
    )  # fmt: skip


def parser(prog: str = "lrreid train", evaluates: bool = False) -> argparse.ArgumentParser:
    """Options of ``tools/train_net.py``, named as in fastreid and detectron2.

    Args:
        prog: the command's name.
        evaluates: it only evaluates, and has no options of training.
    """
    what = "Train a model by the phases of its config, or evaluate one."
    example = "SOLVER.BASE_LR 0.01 PHASES.student.EPOCHS 5"
    if evaluates:
        what = (
            "Evaluate a trained model: the config's MODEL.WEIGHTS, or else the last checkpoint in "
            "its OUTPUT_DIR. Figures are printed, and written beside it."
        )
        example = "MODEL.WEIGHTS model_final.pth TEST.TRIALS 20"
    out = argparse.ArgumentParser(
        prog=prog,
        description=what,
        epilog=f"Overrides are KEY VALUE pairs, e.g. {example}",
    )
    out.add_argument("--config-file", required=True, metavar="FILE", help="YAML to run")
    if evaluates:
        out.set_defaults(resume=False, eval_only=True)
    else:
        out.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
        out.add_argument(
            "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, don't train"
        )
    out.add_argument(
        "--num-gpus", "--num-processes", type=int, default=1, dest="processes", metavar="N",
        help="processes on this machine: one per GPU, or any number on a CPU",
    )  # fmt: skip
    out.add_argument("--num-machines", type=int, default=1, metavar="N")
    out.add_argument("--machine-rank", type=int, default=0, metavar="N")
    out.add_argument("--dist-url", default="auto", help="where several machines meet")
    out.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides")
    return out


def run(args: argparse.Namespace) -> None:
    """Train or evaluate as the options say, in one process of possibly several."""
    cfg = setup(args)
    if args.eval_only:
        eval_only(cfg)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(args.resume)
    trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, choose the device, start the log and keep the config beside it."""
    cfg = load_cfg(args.config_file, args.opts)
    cfg.defrost()
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    if os.path.exists(cfg.OUTPUT_DIR) and not os.path.isdir(cfg.OUTPUT_DIR):
        raise ConfigError(f"OUTPUT_DIR: {cfg.OUTPUT_DIR} is a file, not a folder")
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    start_log(cfg.OUTPUT_DIR)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    logger.info("%s, torch %s, on %s", sys.argv[0], torch.__version__, cfg.MODEL.DEVICE)
    if comm.is_main_process() and not args.eval_only:
        # Unsorted: the order of PHASES is the order they run in.
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump(sort_keys=False))
    return cfg


def start_log(output_dir: str) -> None:
    """Log to the screen and to ``log.txt`` in this run's folder, and no longer to an earlier's."""
    setup_logger.cache_clear()
    for name in ("fastreid", "lrreid_ext"):
        logging.getLogger(name).handlers.clear()
        setup_logger(output_dir, comm.get_rank(), name=name)


def main(
    argv: Sequence[str] | None = None, prog: str = "lrreid train", evaluates: bool = False
) -> int:
    """Entry point; 0, or 2 with one clear message for what a user can put right.

    Args:
        argv: the command line; by default the process's.
        prog, evaluates: as for :func:`parser`.
    """
    args = parser(prog, evaluates).parse_args(argv)
    # fastreid's way to make tensors; said once by every loader worker.
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    try:
        # Read here too: most mistakes then show before any process is started.
        cfg = load_cfg(args.config_file, args.opts)
        gpu = device_type(cfg.MODEL.DEVICE) == "cuda" and torch.cuda.is_available()
        launch(
            run,
            args.processes,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (args,),
            backend="nccl" if gpu else "gloo",
        )
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProcessRaisedException as error:
        # One of several processes failed; its own traceback is in the message.
        last = str(error).strip().splitlines()[-1]
        known = any(last.split(":")[0].endswith(kind.__name__) for kind in USER_ERRORS)
        print(f"error: {last}" if known else str(error), file=sys.stderr)
        return 2 if known else 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
