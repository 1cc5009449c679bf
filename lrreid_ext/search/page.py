"""Ranked matches as a table for the screen, or as one HTML page without other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lrreid_ext.data.pictures import read_picture
from lrreid_ext.errors import ImageError
from lrreid_ext.search.gallery import Answer, Match
from lrreid_ext.search.store import Entry

__all__ = ["html_page", "screen"]

# Greatest height in pixels of the page's images; larger ones are reduced.
HEIGHT = 160

# Right and wrong differ in sign and line, not by colour alone.
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }
section { border-top: 1px solid #ccc; padding: .8rem 0 }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: .2rem 0 }
.row { display: flex; gap: .7rem; overflow-x: auto; align-items: flex-start }
figure { margin: 0; padding: 4px; border: 3px solid transparent; min-width: 84px }
figure.query { border: 3px solid #222; margin-right: 1rem }
figure.right { border: 3px solid #0072b2 }
figure.wrong { border: 3px dashed #d55e00 }
img, .gone { height: 160px; display: block; image-rendering: pixelated }
.gone { width: 80px; background: #eee; font-size: 12px }
figcaption { font-size: 12px; max-width: 14em; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1em; font-size: 13px }
dt { color: #666 } dd { margin: 0 }
@media print { section { break-inside: avoid } }
"""


def screen(answers: Sequence[Answer]) -> str:
    """A block for each query: its size, the anchors' weights, and a line for each match."""
    blocks = []
    for answer in answers:
        rows = [
            [
                str(m.rank),
                f"{m.distance:.4f}",
                {True: "right", False: "wrong", None: ""}[m.right],
                m.entry.identity,
                m.entry.camera,
                f"{m.entry.height}x{m.entry.width}",
                m.entry.file + (" (the query itself)" if m.same_file else ""),
            ]
            for m in answer.matches
        ]
        headers = ["rank", "distance", "", "identity", "camera", "native", "file"]
        align = ["right", "right", "left", "right", "right", "right", "left"]
        table = tabulate(rows, headers, "simple", colalign=align, disable_numparse=True)
        blocks.append(f"{_title(answer)}\n{table}")
    return "\n\n".join(blocks)


def _title(answer: Answer) -> str:
    query = answer.query
    parts = [query.file, f"{query.height}x{query.width}"]
    if query.identity:
        parts.append(f"identity {query.identity}")
    if answer.weights:
        weights = ", ".join(f"{name} {w:.3f}" for name, w in answer.weights.items())
        parts.append(f"anchors' weights {weights}")
    return "; ".join(parts)


def html_page(answers: Sequence[Answer], about: dict[str, Any]) -> str:
    """One HTML page, images inside it; no script, and nothing is fetched.

    Args:
        answers: the queries and their matches.
        about: facts to list below the heading, by name.
    """
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in about.items())
    sections = "\n".join(_section(answer) for answer in answers)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Gallery search</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Gallery search</h1>\n<dl>{facts}</dl>\n"
        "<p>Nearest first. Solid blue, &#10003;: the query's identity; dashed orange, &#10007;: "
        "another's; no line: not known. Sizes are native, height x width.</p>\n"
        f"{sections}\n</body>\n</html>\n"
    )


def _section(answer: Answer) -> str:
    query = answer.query
    caption = f"query<br>{query.height}x{query.width}"
    figures = [f'<figure class="query">{_image(query)}<figcaption>{caption}</figcaption></figure>']
    figures += [_figure(match) for match in answer.matches]
    return (
        f'<section>\n<h2>{escape(_title(answer))}</h2>\n<div class="row">\n'
        + "\n".join(figures)
        + "\n</div>\n</section>"
    )


def _figure(match: Match) -> str:
    entry = match.entry
    sign = {True: "&#10003; ", False: "&#10007; ", None: ""}[match.right]
    lines = [
        f"{sign}{match.rank}: {match.distance:.4f}",
        f"{entry.height}x{entry.width}",
        escape(Path(entry.file).name),
    ]
    if entry.identity:
        lines.insert(1, f"identity {escape(entry.identity)}, camera {escape(entry.camera or '?')}")
    if match.same_file:
        lines.append("the query itself")
    kind = {True: ' class="right"', False: ' class="wrong"', None: ""}[match.right]
    return f"<figure{kind}>{_image(entry)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _image(entry: Entry) -> str:
    name = escape(Path(entry.file).name, quote=True)
    try:
        picture = read_picture(entry.file)
    except ImageError:
        return f'<div class="gone">{name}: is gone or damaged</div>'
    if picture.height > HEIGHT:
        picture = picture.resize((max(1, round(picture.width * HEIGHT / picture.height)), HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'
