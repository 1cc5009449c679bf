"""Write a trained model for other runtimes: ONNX, torch.export, or a folder of safetensors.

lrreid export logs/pshrnet --to onnx torch

writes <RUN>/export/model.onnx and model.pt2: from 8-bit crops of any size to the embedding that is
compared, resize and normalisation inside. Each is compared with the model in PyTorch, on batches of
1, 3 and 8 crops of mixed native sizes, and written only if it agrees. The third kind, safetensors,
is a folder hub/ with config.yaml, model.safetensors and a model card, as the Hugging Face hub keeps
models; --push owner/name uploads it. docs/deploy.md says how each is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lrreid_ext.errors import ConfigError
from lrreid_ext.export.deployable import Deployable
from lrreid_ext.export.formats import describe, runtime, write_onnx, write_torch
from lrreid_ext.export.hub import LICENSE, push_to_hub, save_pretrained
from lrreid_ext.export.parity import TOLERANCE, Parity
from lrreid_ext.files import make_folder
from lrreid_ext.options import add_run
from lrreid_ext.trained import TrainedModel, load_model, name_and_path
from lrreid_ext.weights import HUB

KINDS = ("onnx", "torch", "safetensors")
FILES = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "hub"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser, None)
    parser.add_argument(
        "--to", nargs="+", required=True, choices=KINDS, metavar="KIND",
        help=f"any of {', '.join(KINDS)}",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="(default: <RUN>/export; for hub:owner/name owner--name/export)",
    )  # fmt: skip
    parser.add_argument(
        "--resized", action="store_true",
        help="images come at the network's input size, resized outside: for runtimes without "
        "float64 or sizes that change",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="X",
        help="largest difference let pass, as a share of the largest value (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--push", default="", metavar="OWNER/NAME", help="upload the folder to this hub repository"
    )
    parser.add_argument(
        "--license", default=LICENSE, metavar="ID",
        help="the model card's license, by the hub's identifier (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Write the files, and print how far each agrees with the model in PyTorch."""
    if not args.tolerance > 0:
        raise ConfigError("--tolerance must be above 0")
    if args.push and "safetensors" not in args.to:
        raise ConfigError("--push uploads what --to safetensors writes")
    if "onnx" in args.to:
        runtime()  # what lacks is better known before the model is loaded; so is a wrong folder
    given = make_folder(args.out) if args.out else None
    run = load_model(args.run, "cpu", args.opts)
    folder = given or make_folder(_home(args.run, run) / "export")
    kinds = [kind for kind in ("onnx", "torch") if kind in args.to]
    if kinds:
        deployable = Deployable(run.cfg, run.module, resized=args.resized)
        parity = Parity(run.cfg, run.module, resized=args.resized, tolerance=args.tolerance)
        for kind in kinds:
            path = folder / FILES[kind]
            write = write_onnx if kind == "onnx" else write_torch
            found = write(path, deployable, parity, describe(run, deployable))["parity"]
            print(
                f"{path}: written, {path.stat().st_size / 1e6:.1f} MB; differs from PyTorch by "
                f"{found['largest_difference']:.1e} of the largest value"
            )
    if "safetensors" in args.to:
        path = folder / FILES["safetensors"]
        save_pretrained(run, path, license=args.license)
        print(f"{path}: config.yaml, model.safetensors and README.md written")
        if args.push:
            print(f"{push_to_hub(path, args.push)}: uploaded")


def _home(text: str, run: TrainedModel) -> Path:
    """The run's folder, or for one of the hub, whose own is among its downloads, one named like it
    here."""
    named = str(name_and_path(text)[1])
    if not named.startswith(HUB):
        return Path(run.cfg.OUTPUT_DIR)
    return Path(named.removeprefix(HUB).replace("/", "--").replace("@", "--"))
