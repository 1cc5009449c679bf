"""Sections of figures: results, CMC curves, by factor, by camera, and what they cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lrreid_ext.config import CfgNode, phase_cfg, phases_done, phases_of
from lrreid_ext.data.samples import QUERY, QUERY_HR
from lrreid_ext.errors import ResultsError
from lrreid_ext.evaluation.cost import gmacs, latency, parameters_used
from lrreid_ext.evaluation.ranking import rank_statistics
from lrreid_ext.report.blocks import Block, Cell, Details, Note, Table, Tiles, figure_of
from lrreid_ext.report.context import (
    Content,
    Context,
    Rows,
    figure_cell,
    front_end,
    percent,
    query_batch,
)
from lrreid_ext.report.plots import cmc_figure, cost_figure, factor_figure
from lrreid_ext.results import (
    FigureName,
    Results,
    default_columns,
    factor_name,
    group_label,
    results_file,
    stored_results,
)

__all__ = ["by_factor", "cameras", "cmc", "cost", "results", "seen_factors"]

# Last rank of the CMC curves.
CMC_RANKS = 50

# Figures that differ by more than this from those stored beside the checkpoint are reported.
TOLERANCE = 0.05


PROTOCOLS = {"single_shot": "single-shot", "multi_shot": "multi-shot"}


def results(context: Context) -> Content:
    """Headline figures, a table of the runs, and a comparison with the stored results."""
    headline, tiles = FigureName(context.protocol, QUERY, "Rank-1"), []
    single = context.protocol == "single_shot"
    for run in context.runs:
        beside = [
            f"{c.label(run.results.lr_gallery)} {percent(run.results.figure(c))}"
            for c in default_columns([run.results])
            if c != headline and c.group in (QUERY, QUERY_HR)
        ]
        first = run.results.figure(headline)
        if first and first.interval:
            beside.insert(0, first.interval)
        tiles.append((run.name, percent(first), beside))
    columns = default_columns([run.results for run in context.runs])
    lr_gallery = any(run.results.lr_gallery for run in context.runs)
    best = {
        c: max((f.value for run in context.runs if (f := run.results.figure(c))), default=0.0)
        for c in columns
    }
    rows: Rows = [
        [run.name, *(_cell(run.results, c, best[c], len(context.runs)) for c in columns)]
        for run in context.runs
    ]
    # Runs may be measured with different distances or draws: then the caption names each.
    runs_by: dict[str, list[str]] = {}
    for run in context.runs:
        runs_by.setdefault(run.results.measured, []).append(run.name)
    measured = " ".join(
        text if len(runs_by) == 1 else f"{', '.join(names)}: {text}"
        for text, names in runs_by.items()
    )
    blocks: list[Block] = [
        Note(
            "The large figure is Rank-1 of low-resolution queries: how often the right person "
            "ranks first, in percent"
            + ("; mean and standard deviation over the draws of the gallery." if single else ".")
        ),
        Tiles(tiles),
        Table(
            f"Rank-1 by how the queries were reduced. {measured} MLR: the set's own LR queries, of "
            "mixed factors; HR: their undegraded twins; x2, x3 ...: the twins, all reduced by that "
            "factor." + (" Bold: the highest of its column." if len(context.runs) > 1 else ""),
            ["run", *(c.label(lr_gallery) for c in columns)],
            rows,
        ),
    ]
    if len(context.runs) > 1:
        blocks.append(
            Note(
                "± is the deviation over draws of the gallery, not over trainings: differences of "
                "that size mean nothing, and one training of each run proves nothing."
            )
        )
    spreads = _spreads(context)
    if spreads and not any(spreads):
        blocks.append(
            Note(
                "± 0.0: every person has one gallery image, so that all draws are the same; it is "
                "no measure of the figures' error."
            )
        )
    blocks += _unfinished(context) + _stored(context)
    every = [_every(context, protocol, title) for protocol, title in PROTOCOLS.items()]
    every.append(_rates(context))
    return [*blocks, Details("All figures", blocks=[table for table in every if table.rows])]


def _spreads(context: Context) -> list[float]:
    """Standard deviations over the draws of all single-shot figures of LR queries."""
    columns = default_columns([run.results for run in context.runs])
    columns = [c for c in columns if c.protocol == "single_shot"]
    figures = [run.results.figure(c) for run in context.runs for c in columns]
    return [f.std for f in figures if f and f.std is not None]


def _cell(results: Results, column: FigureName, best: float | None = None, runs: int = 1) -> Cell:
    """A figure and below it its confidence interval, if it has one."""
    figure = results.figure(column)
    cell = figure_cell(figure, best, runs)
    return replace(cell, text=f"{cell.text}\n{figure.interval if figure else ''}".strip())


def _unfinished(context: Context) -> list[Block]:
    """Runs whose weights are from the middle of a phase."""
    notes: list[Block] = []
    for run in context.runs:
        epochs = run.training.epochs
        if epochs is not None and epochs not in {phase.end for phase in phases_of(run.cfg)}:
            text = f"{run.name}: trained {epochs} of {run.training.of} epochs, not to an end."
            notes.append(Note(text, warning=True))
    return notes


def _every(context: Context, protocol: str, title: str) -> Table:
    """All figures of one protocol, a row for each run and kind of queries."""
    runs = [run for run in context.runs if protocol in run.results.protocols]
    names = dict.fromkeys(
        name
        for run in runs
        for name in run.results.groups[QUERY].protocols[protocol].starting("Rank-", "mAP", "mINP")
    )
    rows: Rows = [
        [
            run.name, group_label(group, run.results.lr_gallery), str(entry.queries),
            *(_cell(run.results, FigureName(protocol, group, name)) for name in names),
        ]
        for run in runs
        for group, entry in run.results.groups.items()
    ]  # fmt: skip
    caption = f"All {title} figures, in percent."
    return Table(caption, ["run", "queries", "images", *names], rows, words=[1])


def _rates(context: Context) -> Table:
    """True accept rates, and the numbers of pairs."""
    rated = [
        (run, group, entry.protocols["multi_shot"])
        for run in context.runs
        if run.results.fars
        for group, entry in run.results.groups.items()
    ]
    names = dict.fromkeys(name for *_, figures in rated for name in figures.starting("TAR@"))
    rows: Rows = [
        [
            run.name, group_label(group, run.results.lr_gallery), str(figures.genuine_pairs),
            str(figures.impostor_pairs),
            *(_cell(run.results, FigureName("multi_shot", group, rate)) for rate in names),
        ]
        for run, group, figures in rated
    ]  # fmt: skip
    caption = (
        "Share of genuine pairs accepted where a given share of impostor pairs is, in percent. A "
        "share of less than one impostor pair lets none pass."
    )
    headers = ["run", "queries", "genuine pairs", "impostor pairs", *names]
    return Table(caption, headers, rows, words=[1])


def _stored(context: Context) -> list[Block]:
    """Compare the results in the runs' folders with those measured now."""
    agree, notes = [], []
    name = results_file(context.test_set.name)
    for run in context.runs:
        try:
            stored, others = stored_results(run.cfg.OUTPUT_DIR, run.training, context.test_set.name)
        except ResultsError as error:
            notes.append(f"{run.name}: {error}.")
            continue
        if not stored:
            reason = f"{name} is of {others[name]}" if others else f"no {name} to compare with"
            notes.append(f"{run.name}: {reason}, beside the checkpoint.")
            continue
        before = stored[name]
        if before.manifest_hash != run.results.manifest_hash:
            notes.append(f"{run.name}: the {name} beside the checkpoint is of other images.")
            continue
        pairs = [(c, before.figure(c), run.results.figure(c)) for c in default_columns([before])]
        differences = [
            f"{c.label()} {percent(old)} there, {percent(new)} here"
            for c, old, new in pairs
            if old and new and abs(old.value - new.value) > TOLERANCE
        ]
        if differences:
            text = "; ".join(differences)
            notes.append(f"{run.name}: {name} beside the checkpoint differs: {text}.")
        else:
            agree.append(run.name)
    blocks: list[Block] = []
    if agree:
        blocks.append(
            Note(
                "Measured anew for this page, and equal to what is stored beside the checkpoint: "
                f"{', '.join(agree)}."
            )
        )
    return blocks + [Note(text, warning=True) for text in notes]


