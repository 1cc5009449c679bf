"""Sections of pictures: restored images, ranked galleries, and the hardest failures."""

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
from lrreid_ext.evaluation.ranking import nearest, rank_statistics
from lrreid_ext.files import write_text
from lrreid_ext.modeling.contract import Restores
from lrreid_ext.modeling.inference import Isolated, Restoring
from lrreid_ext.report import ranked
from lrreid_ext.report.blocks import (
    Block,
    Cell,
    Gallery,
    Grid,
    Match,
    Note,
    Picture,
    Row,
    Table,
    picture_of,
)
from lrreid_ext.report.context import Context, Found, Rows, batch_of, front_end
from lrreid_ext.report.plots import save
from lrreid_ext.report.ranked import draw_queries, hardest
from lrreid_ext.report.scored import ScoredRun
from lrreid_ext.report.tsne import factor_name
from lrreid_ext.results import group_label

__all__ = ["failures", "galleries", "restored"]

PRIVACY = (
    "pictures of real people are left out unless they are asked for (--images); tables and curves "
    "show none"
)


def restored(context: Context) -> Found:
    """LR image, bicubic enlargement, what each front-end makes of it, and the HR twin."""
    able = [r for r in context.runs if isinstance(r.run.module, Restores)]
    able = [r for r in able if front_end(r) != "Identity"]
    if not able:
        return "no run has a super-resolution front-end that its queries pass"
    twins = twin_files(context.test_set)
    index = _twinned(context, twins)
    quality = _quality(context, able)
    if not len(index):
        return "the data set knows no HR twins to set restored images against"
    if not context.images:
        return [quality, Note(f"No pictures: {PRIVACY}.")] if quality else PRIVACY
    samples = context.test_set.samples
    results_of = {r.name: _restorations(r, index) for r in able}
    hr = {r.name: _hr_images(r, [twins[i] for i in index]) for r in able}
    given = {r.name: batch_of(r, index)["images"] for r in able}
    first = able[0].name
    rows = []
    for k, i in enumerate(index):
        sample = samples[i]
        who = f"person {sample.pid}, camera {sample.camid}"
        small = sample_image(sample)
        pictures: list[Picture | None] = [
            picture_of(
                small, f"{who}: as the camera delivered it, {_size(small)}", [_size(small)],
                lossless=True,
            ),
            _compared(given[first][k], hr[first][k], f"{who}: bicubic enlargement"),
        ]  # fmt: skip
        pictures += [
            _compared(results_of[r.name][k], hr[r.name][k], f"{who}: restored by {r.name}")
            for r in able
        ]
        twin = _image(hr[first][k])
        pictures.append(picture_of(twin, f"{who}: HR", [_size(twin)]))
        rows.append(Row(f"{factor_name(sample.factor)}, {who}", pictures))
    caption = (
        "PSNR (dB) and SSIM of each image against its own HR twin, at the network's input size. "
        "Sizes are height x width. "
        f"Persons drawn at random, seed {context.seed}. A front-end that is trained for "
        "re-identification needn't please the eye."
    )
    grid = Grid(
        ["LR", "bicubic", *(f"{r.name} ({r.cfg.MODEL.SR.NAME})" for r in able), "HR"], rows, caption
    )
    return [grid, *([quality] if quality else [])]


