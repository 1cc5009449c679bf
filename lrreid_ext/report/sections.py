"""The sections of the page, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrreid_ext.registry import REPORT_REGISTRY, names, registered
from lrreid_ext.report.blocks import LeftOut, Section
from lrreid_ext.report.context import Content, Context
from lrreid_ext.report.history import training
from lrreid_ext.report.origins import differences, origins
from lrreid_ext.report.ranked import failures, galleries
from lrreid_ext.report.restored import restored
from lrreid_ext.report.scores import by_factor, cameras, cmc, cost, results
from lrreid_ext.report.tsne import feature_space

__all__ = ["build", "sections"]

Make = Callable[[Context], Content]

_MODELS: dict[str, tuple[str, Make]] = {
    "results": ("Results", results),
    "cmc": ("CMC curves", cmc),
    "factors": ("Rank-1 against resolution", by_factor),
    "cameras": ("By camera", cameras),
    "restored": ("Restored images", restored),
    "galleries": ("Ranked galleries", galleries),
    "failures": ("Hardest failures", failures),
    "tsne": ("Feature space", feature_space),
}
_ORIGINS: dict[str, tuple[str, Make]] = {
    "cost": ("Cost against accuracy", cost),
    "training": ("Training", training),
    "config": ("Config", differences),
    "origins": ("Where the figures come from", origins),
}


def sections() -> dict[str, tuple[str, Make]]:
    """Title and function of every section, in the page's order.

    Sections of plugins come after those on the models; a plugin must be loaded to be among them.
    """
    plugins = {}
    for name in names(REPORT_REGISTRY):
        make = registered(REPORT_REGISTRY, name)
        plugins[name] = ((make.__doc__ or name).strip().splitlines()[0].rstrip("."), make)
    return {**_MODELS, **plugins, **_ORIGINS}


def build(
    context: Context, without: Sequence[str] = (), progress: Callable[[str], None] = lambda _: None
) -> tuple[list[Section], list[LeftOut]]:
    """Make the sections.

    Args:
        context: the runs.
        without: keys of sections to leave out.
        progress: called with each section's title before it is made.

    Returns:
        The sections, and those that are left out with the reason.
    """
    page: list[Section] = []
    left_out: list[LeftOut] = []
    for key, (title, make) in sections().items():
        if key in without:
            left_out.append(LeftOut(key, title, "not asked for"))
            continue
        progress(title)
        content = make(context)
        if isinstance(content, str):
            left_out.append(LeftOut(key, title, content))
        else:
            page.append(Section(key, title, content))
    return page, left_out
