"""Render the sections as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from itertools import count

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lrreid_ext.report.blocks import LeftOut, Section

__all__ = ["render"]

_FOLDER = "templates"


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    left: Sequence[LeftOut],
    *,
    notice: str = "",
    written: str = "",
) -> str:
    """The page as text.

    Style and script are inlined. A policy in the page's head forbids the browser to load anything
    and to run any other script.

    Args:
        title, subtitle: the page's heading and the line below it.
        sections: in order.
        left: sections that are left out, listed at the end.
        notice: at the top of the page; "" for none.
        written: when and by which version the page was written.
    """
    environment = Environment(
        loader=PackageLoader("lrreid_ext.report", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        left=left,
        notice=notice,
        written=written,
        # Safe: files of this package.
        style=Markup(_read("report.css")),
        script=Markup(script),
        digest=digest,
        numbers=count(),
    )


def _read(name: str) -> str:
    return (files("lrreid_ext.report") / _FOLDER / name).read_text(encoding="utf-8")
