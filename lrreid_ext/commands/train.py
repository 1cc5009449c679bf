"""Train a model by the phases of its config, and evaluate it.

lrreid train --config-file projects/PSHRNet/synth.yml SOLVER.BASE_LR 0.01 PHASES.student.EPOCHS 5
lrreid train --config-file projects/PSHRNet/synth.yml --resume
"""

from __future__ import annotations

import argparse

from lrreid_ext.engine.run import run_config
from lrreid_ext.options import add_overrides, add_processes

INTERRUPTED = "--resume goes on from the last checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, named as in fastreid and detectron2."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML to run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--eval-only", action="store_true", help="train nothing, evaluate MODEL.WEIGHTS"
    )
    add_processes(parser)
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N")
    parser.add_argument("--dist-url", default="auto", help="where several machines meet")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Train or evaluate."""
    run_config(
        args.config_file, args.opts, evaluate=args.eval_only, resume=args.resume,
        processes=args.processes, machines=args.num_machines, machine_rank=args.machine_rank,
        url=args.dist_url,
    )  # fmt: skip
