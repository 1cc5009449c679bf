"""Which sections the page has, in their order; each makes its blocks or says why it isn't there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrreid_ext.registry import REPORT_REGISTRY, names, registered
from lrreid_ext.report.blocks import Left, Section
from lrreid_ext.report.context import Context, Found
from lrreid_ext.report.insides import planes, training
from lrreid_ext.report.origins import differences, origins
from lrreid_ext.report.pictures import failures, galleries, restored
from lrreid_ext.report.scores import by_factor, cameras, cmc, cost, results

__all__ = ["build", "sections"]

Make = Callable[[Context], Found]

_MODELS: dict[str, tuple[str, Make]] = {
    "results": ("Results", results),
    "cmc": ("CMC curves", cmc),
    "factors": ("Rank-1 against resolution", by_factor),
    "cameras": ("By camera", cameras),
    "restored": ("Restored images", restored),
    "galleries": ("Ranked galleries", galleries),
    "failures": ("Hardest failures", failures),
    "tsne": ("Feature space", planes),
}
_ORIGINS: dict[str, tuple[str, Make]] = {
    "cost": ("Cost against accuracy", cost),
    "training": ("Training", training),
    "config": ("Config", differences),
    "origins": ("Where the figures come from", origins),
}


def sections() -> dict[str, tuple[str, Make]]:
    """Title and function of every section, in the page's order; those of plugins that are loaded
    come after the sections on the models."""
    plugins = {
        name: ((make.__doc__ or name).strip().splitlines()[0], make)
        for name, make in (
            (name, registered(REPORT_REGISTRY, name)) for name in names(REPORT_REGISTRY)
        )
    }
    return {**_MODELS, **plugins, **_ORIGINS}


def build(
    context: Context, without: Sequence[str] = (), progress: Callable[[str], None] = lambda _: None
) -> tuple[list[Section], list[Left]]:
    """All sections, and those that are left out.

    Args:
        context: the runs.
        without: keys of sections that aren't wanted.
        progress: told each section's title before it is made.
    """
    there: list[Section] = []
    left: list[Left] = []
    for key, (title, make) in sections().items():
        if key in without:
            left.append(Left(key, title, "not asked for"))
            continue
        progress(title)
        found = make(context)
        if isinstance(found, str):
            left.append(Left(key, title, found))
        else:
            there.append(Section(key, title, found))
    return there, left
