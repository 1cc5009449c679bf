"""How wrong the resolution estimator is on a data set's images, by factor and kernel.

python benchmarks/resolution.py mlr_cuhk01 --root datasets --out benchmarks/resolution

takes the undegraded test images of a built recipe, reduces each by every factor with every kernel,
enlarges it to its old size again, as somebody does who hides its resolution, and compares the
factor that lrreid_ext.data.resolution estimates with the true one. The reduced images as they are,
at their own small size, must be found not to be enlarged, and are measured too (kernel "as it is").
Writes <recipe>.md and <recipe>.json.

With --fit the coefficients are fitted anew, on the recipe's training images, and printed; those in
the code come from: python benchmarks/resolution.py synth_pedestrians --fit
"""

from __future__ import annotations

import argparse
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from lrreid_ext.cli import run_command
from lrreid_ext.config import get_cfg
from lrreid_ext.data.degrade import KERNELS, degrade, hash_unit
from lrreid_ext.data.loaders import build_dataset_of
from lrreid_ext.data.pictures import read_picture
from lrreid_ext.data.recipes import RecipeDataset
from lrreid_ext.data.resolution import (
    COEFFICIENTS,
    CUTOFFS,
    SMALLEST_SIDE,
    factor_from,
    fit_coefficients,
    tail_shares,
)
from lrreid_ext.data.samples import GALLERY, QUERY_HR
from lrreid_ext.errors import ConfigError
from lrreid_ext.files import write_json, write_text
from lrreid_ext.options import at_least, data_set_name
from lrreid_ext.results.provenance import provenance

FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
# Kernels that images are commonly reduced and enlarged with.
REDUCED_BY = ("bicubic", "bilinear", "lanczos", "area", "cv2-linear")
ENLARGED_BY = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
AS_IT_IS = "as it is"

# A guess within this ratio of the truth is called near.
NEAR = 1.25


@dataclass(frozen=True)
class Measured:
    """One image's shares of power, and what was done to it.

    Attributes:
        reduced_by: kernel, or "" of an image that wasn't reduced.
        enlarged_by: kernel; :data:`AS_IT_IS` of one left at its own size.
        factor: by which it was enlarged.
        made_small: by which it was reduced.
        shares: (7,), see :func:`lrreid_ext.data.resolution.tail_shares`.
    """

    reduced_by: str
    enlarged_by: str
    factor: float
    made_small: float
    shares: NDArray[np.float64]


def versions(
    image: Image.Image, factors: Sequence[float], kernels: Sequence[str], jpeg: int = 0
) -> Iterator[Measured]:
    """An image as it is, and reduced and enlarged again in all ways.

    Args:
        image: undegraded, mode RGB.
        factors, kernels: to reduce it by.
        jpeg: quality to compress every result with; 0 leaves them lossless.
    """
    if 1 in factors:
        yield Measured("", AS_IT_IS, 1.0, 1.0, tail_shares(_compressed(image, jpeg)))
    for factor in factors:
        if factor == 1:
            continue
        for kernel in kernels:
            small = degrade(image, factor, kernel)
            if min(small.size) >= SMALLEST_SIDE:
                shares = tail_shares(_compressed(small, jpeg))
                yield Measured(kernel, AS_IT_IS, 1.0, factor, shares)
            for name, method in ENLARGED_BY.items():
                large = _compressed(small.resize(image.size, method), jpeg)
                yield Measured(kernel, name, factor, factor, tail_shares(large))


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    if not quality:
        return image
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def measure(
    files: Sequence[Path], factors: Sequence[float], kernels: Sequence[str], jpeg: int = 0
) -> list[Measured]:
    """All versions of all images."""
    found: list[Measured] = []
    for file in tqdm(files, desc="images", unit="image", disable=None):
        found += versions(read_picture(file), factors, kernels, jpeg)
    return found


