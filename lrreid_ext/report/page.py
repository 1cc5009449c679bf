"""The page itself: sections into one HTML file that needs nothing else."""

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

    Style and script stand in it; a policy in its head forbids the browser to load anything, and to
    run any other script.

    Args:
        title, subtitle: the page's heading and what stands below it.
        sections: in order.
        left: sections that aren't there, listed at the end.
        notice: stands above everything; "" for none.
        written: when and by what the page was made.
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
        # Files of this package, and no one's input.
        style=Markup(_read("report.css")),
        script=Markup(script),
        digest=digest,
        numbers=count(),
    )


def _read(name: str) -> str:
    return (files("lrreid_ext.report") / _FOLDER / name).read_text(encoding="utf-8")