def cmc(context: Context) -> Content:
    """Cumulative match characteristics of LR queries and of their HR twins."""
    single = context.protocol == "single_shot"
    panels: dict[str, dict[str, Any]] = {}
    for group, title in ((QUERY, "LR queries"), (QUERY_HR, "the same queries at HR")):
        if group not in context.runs[0].groups:
            continue
        panel = panels.setdefault(title, {})
        for run in context.runs:
            if single:
                shots = run.single_shot(run.query(group))
                ranks = range(1, min(CMC_RANKS, shots.identities) + 1)
                panel[run.name] = (shots.mean(ranks), shots.std(ranks))
            else:
                matching = run.matching if group == QUERY else run.multi_shot(run.query(group))
                statistics = rank_statistics(matching)
                ranks = range(1, min(CMC_RANKS, statistics.gallery) + 1)
                panel[run.name] = (statistics.cmc(ranks), None)
    summary = "; ".join(
        f"{name}: {100 * mean[0]:.1f} % at rank 1, {100 * mean[min(9, len(mean) - 1)]:.1f} % at "
        f"rank {min(10, len(mean))}"
        for name, (mean, _) in panels["LR queries"].items()
    )
    caption = (
        "Share of queries whose right person is among the first k. "
        + ("Single-shot, mean over the trials; bands: a standard deviation to either side."
           if single else "Multi-shot, over the whole gallery.")
    )  # fmt: skip
    return [figure_of(cmc_figure(panels), "cmc", f"CMC curves of LR queries. {summary}", caption)]


