#!/usr/bin/env python3
"""Exporting each system at full size: does the file agree, how large is it, and how fast.

Each system is built from its own YAML for Market-1501 with random weights, in a process of its own,
and written as torch.export's .pt2 and as ONNX, as `lrreid export` does: from 8-bit crops of any
size to the embedding, compared with the evaluation's own. Then the same crops pass the model in
PyTorch, the .pt2 in PyTorch and the ONNX file in ONNX Runtime, in turn. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from lrreid_ext.config import load_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cost import parameters
from lrreid_ext.export.deployable import Deployable, pack
from lrreid_ext.export.formats import describe, runtime, write_onnx, write_torch
from lrreid_ext.export.parity import TOLERANCE, Parity
from lrreid_ext.modeling.build import build_model
from lrreid_ext.results.provenance import provenance
from lrreid_ext.trained import TrainedModel
from shared import (
    MEGABYTE,
    BenchmarkError,
    command_line,
    in_fresh_process,
    machine_line,
    save,
)

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ("SING", "CSRGAN", "FFSR_RIFE", "RAIN", "PSHRNet")
CONFIG = "mlr_market.yml"
# People in the training set, which the heads' size goes by; nothing else depends on it.
CLASSES = 751
FORMATS = ("torch", "onnx")
RUNTIMES = ("eager", *FORMATS)


def build(system: str, options: Sequence[str], seed: int) -> TrainedModel:
    """A system with random weights, as large as its YAML makes it, on the CPU."""
    torch.manual_seed(seed)
    words = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", "False"]
    words += ["MODEL.HEADS.NUM_CLASSES", str(CLASSES), *options]
    cfg = load_cfg(str(ROOT / "projects" / system / CONFIG), words)
    model = build_model(cfg).eval()
    if hasattr(model, "trained"):
        model.trained.fill_(True)  # else only the anchors that were trained are exported
    return TrainedModel(system, cfg, model, {})


def export(
    system: str, folder: Path, args: argparse.Namespace, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Write one system's files and time them in this process.

    Returns:
        ``size`` of the network's input, the ``parameters`` in the graph; by format the ``seconds``
        that writing and checking took, the ``bytes`` of the file and its ``largest_difference``;
        by batch size and runtime the ``seconds`` of each pass.
    """
    run = build(system, options, args.seed)
    deployable = Deployable(run.cfg, run.module)
    parity = Parity(run.cfg, run.module, tolerance=TOLERANCE, seed=args.seed)
    files: dict[str, dict[str, Any]] = {}
    paths = {"torch": folder / f"{system}.pt2", "onnx": folder / f"{system}.onnx"}
    for kind, write in (("torch", write_torch), ("onnx", write_onnx)):
        start = time.perf_counter()
        written = write(paths[kind], deployable, parity, describe(run, deployable))
        files[kind] = {
            "seconds": time.perf_counter() - start,
            "bytes": paths[kind].stat().st_size,
            "largest_difference": written["parity"]["largest_difference"],
        }
    ort = runtime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(paths["onnx"]), settings, ["CPUExecutionProvider"])
    program = torch.export.load(paths["torch"]).module()
    passes: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
        "eager": deployable,
        "torch": program,
        "onnx": lambda images, native: session.run(
            None, {"images": images.numpy(), "native_size": native.numpy()}
        ),
    }
    draw = np.random.default_rng(args.seed)
    # Small ones, so that front-ends which leave large images alone have something to restore.
    height, width = (side // 2 for side in deployable.size)
    timed: dict[str, dict[str, list[float]]] = {}
    for batch in args.batches:
        crops = draw.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        inputs = pack(list(crops))
        seconds: dict[str, list[float]] = {name: [] for name in RUNTIMES}
        with torch.inference_mode():
            for step in range(args.warm_up + args.repeats):
                # In turn, so that whatever else the machine does falls on all alike.
                for name in RUNTIMES:
                    start = time.perf_counter()
                    passes[name](*inputs)
                    if step >= args.warm_up:
                        seconds[name].append(time.perf_counter() - start)
        timed[str(batch)] = seconds
    return {
        "size": list(deployable.size),
        "crops": [height, width],
        "parameters": parameters(deployable),
        "files": files,
        "passes": timed,
        "threads": torch.get_num_threads(),
    }


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen systems in fresh processes; the content of the results file.

    Raises:
        BenchmarkError: a system isn't exported, or its file computes something else.
    """
    systems = [name for name in SYSTEMS if not args.only or name in args.only]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        for system in systems:
            print(f"{system}", end=" ... ", flush=True)
            words = ["--task", system, folder, "--batches", *map(str, args.batches)]
            for key in ("repeats", "warm_up", "threads", "seed"):
                words += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
            found[system] = in_fresh_process(__file__, words, args.threads, system)
            worst = max(f["largest_difference"] for f in found[system]["files"].values())
            print(f"differs by {worst:.1e} at most", flush=True)
    keys = ("batches", "repeats", "warm_up", "seed")
    return {
        "settings": {key: getattr(args, key) for key in keys},
        "config": CONFIG,
        "systems": found,
        "onnxruntime": runtime().__version__,
        **provenance(),
    }


def table(results: dict[str, Any], style: str) -> str:
    """A row per system, and below it what was compared and on which machine.

    Args:
        results: what :func:`run_all` returns.
        style: tabulate's name of a format, such as ``pipe`` for Markdown.
    """
    batches = [str(batch) for batch in results["settings"]["batches"]]
    rows = []
    for system, found in results["systems"].items():
        row = [system, "x".join(map(str, found["size"])), f"{found['parameters'] / 1e6:.1f}"]
        for kind in FORMATS:
            file = found["files"][kind]
            row += [f"{file['largest_difference']:.1e}", f"{file['bytes'] / MEGABYTE:.1f}"]
        for batch in batches:
            median = {k: statistics.median(v) for k, v in found["passes"][batch].items()}
            row.append(f"{1e3 * median['eager']:.0f}")
            row += [f"{median['eager'] / median[kind]:.2f}" for kind in FORMATS]
        rows.append(row)
    headers = ["", "pixels", "M parameters", ".pt2 differs", "MiB", "ONNX differs", "MiB"]
    for batch in batches:
        headers += [f"{batch}: PyTorch ms", ".pt2 x faster", "ONNX x faster"]
    chosen = results["settings"]
    first = next(iter(results["systems"].values()))
    notes = [
        "differs: from the evaluation's embeddings, Pillow's resize included, on batches of 1, 3 "
        "and 8 crops of mixed sizes, as a share of the largest value; above "
        f"{TOLERANCE:g} nothing is written. Weights are random (seed {chosen['seed']}); the "
        f"parameters are those in the graph. Systems by their projects' {results['config']}.",
        f"Times: of batches of {' and '.join(batches)} crops of half the input's height and width, "
        "resized inside; the median of "
        f"{chosen['repeats']} passes after {chosen['warm_up']}, the three in turn, on the "
        f"processor with {first['threads']} threads. x faster: than the same module in PyTorch.",
        machine_line(results, f"ONNX Runtime {results['onnxruntime']}"),
    ]
    body = tabulate(
        rows, headers, style, colalign=["left", *["right"] * (len(headers) - 1)],
        disable_numparse=True,
    )  # fmt: skip
    return body + "\n\n" + "\n\n".join(notes) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = command_line("export.py", __doc__ or "", "benchmarks/results/export.json")
    out.add_argument("--repeats", type=int, default=10, metavar="N", help="timed passes of each")
    out.add_argument("--warm-up", type=int, default=2, metavar="N", help="passes before those")
    out.add_argument("--batches", type=int, nargs="+", default=[1, 8], metavar="N", help="crops")
    out.add_argument(
        "--only", nargs="+", choices=SYSTEMS, metavar="NAME",
        help=f"export these alone: {', '.join(SYSTEMS)}",
    )  # fmt: skip
    out.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status: 1 if a system failed."""
    cli = parser()
    args = cli.parse_args(argv)
    for key, least in (("repeats", 1), ("warm_up", 0)):
        if getattr(args, key) < least:
            cli.error(f"--{key.replace('_', '-')} must be at least {least}")
    if min(args.batches) < 1:
        cli.error("--batches must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.task:
        print(json.dumps(export(args.task[0], Path(args.task[1]), args)))
        return 0

    def measure() -> dict[str, Any]:
        try:
            runtime()  # before anything is built
        except ConfigError as error:
            raise BenchmarkError(str(error)) from error
        return run_all(args)

    return save(args.out, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
