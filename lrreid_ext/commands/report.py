"""Write one HTML page about trained models: figures, curves, pictures, and where they came from.

lrreid report copies=logs/demo/copies pshrnet=logs/demo/pshrnet --out logs/report.html

Everything is measured anew from the checkpoints, on one test set, and compared with the results
stored beside them. The page needs no other file and no network; style, script and images stand in
it. It shows: results with their spread; CMC curves; Rank-1 against the factor, seen and unseen;
figures by camera; restored images; ranked galleries; the hardest failures; t-SNE by identity and
factor; gate weights; cost against accuracy; training curves; differences of the configs; and the
manifest, commits, machines and commands. What doesn't apply is left out, and the page says why.

Pictures of people: data sets of this field show real people. A page with their pictures is
personal data, and most data sets' terms forbid to publish it. So pictures are shown only of
synthetic data sets (synth_pedestrians), unless --images asks for them; the page then says what
it holds.

lrreid report copies=logs/demo/copies pshrnet=logs/demo/pshrnet --only failures tsne --files logs

writes a page of these two sections. With --files, the sections galleries, failures and tsne also
write what they show into a folder: galleries.csv and failures.csv with all matches and distances,
tsne.csv with every point, .png and .svg of the figures, and report.json with where they come from.
Figures of galleries and failures show people, so --images decides about them as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrreid_ext.config import get_cfg
from lrreid_ext.files import check_place, write_json, write_text
from lrreid_ext.options import add_data_set, add_run, at_least
from lrreid_ext.report.context import PEOPLE, Context
from lrreid_ext.report.page import render
from lrreid_ext.report.scored import score_runs
from lrreid_ext.report.sections import build, sections
from lrreid_ext.results.provenance import commit, provenance
from lrreid_ext.trained import load_model, run_names

FACTORS = (2.0, 3.0, 4.0, 6.0, 8.0)

NOTICE = (
    "This page shows pictures of real people. Keep it to those who may see them, don't publish it, "
    "and follow the data set's terms."
)


def page(
    texts: Sequence[str],
    *,
    data_set: str = "",
    factors: Sequence[float] | None = FACTORS,
    images: bool = False,
    queries: int = 8,
    depth: int = 8,
    people: int = PEOPLE,
    seed: int = 0,
    without: Sequence[str] = (),
    files: Path | None = None,
    title: str = "",
    opts: Sequence[str] = (),
) -> str:
    """The page about some runs, as text.

    Args:
        texts: the runs, ``[NAME=]FOLDER`` or ``[NAME=]CHECKPOINT``.
        data_set: name of the test set; "" is the first of the first run's DATASETS.TESTS.
        factors: queries' HR twins are reduced by each; None means TEST.FACTORS.
        images: whether to show pictures of real people.
        queries, depth, people, seed, files, without: see :class:`Context` and :func:`build`.
        title: the page's heading; "" makes one.
        opts: overrides of every run's config.

    Raises:
        ConfigError, FileNotFoundError, WeightsError: runs that can't be used.
    """
    names = run_names(texts)
    runs = [load_model(text, "", opts) for text in texts]
    _say("extracting features")
    scored = score_runs(runs, data_set, factors)
    test_set = scored[0].test_set
    context = Context(
        scored, images or test_set.synthetic, queries, depth, people, seed=seed, files=files
    )
    blocks, left = build(context, without, _say)
    heading = title or f"{' and '.join(names) if len(names) < 3 else f'{len(names)} runs'} on "
    heading = heading if title else heading + test_set.name
    count = len({s.pid for s in test_set.samples if s.pid > 0})
    subtitle = (
        f"Low-resolution person re-identification. {test_set.name}: {count} persons, "
        f"{test_set.files} images"
        + (f", manifest {test_set.manifest_hash[:12]}" if test_set.manifest_hash else "")
        + (". Synthetic people; nobody is shown." if test_set.synthetic else ".")
    )
    written = f"Written by lrreid report on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"
    written += f", commit {commit()}." if commit() else "."
    if files:
        write_json(files / "report.json", _origins(context))
    notice = NOTICE if context.images and not test_set.synthetic else ""
    return render(heading, subtitle, blocks, left, notice=notice, written=written)


def _origins(context: Context) -> dict[str, Any]:
    """Where the figures in the folder ``files`` come from."""
    return {
        "test_set": context.test_set.name,
        "manifest_hash": context.test_set.manifest_hash,
        "seed": context.seed,
        "runs": {
            run.name: {"training": run.model.training, **provenance(run.cfg.MODEL.WEIGHTS)}
            for run in context.runs
        },
    }


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    get_cfg()  # the plugins, which may have sections
    names = list(sections())
    add_run(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("logs/report.html"), metavar="FILE",
        help="page to write (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--images", action="store_true",
        help="show pictures of people, also of real ones: such a page is personal data (default: "
        "of synthetic people only)",
    )  # fmt: skip
    add_data_set(parser, "the first of the first run's tests")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=list(FACTORS), metavar="F",
        help="the queries' HR twins are reduced by each (default: "
        f"{' '.join(f'{f:g}' for f in FACTORS)})",
    )  # fmt: skip
    parser.add_argument(
        "--queries", type=at_least(1), default=8, metavar="N",
        help="ranked galleries, failures and restored images shown, at most (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--depth",
        type=at_least(1),
        default=8,
        metavar="N",
        help="matches of each (default: %(default)s)",
    )
    parser.add_argument(
        "--people", type=int, default=PEOPLE, metavar="N",
        help="persons in the t-SNE (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of all that is drawn at random"
    )
    parser.add_argument(
        "--only", nargs="+", default=names, choices=names, metavar="SECTION",
        help=f"sections to make (default: {' '.join(names)})",
    )  # fmt: skip
    parser.add_argument(
        "--without", nargs="+", default=[], choices=names, metavar="SECTION",
        help="sections to leave out",
    )  # fmt: skip
    parser.add_argument(
        "--files", type=Path, metavar="DIR",
        help="also write tables and figures of galleries, failures and t-SNE into this folder",
    )  # fmt: skip
    parser.add_argument("--title", default="", help="the page's heading")


def run(args: argparse.Namespace) -> None:
    """Measure and write."""
    check_place(args.out)
    text = page(
        args.runs, data_set=args.data_set, factors=args.factors, images=args.images,
        queries=args.queries, depth=args.depth, people=args.people, seed=args.seed,
        without=[k for k in sections() if k not in args.only or k in args.without],
        files=args.files, title=args.title, opts=args.opts,
    )  # fmt: skip
    write_text(args.out, text)
    print(f"written: {args.out}, {len(text.encode()) / 1e6:.1f} MB")