def seen_factors(
    cfg: CfgNode, epochs: int | None = None
) -> tuple[list[float], tuple[float, float] | None]:
    """Factors that weights were trained on: single ones, and a range that factors were drawn from.

    Phases that train on HR images count as factor 1; their LR twins don't count.

    Args:
        cfg, epochs: as :func:`lrreid_ext.config.phases_done` takes them.
    """
    singles: set[float] = set()
    spans: list[tuple[float, float]] = []
    for phase in phases_done(cfg, epochs):
        lr = phase_cfg(cfg, phase).INPUT.LR
        if lr.TRAIN_ON != "lr":
            singles.add(1.0)
        if lr.TRAIN_ON == "hr":
            continue
        if lr.RANGE:
            spans.append((float(lr.RANGE[0]), float(lr.RANGE[1])))
        else:
            singles |= {float(f) for f in lr.FACTORS}
    span = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
    return sorted(singles), span


def by_factor(context: Context) -> Content:
    """Rank-1 against the factor; factors that were not trained on are marked."""
    groups = [g for g in context.runs[0].groups if g.startswith("x") or g == QUERY_HR]
    if len(groups) < 2:
        return (
            "the data set has no HR twins of its queries, so that they can't be reduced by several "
            "factors"
        )
    factors = {g: 1.0 if g == QUERY_HR else float(g[1:]) for g in groups}
    groups.sort(key=lambda g: factors[g])
    curves, unseen = {}, {}
    rows: Rows = []
    for run in context.runs:
        values = [run.results.figure(FigureName(context.protocol, g, "Rank-1")) for g in groups]
        curves[run.name] = (
            [v.value if v else math.nan for v in values],
            [(v.std or 0.0) if v else 0.0 for v in values],
        )
        singles, span = seen_factors(run.cfg, run.training.epochs)
        unseen[run.name] = [
            f for f in factors.values()
            if f not in singles and not (span and span[0] <= f <= span[1])
        ]  # fmt: skip
        trained = [factor_name(f) for f in singles]
        trained += [f"x{span[0]:g} to x{span[1]:g}"] if span else []
        rows.append(
            [
                run.name, ", ".join(trained),
                *(
                    Cell(percent(v) + ("*" if factors[g] in unseen[run.name] else ""),
                         v.value if v else None)
                    for g, v in zip(groups, values, strict=True)
                ),
            ]
        )  # fmt: skip
    drawn = factor_figure([factors[g] for g in groups], curves, unseen)
    summary = "; ".join(
        f"{name}: {values[0]:.1f} % at HR, {values[-1]:.1f} % at x{factors[groups[-1]]:g}"
        for name, (values, _) in curves.items()
    )
    caption = (
        "The same queries reduced by each factor, against the same HR gallery; bands: a standard "
        "deviation over the trials. Ringed: factors that the run wasn't trained on."
    )
    return [
        figure_of(drawn, "factor", f"Rank-1 against the factor. {summary}", caption),
        Table(
            "Rank-1 in percent; *: a factor that the run wasn't trained on.",
            ["run", "trained on", *("HR" if g == QUERY_HR else g for g in groups)],
            rows,
            words=[1],
        ),
    ]


