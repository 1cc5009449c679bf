"""Write ranked galleries of several runs side by side, right and wrong marked.

tools/ranked.py copies=logs/demo/copies pshrnet=logs/demo/pshrnet --out logs/ranked

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
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lrreid_ext.analysis.runs import load_run, run_names, run_parser
from lrreid_ext.engine.cli import add_data_set
from lrreid_ext.errors import USER_ERRORS, ConfigError
from lrreid_ext.evaluation.ranking import nearest, rank_statistics
from lrreid_ext.files import write_json, write_text
from lrreid_ext.report.plots import save
from lrreid_ext.report.ranked import draw, draw_queries, hardest, table
from lrreid_ext.report.scored import score_runs
from lrreid_ext.results.provenance import provenance


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = run_parser("lrreid ranked", __doc__)
    out.add_argument("--out", type=Path, default=Path("logs/ranked"), help="folder to write")
    add_data_set(out, "the first of the first run's tests")
    out.add_argument(
        "--queries", type=int, default=6, metavar="N", help="queries (default: %(default)s)"
    )
    out.add_argument(
        "--depth", type=int, default=8, metavar="N", help="matches of each (default: %(default)s)"
    )
    out.add_argument(
        "--hardest", action="store_true",
        help="the queries whose first right match ranks last, by the geometric mean over the runs",
    )  # fmt: skip
    out.add_argument("--seed", type=int, default=0, help="of the draw of the queries")
    out.add_argument(
        "--images", action="store_true",
        help="draw the picture of real people too (default: of synthetic people only)",
    )  # fmt: skip
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Rank, draw and write; 0, or 2 with one clear message for what a user can put right."""
    cli = parser()
    args = cli.parse_args(argv)
    for name, least in (("queries", 1), ("depth", 1), ("seed", 0)):
        if getattr(args, name) < least:
            cli.error(f"--{name} must be at least {least}")
    # fastreid's way to make tensors; said once by every loader worker.
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    try:
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
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    return 0
