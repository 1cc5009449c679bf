"""Write ranked galleries of several runs side by side, right and wrong marked.

lrreid ranked copies=logs/demo/copies pshrnet=logs/demo/pshrnet --out logs/ranked

takes LR queries of the test set, drawn at random or those that the runs together rank worst
(--hardest), and shows what each run ranks first: a solid blue frame and a tick for the right
person, a dashed vermilion one and a cross for another. Writes ranked.csv with all matches and
distances, ranked.png, and ranked.json with where they came from.

The picture shows people. It is drawn only of synthetic data sets (synth_pedestrians), unless
--images asks for it: a picture of real people is personal data, and most data sets' terms forbid to
publish it. The CSV is written in either case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lrreid_ext.analysis.runs import load_run, run_names
from lrreid_ext.commands.common import add_data_set, add_run, at_least
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.ranking import nearest, rank_statistics
from lrreid_ext.files import write_json, write_text
from lrreid_ext.report.plots import save
from lrreid_ext.report.ranked import draw, draw_queries, hardest, table
from lrreid_ext.report.scored import score_runs
from lrreid_ext.results.provenance import provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser)
    parser.add_argument("--out", type=Path, default=Path("logs/ranked"), help="folder to write")
    add_data_set(parser, "the first of the first run's tests")
    parser.add_argument(
        "--queries", type=at_least(1), default=6, metavar="N", help="queries (default: %(default)s)"
    )
    parser.add_argument(
        "--depth",
        type=at_least(1),
        default=8,
        metavar="N",
        help="matches of each (default: %(default)s)",
    )
    parser.add_argument(
        "--hardest", action="store_true",
        help="the queries whose first right match ranks last, by the geometric mean over the runs",
    )  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the draw of the queries")
    parser.add_argument(
        "--images", action="store_true",
        help="draw the picture of real people too (default: of synthetic people only)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Rank, draw and write."""
    run_names(args.runs)
    runs = [load_run(text, args.opts) for text in args.runs]
    # The queries as they are: no other group is looked at.
    scored = score_runs(runs, args.data_set, ())
    first = scored[0]
    statistics = [rank_statistics(run.matching) for run in scored]
    if args.hardest:
        chosen = hardest([s.first_rank for s in statistics], args.queries)
    else:
        valid = statistics[0].valid
        factors = first.matching.query.factors
        chosen = draw_queries(factors, valid, args.queries, args.seed)
    if not len(chosen):
        raise ConfigError(f"{first.test_set.name}: no such query; every one is matched rightly")
    query, gallery = first.matching.query.rows(chosen), first.gallery
    found = {run.name: nearest(run.matching.part(chosen), args.depth) for run in scored}
    write_text(args.out / "ranked.csv", table(query, gallery, found))
    content = {
        "test_set": first.test_set.name,
        "manifest_hash": first.test_set.manifest_hash,
        "hardest": args.hardest,
        "seed": args.seed,
        "first_rank": {name: matches.first_rank.tolist() for name, matches in found.items()},
        "runs": {
            run.name: {"training": run.run.training, **provenance(run.cfg.MODEL.WEIGHTS)}
            for run in scored
        },
    }
    write_json(args.out / "ranked.json", content)
    if args.images or first.test_set.synthetic:
        save(draw(query, gallery, found), args.out / "ranked.png")
        print(f"{args.out}: ranked.csv, .json and .png written")
    else:
        print(
            f"{args.out}: ranked.csv and .json written. No picture: {first.test_set.name} may show "
            "real people; --images draws it"
        )
