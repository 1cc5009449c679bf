#!/usr/bin/env python3
"""Training each system at full size: images per second, and what mixed precision makes of it.

Each system trains by its own YAML for Market-1501, in a process of its own, in the last of its
phases (the joint one), on rendered people as large as Market-1501's: loading, LR copies and the
optimisers' steps included. Weights are random, nothing is downloaded; CSR-GAN's losses that need
VGG-19 are switched off. Of each precision some iterations warm up and are not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fastreid.utils.events import EventStorage
from tabulate import tabulate

from lrreid_ext import build_dataset
from lrreid_ext.config import load_cfg
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.modeling.contract import PreparesTraining
from lrreid_ext.results.provenance import provenance
from shared import (
    MEGABYTE,
    BenchmarkError,
    PeakMemory,
    command_line,
    in_fresh_process,
    machine_line,
    save,
)

ROOT = Path(__file__).resolve().parents[1]
# A system's project, and what its YAML needs to run without files from elsewhere.
SYSTEMS: dict[str, list[str]] = {
    "SING": [],
    "CSRGAN": ["CSRGAN.VGG_WEIGHT", "0", "CSRGAN.COMMON_WEIGHT", "0"],
    "FFSR_RIFE": [],
    "RAIN": [],
    "PSHRNet": [],
}
DATA_SET = "synth_pedestrians"
# Of its images, as large as Market-1501's.
PEOPLE = {"identities": 200, "cameras": 4, "shots": 4, "height": 128, "width": 64}
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "float16", "bfloat16")}


def train(system: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time training steps of one system in this process.

    Returns:
        ``seconds`` of each counted iteration; ``waited``, those that it waited for images;
        ``images`` in a batch and their ``size``; ``peak_bytes`` beyond the weights; the last
        ``loss``; the ``phase``.
    """
    options = [
        "DATASETS.NAMES", f"['{DATA_SET}']", "DATASETS.TESTS", "[]",
        "DATASETS.ROOT", args.root, "OUTPUT_DIR", args.work,
        "MODEL.DEVICE", args.device, "MODEL.BACKBONE.PRETRAIN", "False",
        "DATALOADER.NUM_WORKERS", str(args.workers), "SEED", str(args.seed),
        "TEST.EVAL_PERIOD", "0", *SYSTEMS[system],
    ]  # fmt: skip
    for key, value in PEOPLE.items():
        options += [f"DATASETS.OPTIONS.{DATA_SET}.{key}", str(value)]
    if precision != "float32":
        options += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", precision]
    cfg = load_cfg(str(ROOT / "projects" / system / "mlr_market.yml"), options)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    trainer = Trainer(cfg)
    trainer._hooks.clear()  # nothing but training: no files, no evaluation
    last = trainer.phases[-1]
    trainer.epoch, trainer.iter = last.start, last.start * trainer.iters_per_epoch
    seconds: list[float] = []
    waited: list[float] = []
    with EventStorage(trainer.iter) as trainer.storage:
        if last.start:  # what the first phase does when training begins
            for module in trainer.raw_model.modules():
                if isinstance(module, PreparesTraining):
                    module.prepare(trainer.data_loader.dataset)
        trainer.before_epoch()
        peak = PeakMemory(args.device)
        for step in range(1, args.warm_up + args.iterations + 1):
            start = time.perf_counter()
            trainer.run_step()
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            waited.append(trainer.storage.latest()["data_time"][0])
            trainer.iter += 1
            trainer.storage.step()
            if step % trainer.iters_per_epoch == 0:
                trainer.epoch += 1
                trainer.before_epoch()
        loss = trainer.storage.latest()["total_loss"][0]
    return {
        "seconds": seconds[args.warm_up :],
        "waited": waited[args.warm_up :],
        "images": cfg.SOLVER.IMS_PER_BATCH,
        "size": list(cfg.INPUT.SIZE_TRAIN),
        "peak_bytes": peak.read(),
        "loss": loss,
        "phase": last.name,
    }


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen systems in fresh processes; the content of the results file.

    Raises:
        BenchmarkError: a run failed.
    """
    systems = [name for name in SYSTEMS if not args.only or name in args.only]
    kinds = args.precision or list(PRECISIONS[args.device])
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        print(f"{DATA_SET} ... ", end="", flush=True)
        build_dataset(DATA_SET, None, Path(folder, DATA_SET), **PEOPLE, seed=args.seed)
        print("built", flush=True)
        for system in systems:
            runs[system] = {}
            for precision in kinds:
                print(f"{system}, {precision}", end=" ... ", flush=True)
                words = ["--task", system, precision, "--root", folder]
                words += ["--work", str(Path(folder, "run"))]
                for key in ("iterations", "warm_up", "workers", "device", "threads", "seed"):
                    words += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
                found = in_fresh_process(__file__, words, args.threads, f"{system}, {precision}")
                if not math.isfinite(found["loss"]):
                    raise BenchmarkError(f"{system}, {precision}: the loss is not finite")
                found["images_per_second"] = found["images"] / statistics.median(found["seconds"])
                runs[system][precision] = found
                print(f"{found['images_per_second']:.3g} images/s", flush=True)
    keys = ("iterations", "warm_up", "workers", "device", "seed")
    return {
        "settings": {key: getattr(args, key) for key in keys},
        "data": {"recipe": DATA_SET, **PEOPLE},
        "systems": runs,
        "overrides": {system: SYSTEMS[system] for system in systems if SYSTEMS[system]},
        **provenance(device=args.device),
    }


def table(results: dict[str, Any], style: str) -> str:
    """A row per system and precision, and below it what was trained and on which machine.

    Args:
        results: what :func:`run_all` returns.
        style: tabulate's name of a format, such as ``pipe`` for Markdown.
    """
    rows = []
    for system, kinds in results["systems"].items():
        plain = kinds.get("float32")
        for precision, found in kinds.items():
            ratio = found["images_per_second"] / plain["images_per_second"] if plain else None
            rows.append(
                [
                    system,
                    found["phase"],
                    "x".join(map(str, found["size"])),
                    str(found["images"]),
                    precision,
                    f"{found['images_per_second']:.3g}",
                    f"{ratio:.2f}" if ratio else "",
                    f"{100 * sum(found['waited']) / sum(found['seconds']):.0f} %",
                    f"{found['peak_bytes'] / MEGABYTE:.0f}",
                ]
            )
    chosen, data = results["settings"], results["data"]
    headers = [
        "", "phase", "pixels", "batch", "precision", "images/s", "x float32", "waiting", "peak MiB",
    ]  # fmt: skip
    notes = [
        f"Median of {chosen['iterations']} iterations after {chosen['warm_up']}; "
        f"{chosen['workers']} loader processes, {chosen['device']}, seed {chosen['seed']}. A "
        "batch's LR twins are not counted as images of their own. waiting: share of the time spent "
        "on waiting for images. peak: beyond the weights and the optimiser's state before its "
        "first step. float32 is what PyTorch makes of it, which on a GPU convolves in TF32.",
        f"{data['recipe']}: {data['identities']} people, {data['height']}x{data['width']} pixels.",
        *(f"{name}: with {' '.join(words)}." for name, words in results["overrides"].items()),
        machine_line(results),
    ]
    align = ["left", "left", "right", "right", "left", *["right"] * 4]
    body = tabulate(rows, headers, style, colalign=align, disable_numparse=True)
    return body + "\n\n" + "\n\n".join(notes) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = command_line("training.py", __doc__ or "", "benchmarks/results/training.json")
    out.add_argument("--device", choices=tuple(PRECISIONS), default="cpu", help="to train on")
    out.add_argument("--iterations", type=int, default=10, metavar="N", help="counted, of each")
    out.add_argument("--warm-up", type=int, default=3, metavar="N", help="not counted, of each")
    out.add_argument("--workers", type=int, default=2, metavar="N", help="loader processes")
    out.add_argument(
        "--only", nargs="+", choices=SYSTEMS, metavar="NAME",
        help=f"train these alone: {', '.join(SYSTEMS)}",
    )  # fmt: skip
    out.add_argument(
        "--precision", nargs="+", choices=PRECISIONS["cuda"], metavar="KIND",
        help="in these alone: float32, float16 (a GPU), bfloat16",
    )  # fmt: skip
    for hidden, count in (("--task", 2), ("--root", None), ("--work", None)):
        out.add_argument(hidden, nargs=count, help=argparse.SUPPRESS)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status: 1 if a system failed."""
    cli = parser()
    args = cli.parse_args(argv)
    for key, least in (("iterations", 1), ("warm_up", 0), ("workers", 0)):
        if getattr(args, key) < least:
            cli.error(f"--{key.replace('_', '-')} must be at least {least}")
    if args.device == "cuda" and not torch.cuda.is_available():
        cli.error("--device cuda: torch sees no GPU here")
    if args.device == "cpu" and "float16" in (args.precision or ()):
        cli.error("--precision float16 needs --device cuda; bfloat16 runs on a CPU")
    if args.task:
        if args.threads:
            torch.set_num_threads(args.threads)
        print(json.dumps(train(*args.task, args)))
        return 0
    return save(args.out, lambda: run_all(args), table)


if __name__ == "__main__":
    raise SystemExit(main())
