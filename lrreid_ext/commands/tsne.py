"""Draw t-SNE of features by identity and by factor: does a person stay put when reduced?

lrreid tsne copies=logs/demo/copies pshrnet=logs/demo/pshrnet --out logs/tsne

takes some persons of the test set, with all their gallery images and their queries at each factor,
and draws each run's features of them in a plane, once by person and once by factor. Writes
tsne_<run>.svg and .png, tsne.csv with every point, and tsne.json with where they came from. t-SNE
shows neighbourhoods alone; it measures nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lrreid_ext.analysis.runs import load_run, run_names
from lrreid_ext.commands.common import add_data_set, add_run, at_least
from lrreid_ext.files import write_json, write_text
from lrreid_ext.report.plots import save
from lrreid_ext.report.scored import score_runs
from lrreid_ext.report.tsne import PEOPLE, draw, embed, table
from lrreid_ext.results.provenance import provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser)
    parser.add_argument("--out", type=Path, default=Path("logs/tsne"), help="folder to write")
    add_data_set(parser, "the first of the first run's tests")
    parser.add_argument(
        "--people", type=int, default=PEOPLE, metavar="N",
        help="persons, drawn at random (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[2.0, 4.0, 8.0], metavar="F",
        help="the queries' HR twins are reduced by each (default: 2 4 8)",
    )  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the draw of the persons")


def run(args: argparse.Namespace) -> None:
    """Measure, draw and write."""
    run_names(args.runs)
    runs = [load_run(text, args.opts) for text in args.runs]
    scored = score_runs(runs, args.data_set, args.factors)
    found = {run.name: embed(run, args.people, args.seed) for run in scored}
    write_text(args.out / "tsne.csv", table(found))
    for name, embedding in found.items():
        figure = draw(embedding, name)
        for ending in ("svg", "png"):
            save(figure, args.out / f"tsne_{name.replace('/', '_')}.{ending}")
    test_set = scored[0].test_set
    content = {
        "test_set": test_set.name,
        "manifest_hash": test_set.manifest_hash,
        "people": args.people,
        "seed": args.seed,
        "runs": {
            run.name: {"training": run.run.training, **provenance(run.cfg.MODEL.WEIGHTS)}
            for run in scored
        },
    }
    write_json(args.out / "tsne.json", content)
    count = len(next(iter(found.values())).points)
    print(f"{args.out}: tsne.csv and .json, a .svg and .png per run written; {count} images each")