def cameras(context: Context) -> Content:
    """Multi-shot figures by the query's camera and the gallery's."""
    rows: Rows = []
    pairs = 0
    for run in context.runs:
        query, gallery = run.matching.query, run.matching.gallery
        for q in np.unique(query.camids):
            others = [g for g in np.unique(gallery.camids) if g != q]
            pairs = max(pairs, len(others))
            parts = [("all", np.full(len(gallery), True))]
            parts += [(str(g), gallery.camids == g) for g in others]
            for g, chosen in parts:
                if gallery.is_junk[chosen].all():
                    continue
                statistics = rank_statistics(run.matching.part(query.camids == q, chosen))
                if not statistics.valid.any():
                    continue
                first, mean = 100 * statistics.cmc([1])[0], 100 * statistics.mean_ap
                rows.append(
                    [
                        run.name, f"camera {q}", "all cameras" if g == "all" else f"camera {g}",
                        str(int(statistics.valid.sum())), Cell(f"{first:.1f}", first),
                        Cell(f"{mean:.1f}", mean),
                    ]
                )  # fmt: skip
    if len({row[1] for row in rows}) < 2 and pairs < 2:
        return "queries are of one camera and the gallery of one other: there is nothing to compare"
    return [
        Table(
            "LR queries of one camera against the gallery of one other, and of all: multi-shot "
            "Rank-1 and mAP in percent, over the queries that have a right match there.",
            ["run", "queries of", "gallery of", "queries", "Rank-1", "mAP"],
            rows,
            words=[1, 2],
        )
    ]


def cost(context: Context) -> Content:
    """Parameters, multiply-accumulates and time of one query, against accuracy."""
    headline = FigureName(context.protocol, QUERY, "Rank-1")
    points = {}
    rows: Rows = []
    for run in context.runs:
        model, batch = run.model.module, query_batch(run)
        used = parameters_used(model, batch) / 1e6
        macs = gmacs(model, batch)
        seconds = latency(model, batch, repeats=10)
        value = run.results.figure(headline)
        height, width = run.cfg.INPUT.SIZE_TEST
        rows.append(
            [
                run.name, front_end(run), f"{height} x {width}", Cell(f"{used:.2f}", used),
                Cell(f"{macs:.3f}", macs), Cell(f"{1000 * seconds:.1f}", seconds),
                figure_cell(value),
            ]
        )  # fmt: skip
        if value:
            points[run.name] = (macs, value)
    label = f"{headline.label()} (%)"
    summary = "; ".join(f"{n}: {c:.2f} GMACs, {v.value:.1f} %" for n, (c, v) in points.items())
    threads = torch.get_num_threads()
    where = context.runs[0].cfg.MODEL.DEVICE
    where += f", {threads} thread{'s' * (threads > 1)}" if where == "cpu" else ""
    return [
        figure_of(
            cost_figure(points, label), "cost", f"Accuracy against cost. {summary}",
            "One LR query through front-end, backbone and head; bars: a standard deviation over "
            "the trials.",
        ),
        Table(
            "Parameters that a query's features depend on (a classifier, teacher or critic that "
            "only training needs isn't counted), multiply-accumulates of convolutions and matrix "
            f"products, and the median time of one query alone ({where}).",
            ["run", "front-end", "input", "parameters (M)", "GMACs", "ms per query", label],
            rows,
            words=[1, 2],
        ),
    ]  # fmt: skip
