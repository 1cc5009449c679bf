"""Blocks that the page's sections consist of; ``templates/report.html`` renders them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup
from PIL import Image

from lrreid_ext.report.plots import svg

__all__ = [
    "Block",
    "Cell",
    "Details",
    "Figure",
    "Gallery",
    "Grid",
    "LeftOut",
    "Match",
    "Note",
    "Picture",
    "Row",
    "Section",
    "Table",
    "Tiles",
    "figure_of",
    "picture_of",
]


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: what it shows.
        value: sort key, if not the text.
        strong: whether it is set in bold.
    """

    text: str
    value: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by each of its columns.

    Attributes:
        caption: what it shows.
        headers: one per column; the first column names the row.
        rows: cells, or plain texts.
        words: columns, by position, that hold words and not numbers; the first always does.
    """

    kind: ClassVar[str] = "table"
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: Sequence[int] = ()

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows with every text made a cell."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return column > 0 and column not in self.words


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        svg: an ``<svg>`` element.
        alt: text alternative, for readers who can't see it.
        caption: below it.
    """

    kind: ClassVar[str] = "figure"
    svg: Markup
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A photograph, inlined.

    Attributes:
        src: data URI.
        alt: what it shows.
        caption: lines below it.
        pixels: whether it is enlarged without smoothing.
    """

    src: str
    alt: str
    caption: Sequence[str] = ()
    pixels: bool = False


@dataclass(frozen=True)
class Row:
    """Pictures of one thing, side by side."""

    label: str
    pictures: Sequence[Picture | None]


@dataclass(frozen=True)
class Grid:
    """Rows of pictures under common headings."""

    kind: ClassVar[str] = "grid"
    headers: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""


@dataclass(frozen=True)
class Match:
    """One place of a ranked gallery."""

    picture: Picture
    right: bool
    rank: int
    text: str


@dataclass(frozen=True)
class Gallery:
    """One query and the first matches of each run: ``(run, note, matches)``; the note says at which
    rank the first right match is."""

    kind: ClassVar[str] = "gallery"
    title: str
    query: Picture
    runs: Sequence[tuple[str, str, Sequence[Match]]]


@dataclass(frozen=True)
class Tiles:
    """Headline figures: ``(label, figure, lines below it)``."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str, Sequence[str]]]


@dataclass(frozen=True)
class Note:
    """A paragraph; a ``warning`` is highlighted."""

    kind: ClassVar[str] = "note"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Details:
    """Text or blocks behind a summary line that opens them."""

    kind: ClassVar[str] = "details"
    summary: str
    text: str = ""
    blocks: Sequence[Any] = ()


Block = Table | Figure | Grid | Gallery | Tiles | Note | Details


@dataclass(frozen=True)
class Section:
    """A part of the page with its own heading.

    Attributes:
        key: its name in links and options.
        title: its heading.
        blocks: its content.
    """

    key: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


@dataclass(frozen=True)
class LeftOut:
    """A section that is left out, and why."""

    key: str
    title: str
    why: str


# Colours that the page's style sets: black, the grid, and those too dark on a black page.
_PAGE_COLOURS = {
    "#000000": "currentColor",
    "#dddddd": "var(--grid)",
    **{c: f"var(--c{c[1:]})" for c in ("#0072b2", "#d55e00", "#009e73", "#56b4e9")},
}


def figure_of(drawn: Any, key: str, alt: str, caption: str = "") -> Figure:
    """A matplotlib figure for the page.

    Text and axes take the page's colour, so the figure can be read on white and on black.

    Args:
        drawn: the figure.
        key: prefix of the figure's ids, unique on the page.
        alt, caption: see :class:`Figure`.
    """
    text = svg(drawn)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Only style properties, never text.
    for fixed, colour in _PAGE_COLOURS.items():
        text = re.sub(rf"(fill|stroke): {fixed}\b", rf"\1: {colour}", text, flags=re.IGNORECASE)
    # The page sets the width; the view box keeps the proportions.
    head, rest = text.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    size = f' style="width:{float(width.group(1)) * 4 / 3:.0f}px"' if width else ""
    label = Markup(' role="img" aria-label="{}"').format(alt)
    # Safe: matplotlib has escaped the text.
    return Figure(Markup(f"{head}{size}{label}>{rest}"), alt, caption)


def picture_of(
    image: Image.Image, alt: str, caption: Sequence[str] = (), *, lossless: bool = False
) -> Picture:
    """An image for the page.

    Args:
        image: RGB.
        alt, caption: see :class:`Picture`.
        lossless: keep every pixel, and enlarge without smoothing; otherwise it becomes a JPEG.
    """
    data = io.BytesIO()
    if lossless or image.height < 64:
        image.save(data, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(data, "JPEG", quality=88)
        kind = "jpeg"
    src = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return Picture(src, alt, tuple(caption), pixels=lossless or image.height < 64)