def _twinned(context: Context, twins: Mapping[int, str]) -> NDArray[np.int64]:
    """LR queries with HR twins: a few persons, each at several factors, worst last."""
    samples = context.test_set.samples
    levels = sorted({samples[i].factor for i in twins if samples[i].group != QUERY})
    if not levels:
        own = np.array(sorted(twins), dtype=np.int64)
        factors = np.array([samples[i].factor for i in own])
        drawn = draw_queries(factors, np.ones(len(own), dtype=bool), context.queries, context.seed)
        return own[drawn]
    shown = levels if len(levels) <= 3 else [levels[0], levels[len(levels) // 2], levels[-1]]
    by_file: dict[str, dict[float, int]] = {}
    for i, file in twins.items():
        if samples[i].group != QUERY:
            by_file.setdefault(file, {})[samples[i].factor] = i
    files = np.random.default_rng(context.seed).permutation(sorted(by_file))
    count = max(context.queries // len(shown), 1)
    chosen = [by_file[f][level] for f in files[:count] for level in shown]
    return np.array(chosen, dtype=np.int64)


def _restorations(run: ScoredRun, index: NDArray[np.int64]) -> Tensor:
    with torch.no_grad():
        out: Tensor = Isolated(Restoring(run.run.module))(batch_of(run, index))
    return out.float().cpu()


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


def _quality(context: Context, able: Sequence[ScoredRun]) -> Table | None:
    """Mean PSNR and SSIM, as ImageQualityEvaluator left them beside the checkpoints."""
    rows: Rows = []
    for run in able:
        path = Path(run.cfg.OUTPUT_DIR) / f"quality_{context.test_set.name}.json"
        if not path.is_file():
            continue
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["manifest_hash"] != context.test_set.manifest_hash:
            continue
        for group, entry in kept["groups"].items():
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


def galleries(context: Context) -> Found:
    """What each run ranks first, for queries drawn at random."""
    matching = context.runs[0].matching
    valid = rank_statistics(matching).valid
    drawn = draw_queries(matching.query.factors, valid, context.queries, context.seed)
    rankings = _rankings(context, "galleries", drawn)
    if not context.images:
        return PRIVACY
    return [
        Note(
            "LR queries drawn at random, each factor in its turn "
            f"(seed {context.seed}), and the gallery images that each run ranks first. "
            "✓ and a solid blue frame: the right person. ✗ and a dashed vermilion frame: another. "
            "Numbers are distances; sizes are height x width."
        ),
        *rankings,
    ]


def failures(context: Context) -> Found:
    """The queries that all runs together rank worst."""
    ranks = [rank_statistics(run.matching).first_rank for run in context.runs]
    worst = hardest(ranks, context.queries)
    if not len(worst):
        return "every LR query that has a right match is matched rightly at rank 1"
    queries = context.runs[0].matching.query.samples
    rows: Rows = [
        [
            f"person {sample.pid}", f"camera {sample.camid}", factor_name(sample.factor),
            *(str(r[i]) for r in ranks),
        ]
        for i, sample in ((i, queries[i]) for i in worst)
    ]  # fmt: skip
    names = [run.name for run in context.runs]
    of_all = "geometric mean over the runs" if len(names) > 1 else "rank"
    table = Table(
        f"LR queries whose first right match ranks last ({of_all}); multi-shot.",
        ["query", "camera", "factor", *(f"rank, {n}" for n in names)],
        rows,
        words=[1, 2],
    )
    rankings = _rankings(context, "failures", worst)
    if not context.images:
        return [table, Note(f"No pictures: {PRIVACY}.")]
    return [table, *rankings]


def _rankings(context: Context, name: str, index: NDArray[np.int64]) -> list[Block]:
    """What each run ranks first for some of the queries.

    Args:
        context: the runs. Its folder ``files`` gets the table, and the figure if pictures may be
            shown.
        name: of the files.
        index: positions of the queries among all.

    Returns:
        Nothing if no pictures may be shown.
    """
    first = context.runs[0]
    queries, gallery = first.matching.part(index).query, first.gallery.samples
    nearest_of = {r.name: nearest(r.matching.part(index), context.depth) for r in context.runs}
    if context.files:
        write_text(context.files / f"{name}.csv", ranked.table(queries, first.gallery, nearest_of))
    if not context.images:
        return []
    if context.files:
        figure = ranked.draw(queries, first.gallery, nearest_of)
        save(figure, context.files / f"{name}.png")
    blocks: list[Block] = []
    for q, query in enumerate(queries.samples):
        small = sample_image(query)
        title = f"Person {query.pid}, camera {query.camid}, {factor_name(query.factor)}"
        shown = picture_of(small, f"query: {title}, {_size(small)}", [_size(small)], lossless=True)
        runs = []
        for run_name, matches in nearest_of.items():
            row = [
                _match(gallery[place], k + 1, bool(matches.right[q, k]),
                       float(matches.distance[q, k]))
                for k, place in enumerate(matches.order[q]) if place >= 0
            ]  # fmt: skip
            rank = int(matches.first_rank[q])
            if rank > len(row):
                sample = gallery[matches.first_right[q]]
                row.append(_match(sample, rank, True, float(matches.first_distance[q])))
            note = f"right at rank {rank}" if rank else "no right match in the gallery"
            runs.append((run_name, note, row))
        blocks.append(Gallery(title, shown, runs))
    return blocks


def _size(image: Image.Image) -> str:
    """Height and width, in the order of all other sizes."""
    return f"{image.height} x {image.width} px"


def _match(sample: Sample, rank: int, right: bool, distance: float) -> Match:
    word = "right" if right else "wrong"
    far = f"{distance:.3f}"
    alt = f"rank {rank}, {word}: person {sample.pid}, camera {sample.camid}, distance {far}"
    image = sample_image(sample)
    if image.height > 128:
        image = image.resize((max(round(image.width * 128 / image.height), 1), 128))
    return Match(picture_of(image, alt), right, rank, far)
