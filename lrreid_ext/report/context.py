"""The input of the page's sections, and helpers that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from numpy.typing import NDArray
from PIL import Image

from lrreid_ext.data.loaders import to_device
from lrreid_ext.data.paired import TestDataset, collate
from lrreid_ext.data.samples import QUERY, Batch, TestSet
from lrreid_ext.evaluation.cost import passes
from lrreid_ext.report.blocks import Block, Cell
from lrreid_ext.report.plots import COLOURS
from lrreid_ext.report.scored import ScoredRun
from lrreid_ext.results import Figure

__all__ = [
    "PEOPLE",
    "PRIVACY",
    "Content",
    "Context",
    "Rows",
    "batch_of",
    "figure_cell",
    "front_end",
    "have_factor",
    "percent",
    "query_batch",
    "size_label",
]


#: Persons in the t-SNE by default: each has its own colour.
PEOPLE = len(COLOURS)

PRIVACY = (
    "pictures of real people are left out unless they are asked for (--images); tables and curves "
    "show none"
)


@dataclass
class Context:
    """The input of a section.

    Attributes:
        runs: the runs' features of one test set.
        images: whether to show pictures of people.
        queries: at most so many queries, failures and restored people.
        depth: matches shown for each query.
        people: persons in the t-SNE.
        seed: of all random draws.
        files: folder that sections write their tables and figures into; None for nowhere.
    """

    runs: Sequence[ScoredRun]
    images: bool
    queries: int = 8
    depth: int = 8
    people: int = PEOPLE
    seed: int = 0
    files: Path | None = None

    @property
    def test_set(self) -> TestSet:
        """The images, the same for all runs."""
        return self.runs[0].test_set

    @property
    def protocol(self) -> str:
        """The first protocol that all runs are measured by, or that of the first run."""
        first, *others = (run.results.protocols for run in self.runs)
        return next((p for p in first if all(p in other for other in others)), first[0])


#: What a section returns: its blocks, or the reason why it is left out.
Content = list[Block] | str

#: Rows of a table.
Rows = list[Sequence[Cell | str]]


def batch_of(run: ScoredRun, index: Sequence[int] | NDArray[np.int64]) -> Batch:
    """Some of the test set's images as a batch."""
    data = TestDataset(run.test_set, build_transforms(run.cfg, is_train=False))
    return collate([data[int(i)] for i in index])


def query_batch(run: ScoredRun) -> Batch:
    """The most reduced LR query as a batch on the model's device."""
    index = run.groups[QUERY]
    factors = np.nan_to_num([run.test_set.samples[i].factor for i in index], nan=np.inf)
    return to_device(batch_of(run, [index[factors.argmax()]]), torch.device(run.cfg.MODEL.DEVICE))


def front_end(run: ScoredRun) -> str:
    """Name of the front-end that queries pass through.

    It is "Identity" if the network has a front-end but does not use it, as PS-HRNet's teacher.
    """
    name = str(run.cfg.MODEL.SR.NAME)
    if name == "Identity" or passes(run.model.module, "frontend", query_batch(run)):
        return name
    return "Identity"


def percent(figure: Figure | None) -> str:
    """``24.6 ± 3.5``, ``24.6`` without a deviation, or a dash without a figure."""
    return figure.text() if figure else "–"  # noqa: RUF001 - a dash, not a hyphen


def figure_cell(figure: Figure | None, best: float | None = None, runs: int = 1) -> Cell:
    """A figure as a cell; strong if it is the best of several runs."""
    value = figure.value if figure else None
    strong = runs > 1 and value is not None and best is not None and value >= best
    return Cell(percent(figure), value, strong)


def have_factor(factors: NDArray[np.float64], value: float) -> NDArray[np.bool_]:
    """(N,) whether each factor is ``value``, which may be NaN, an unknown one."""
    return np.isnan(factors) if math.isnan(value) else factors == value


def size_label(image: Image.Image) -> str:
    """``64 x 32 px``: height and width."""
    return f"{image.height} x {image.width} px"