def undegraded(data: RecipeDataset, *, train: bool, limit: int) -> list[Path]:
    """Undegraded images of a built recipe, at most ``limit``, drawn by name; 0 takes all."""
    roles = ("train",) if train else (QUERY_HR, GALLERY)
    files = {r.file for role in roles for r in data.manifest.of_role(role) if r.factor == 1}
    ordered = sorted(files, key=lambda file: (hash_unit(file, 0), file))
    chosen = ordered[:limit] if limit else ordered
    if not chosen:
        raise ConfigError(f"{data.folder}: has no undegraded images to measure with")
    return [data.folder / file for file in sorted(chosen)]


def errors(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each way of reducing and each factor, all ways of enlarging together.

    Returns:
        ``reduced_by``, ``enlarged_by``, ``factor`` (the true one), ``images``, ``median`` of the
        estimates, ``error`` (mean of |log2(estimate / factor)|), ``near`` (share within
        :data:`NEAR`).
    """
    guesses = factor_from(np.stack([m.shares for m in found]))
    parts: dict[tuple[str, str, float], list[int]] = {}
    for i, m in enumerate(found):
        enlarged = AS_IT_IS if m.enlarged_by == AS_IT_IS else "all"
        # What was made small and left so is grouped by how small it is.
        parts.setdefault((enlarged, m.reduced_by, m.made_small), []).append(i)
    rows = []
    for (enlarged, kernel, made_small), at in sorted(parts.items()):
        own = guesses[at]
        truth = found[at[0]].factor
        off = np.abs(np.log2(own / truth))
        rows.append(
            {
                "reduced_by": kernel,
                "reduced": made_small,
                "enlarged": enlarged != AS_IT_IS,
                "factor": truth,
                "images": len(at),
                "median": round(float(np.median(own)), 3),
                "error": round(float(off.mean()), 4),
                "near": round(float((off <= np.log2(NEAR)).mean()), 4),
            }
        )
    return rows


def summary(found: Sequence[Measured]) -> dict[str, float]:
    """Over all enlarged images, every factor weighing the same: mean error, share near; and the
    same of images that were not enlarged."""
    guesses = factor_from(np.stack([m.shares for m in found]))
    truth = np.array([m.factor for m in found])
    off = np.abs(np.log2(guesses / truth))
    enlarged = np.array([m.enlarged_by != AS_IT_IS for m in found])
    out = {}
    for name, mask in (("enlarged", enlarged), ("not_enlarged", ~enlarged)):
        levels = [off[mask & (truth == factor)] for factor in np.unique(truth[mask])]
        if levels:
            out[f"{name}_error"] = round(float(np.mean([o.mean() for o in levels])), 4)
            near = [(o <= np.log2(NEAR)).mean() for o in levels]
            out[f"{name}_near"] = round(float(np.mean(near)), 4)
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per factor, a column per kernel; median estimate, and mean error in percent.

    The error is that of the ratio: 20 % means that estimates are off by a factor of 1.2.
    """
    enlarged = [row for row in rows if row["enlarged"]]
    kernels = [k for k in KERNELS if any(row["reduced_by"] == k for row in enlarged)]
    cells = {(row["reduced"], row["reduced_by"]): row for row in enlarged}
    small = {(row["reduced"], row["reduced_by"]): row for row in rows if not row["enlarged"]}
    lines = []
    if (1.0, "") in small:
        lines.append(["1 (as it is)", *[_cell(small[1.0, ""])] * len(kernels)])
    for factor in sorted({row["reduced"] for row in enlarged}):
        lines.append([f"{factor:g}", *(_cell(cells.get((factor, k))) for k in kernels)])
    for factor in sorted({row["reduced"] for row in rows if not row["enlarged"]} - {1.0}):
        own = [_cell(small.get((factor, k))) for k in kernels]
        lines.append([f"1 (reduced by {factor:g} and left small)", *own])
    align = ["left"] + ["right"] * len(kernels)
    return tabulate(lines, ["true factor", *kernels], "pipe", colalign=align, disable_numparse=True)


def _cell(row: dict[str, Any] | None) -> str:
    return f"{row['median']:.2f} ({100 * (2 ** row['error'] - 1):.0f} %)" if row else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "recipe", nargs="?", default="synth_pedestrians", type=data_set_name, metavar="RECIPE",
        help="name or YAML file; built first, if it isn't yet (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--root", metavar="DIR", default=os.environ.get("FASTREID_DATASETS", "datasets"),
        help="folder of data sets (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("benchmarks/resolution"))
    parser.add_argument(
        "--factors", type=float, nargs="+", default=list(FACTORS), metavar="F",
        help=f"(default: {' '.join(f'{f:g}' for f in FACTORS)})",
    )  # fmt: skip
    parser.add_argument(
        "--kernels", nargs="+", default=list(REDUCED_BY), choices=KERNELS, metavar="K",
        help=f"to reduce images with (default: {' '.join(REDUCED_BY)})",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=at_least(0), default=300, metavar="N",
        help="at most N images, drawn by name; 0: all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--jpeg", type=int, default=0, metavar="Q", help="compress every result with this quality"
    )
    parser.add_argument("--fit", action="store_true", help="fit the coefficients, measure nothing")


def run(args: argparse.Namespace) -> None:
    """Measure and write, or fit and print."""
    finite = all(1 <= factor < math.inf for factor in args.factors)
    if not finite or not 0 <= args.jpeg <= 95:
        raise ConfigError("--factors must be at least 1, --jpeg from 0 to 95")
    factors = sorted(set(args.factors))
    if args.fit and len(factors) < 2:
        raise ConfigError("--fit needs at least two different --factors")
    cfg = get_cfg()
    cfg.DATASETS.ROOT = args.root
    data = build_dataset_of(cfg, args.recipe, "RECIPE")
    if not isinstance(data, RecipeDataset):
        raise ConfigError(f"RECIPE: {args.recipe} is a data set without a recipe")
    files = undegraded(data, train=args.fit, limit=args.limit)
    found = measure(files, factors, args.kernels, args.jpeg)
    if args.fit:
        shares = np.stack([m.shares for m in found])
        print(fit_coefficients(shares, [m.factor for m in found]))
        return
    rows, beside = errors(found), summary(found)
    text = table(rows)
    compressed = f", JPEG of quality {args.jpeg}" if args.jpeg else ""
    note = (
        f"{args.recipe}, manifest {data.manifest.hash[:12]}: {len(files)} undegraded test images"
        f"{compressed}; median of the estimates, and in brackets the mean error of the ratio. "
        f"Enlarged ones: {_percent(beside, 'enlarged')}. Not enlarged ones: "
        f"{_percent(beside, 'not_enlarged')}."
    )
    write_text(args.out / f"{args.recipe}.md", f"{text}\n\n{note}\n")
    content = {
        "recipe": args.recipe,
        "manifest_hash": data.manifest.hash,
        "images": len(files),
        "jpeg": args.jpeg,
        "error": "mean of |log2(estimate / factor)|",
        "near": f"share within a ratio of {NEAR}",
        "cutoffs": list(CUTOFFS),
        "coefficients": list(COEFFICIENTS),
        **beside,
        "rows": rows,
        **provenance(),
    }
    write_json(args.out / f"{args.recipe}.json", content)
    print(f"{text}\n\n{note}\nwritten: {args.out / args.recipe}.md, .json")


def _percent(beside: dict[str, float], name: str) -> str:
    if f"{name}_error" not in beside:
        return "none"
    off = 100 * (2 ** beside[f"{name}_error"] - 1)
    return f"{off:.0f} %, {100 * beside[f'{name}_near']:.0f} % of them within a ratio of {NEAR}"


if __name__ == "__main__":
    raise SystemExit(run_command("__main__", "resolution.py"))
