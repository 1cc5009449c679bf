"""The section on restored images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lrreid_ext.data.paired import sample_image
from lrreid_ext.data.samples import QUERY, QUERY_HR, Sample
from lrreid_ext.evaluation.image_quality import psnr, ssim, twin_files
from lrreid_ext.modeling.contract import Restores
from lrreid_ext.modeling.inference import Isolated, Restoring
from lrreid_ext.report.blocks import Cell, Grid, Note, Picture, Row, Table, picture_of
from lrreid_ext.report.context import (
    PRIVACY,
    Content,
    Context,
    Rows,
    batch_of,
    front_end,
    size_label,
)
from lrreid_ext.report.ranked import draw_queries
from lrreid_ext.report.scored import ScoredRun
from lrreid_ext.results import factor_name, group_label

__all__ = ["restored"]


def restored(context: Context) -> Content:
    """LR image, bicubic enlargement, restored by each front-end, and the HR twin."""
    runs = [r for r in context.runs if isinstance(r.model.module, Restores)]
    runs = [r for r in runs if front_end(r) != "Identity"]
    if not runs:
        return "no run has a super-resolution front-end that its queries pass"
    twins = twin_files(context.test_set)
    index = _twinned(context, twins)
    quality = _quality(context, runs)
    if not len(index):
        return "the data set has no HR twins to compare restored images with"
    if not context.images:
        return [quality, Note(f"No pictures: {PRIVACY}.")] if quality else PRIVACY
    images = [_restorations(r, index) for r in runs]
    hr = [_hr_images(r, [twins[i] for i in index]) for r in runs]
    bicubic = batch_of(runs[0], index)["images"]
    rows = []
    for k, i in enumerate(index):
        sample = context.test_set.samples[i]
        who = f"person {sample.pid}, camera {sample.camid}"
        small, twin = sample_image(sample), _image(hr[0][k])
        size = size_label(small)
        pictures = [
            picture_of(
                small, f"{who}: as the camera delivered it, {size}", [size], lossless=True
            ),
            _compared(bicubic[k], hr[0][k], f"{who}: bicubic enlargement"),
            *(
                _compared(images[n][k], hr[n][k], f"{who}: restored by {run.name}")
                for n, run in enumerate(runs)
            ),
            picture_of(twin, f"{who}: HR", [size_label(twin)]),
        ]  # fmt: skip
        rows.append(Row(f"{factor_name(sample.factor)}, {who}", pictures))
    caption = (
        "PSNR (dB) and SSIM of each image against its HR twin, at the network's input size. Sizes "
        f"are height x width. Persons drawn at random, seed {context.seed}. A front-end that is "
        "trained for re-identification needn't give pleasant images."
    )
    headers = ["LR", "bicubic", *(f"{r.name} ({r.cfg.MODEL.SR.NAME})" for r in runs), "HR"]
    return [Grid(headers, rows, caption), *([quality] if quality else [])]


def _twinned(context: Context, twins: Mapping[int, str]) -> NDArray[np.int64]:
    """LR queries with HR twins: a few persons, each at several factors, worst last."""
    samples = context.test_set.samples
    levels = sorted({samples[i].factor for i in twins if samples[i].group != QUERY})
    if not levels:
        queries = np.array(sorted(twins), dtype=np.int64)
        factors = np.array([samples[i].factor for i in queries])
        valid = np.ones(len(queries), dtype=bool)
        return queries[draw_queries(factors, valid, context.queries, context.seed)]
    if len(levels) > 3:
        levels = [levels[0], levels[len(levels) // 2], levels[-1]]
    by_file: dict[str, dict[float, int]] = {}
    for i, file in twins.items():
        if samples[i].group != QUERY:
            by_file.setdefault(file, {})[samples[i].factor] = i
    files = np.random.default_rng(context.seed).permutation(sorted(by_file))
    count = max(context.queries // len(levels), 1)
    chosen = [by_file[f][level] for f in files[:count] for level in levels]
    return np.array(chosen, dtype=np.int64)


def _restorations(run: ScoredRun, index: NDArray[np.int64]) -> Tensor:
    with torch.no_grad():
        images: Tensor = Isolated(Restoring(run.model.module))(batch_of(run, index)).images
    return images.float().cpu()


def _hr_images(run: ScoredRun, files: Sequence[str]) -> Tensor:
    transform = build_transforms(run.cfg, is_train=False)
    return torch.stack([transform(sample_image(Sample(f, 1, 0, QUERY_HR))) for f in files])


def _compared(pixels: Tensor, hr: Tensor, alt: str) -> Picture:
    db = float(psnr(pixels[None], hr[None]))
    like = float(ssim(pixels[None], hr[None]))
    return picture_of(
        _image(pixels), f"{alt}, PSNR {db:.1f} dB, SSIM {like:.3f}", [f"{db:.2f} dB", f"{like:.3f}"]
    )


def _image(pixels: Tensor) -> Image.Image:
    """(3, H, W) RGB, 0-255 float, as an image."""
    values = pixels.clamp(0, 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(values.numpy())


def _quality(context: Context, runs: Sequence[ScoredRun]) -> Table | None:
    """Mean PSNR and SSIM from the files that ImageQualityEvaluator wrote beside the checkpoints."""
    rows: Rows = []
    for run in runs:
        path = Path(run.cfg.OUTPUT_DIR) / f"quality_{context.test_set.name}.json"
        if not path.is_file():
            continue
        quality = json.loads(path.read_text(encoding="utf-8"))
        if quality["manifest_hash"] != context.test_set.manifest_hash:
            continue
        for group, entry in quality["groups"].items():
            digits = (("PSNR_input", 2), ("PSNR", 2), ("SSIM_input", 3), ("SSIM", 3))
            cells = [Cell(f"{entry[name]:.{n}f}", entry[name]) for name, n in digits]
            rows.append([run.name, group_label(group), str(entry["images"]), *cells])
    if not rows:
        return None
    return Table(
        "Means over all images, from the quality file beside each checkpoint. Input: bicubic.",
        ["run", "queries", "images", "PSNR input (dB)", "PSNR (dB)", "SSIM input", "SSIM"],
        rows,
        words=[1],
    )
