"""Put images of people into a gallery, and rank it for low-resolution queries.

lrreid gallery build people crops/ --model logs/demo/pshrnet
lrreid gallery add people more_crops/
lrreid gallery search people query.png --top 5 --json answers.json --html answers.html
lrreid gallery remove people crops/0007.png
lrreid gallery info people

A gallery is a folder, searched by faiss; or milvus:FILE.db (Milvus's embedded form), or
milvus:http://HOST:19530 (a server or cluster), with #NAME for another collection than `gallery`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lrreid_ext.errors import GalleryError
from lrreid_ext.files import check_place, write_json, write_text
from lrreid_ext.options import at_least
from lrreid_ext.results.provenance import provenance
from lrreid_ext.search import Change, Gallery
from lrreid_ext.search.index import KINDS
from lrreid_ext.search.page import html_page, screen
from lrreid_ext.search.store import Settings, Store
from lrreid_ext.trained import TrainedModel, load_model
from lrreid_ext.weights import HUB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="embed images into a new gallery")
    add = actions.add_parser("add", help="embed the images that aren't in it yet")
    search = actions.add_parser("search", help="rank the gallery for query images")
    remove = actions.add_parser(
        "remove", help="take images out; a folder keeps nothing of them, Milvus until it compacts"
    )
    info = actions.add_parser("info", help="its contents and settings, as JSON")
    for action in (build, add, search, remove, info):
        action.add_argument("gallery", metavar="GALLERY", help="folder, or milvus:...")
    for action, name in ((build, "images"), (add, "images"), (search, "queries")):
        action.add_argument(name, nargs="+", metavar="PATH", help="image files, and folders")
        action.add_argument(
            "--model", metavar="RUN", required=action is build,
            help="folder that `lrreid train` trained into, or a checkpoint in it"
            + ("" if action is build else " (default: the one that the gallery was built with)"),
        )  # fmt: skip
        action.add_argument("--device", default="cpu", help="cpu, cuda ... (default: %(default)s)")
        action.add_argument(
            "--batch", type=at_least(1), default=64, metavar="N",
            help="images at a time (default: 64)",
        )  # fmt: skip
        action.add_argument(
            "--labels", default="market", metavar="HOW",
            help="identities and cameras: none; market, from names like 0002_c1s1_000451_03.jpg; "
            "or a CSV file with the columns path,identity,camera (default: market)",
        )  # fmt: skip
        action.add_argument(
            "--opts", nargs="+", default=[], metavar="KEY VALUE",
            help="overrides of the model's config, such as TEST.FUSION.SIGMA 0.2",
        )  # fmt: skip
    build.add_argument(
        "--kind", choices=("auto", *KINDS), default="auto",
        help="of the index; auto chooses by size (default: auto)",
    )  # fmt: skip
    build.add_argument(
        "--recall", type=float, default=0.95, metavar="R",
        help="share of the exact nearest that an approximate index must find, measured on the "
        "gallery itself; where HNSW can't, the search is exact (default: 0.95)",
    )  # fmt: skip
    build.add_argument(
        "--replace", action="store_true", help="take the place of a gallery that is there"
    )
    search.add_argument("--top", type=int, default=10, metavar="K", help="matches (default: 10)")
    search.add_argument(
        "--native-size", type=int, nargs=2, metavar=("H", "W"),
        help="size that the queries had before somebody enlarged them (default: the files')",
    )  # fmt: skip
    search.add_argument("--json", type=Path, metavar="FILE", help="write the answers here too")
    search.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    remove.add_argument(
        "files", nargs="*", metavar="FILE", help="or folders, or hashes' beginnings"
    )
    remove.add_argument("--identity", metavar="ID", help="all images of this identity")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    act = {"build": _build, "add": _add, "search": _search, "remove": _remove, "info": _info}
    if args.action == "remove" and bool(args.files) == bool(args.identity):
        raise GalleryError("remove: name files, or an --identity")
    try:
        act[args.action](args)
    except KeyboardInterrupt:
        advice = "" if args.action == "search" else "; repeating the command completes it"
        print(f"interrupted{advice}", file=sys.stderr)
        return 130
    return 0


def _build(args: argparse.Namespace) -> None:
    model = load_model(args.model, args.device, args.opts)
    gallery, change = Gallery.create(
        args.gallery,
        model,
        args.images,
        labels=args.labels,
        kind=args.kind,
        recall=args.recall,
        batch_size=args.batch,
        run=args.model if args.model.startswith(HUB) else str(Path(args.model).resolve()),
        opts=_located(args.opts, model),
        replace=args.replace,
    )
    _report(gallery.store, change)


def _add(args: argparse.Namespace) -> None:
    gallery = _opened(args)
    _report(gallery.store, gallery.add(args.images, labels=args.labels, batch_size=args.batch))


def _search(args: argparse.Namespace) -> None:
    outputs = [path for path in (args.json, args.html) if path]
    for path in outputs:
        check_place(path)
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise GalleryError(f"--json and --html: {args.json} can't be both")
    gallery = _opened(args)
    answers = gallery.search(
        args.queries,
        args.top,
        native_size=tuple(args.native_size) if args.native_size else None,
        labels=args.labels,
        batch_size=args.batch,
        on_damaged=_damaged,
    )
    print(screen(answers))
    store = gallery.store
    about = {
        "gallery": store.where,
        "images": len(store),
        "index": _index(store),
        "metric": store.settings.metric,
        "model": store.settings.run,
        "model_hash": gallery.model.hash,
    }
    if store.settings.anchors:
        sigma = float(gallery.model.cfg.TEST.FUSION.SIGMA)
        about["fusion"] = {"anchors": list(store.settings.anchors), "sigma": sigma}
    if args.json:
        source = provenance(gallery.model.cfg.MODEL.WEIGHTS, gallery.model.cfg.MODEL.DEVICE)
        write_json(args.json, {**about, "answers": [a.plain() for a in answers], **source})
    if args.html:
        write_text(args.html, html_page(answers, about))
    if outputs:
        print(f"\n{' and '.join(map(str, outputs))} written")


def _remove(args: argparse.Namespace) -> None:
    gallery = Gallery.open(args.gallery)
    if args.identity:
        removed = gallery.remove(lambda entry: entry.identity == args.identity)
        if not removed:
            raise GalleryError(f"{args.gallery}: holds no image of identity {args.identity}")
    else:
        removed = gallery.remove_files(args.files)
    for entry in removed:
        print(f"removed: {entry.file}")
    print(f"{args.gallery}: {len(removed)} removed, {len(gallery.store)} images left")


def _info(args: argparse.Namespace) -> None:
    print(json.dumps(Gallery.open(args.gallery).info(), indent=2))


def _opened(args: argparse.Namespace) -> Gallery:
    """The gallery with its model, by default the one that it was built with."""
    store = Gallery.open(args.gallery).store
    settings = store.settings
    run = args.model or settings.run
    if not (args.model or run.startswith(HUB) or Path(run).exists()):
        raise GalleryError(
            f"{args.gallery}: was built with {run}, which is gone; name the model with --model"
        )
    return Gallery(store, load_model(run, args.device, _overrides(settings, args.opts)))


def _located(opts: Sequence[str], model: TrainedModel) -> list[str]:
    """Overrides that can be given again from any folder: paths in them are absolute."""
    located = []
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == "PLUGINS":
            value = str(list(model.cfg.PLUGINS))
        elif Path(value).is_file():
            value = str(Path(value).resolve())
        located += [key, value]
    return located


def _overrides(settings: Settings, opts: Sequence[str]) -> list[str]:
    """The overrides that the gallery was built with, but for those given anew, and these."""
    options = {
        **dict(zip(settings.opts[::2], settings.opts[1::2], strict=False)),
        "TEST.METRIC": settings.metric,
        "TEST.FLIP.ENABLED": str(settings.flip),
    }
    if settings.anchors:
        options["TEST.FUSION.ANCHORS"] = str(list(settings.anchors))
    kept = [word for key, value in options.items() if key not in opts for word in (key, value)]
    return [*kept, *opts]


def _report(store: Store, change: Change) -> None:
    """What was done, damaged images and duplicates named."""
    for message in change.damaged:
        _damaged(message)
    for file, other in change.duplicates:
        print(f"duplicate, left out: {file} is the same image as {other}")
    for file in change.replaced:
        print(f"replaced, for it has changed: {file}")
    for file in change.discarded:
        print(f"taken out, for it is junk: {file}")
    for old, new in change.moved:
        print(f"moved: {old} is {new} now")
    counts = {
        "added": change.added,
        "moved": len(change.moved),
        "relabelled": len(change.relabelled),
        "unchanged": change.unchanged,
        "duplicates": len(change.duplicates),
        "junk": len(change.junk),
        "damaged": len(change.damaged),
    }
    summary = ", ".join(f"{n} {name}" for name, n in counts.items() if n or name == "added")
    print(f"{store.where}: {summary}; {len(store)} images, {_index(store)}")


def _damaged(message: str) -> None:
    print(f"damaged, left out: {message}", file=sys.stderr)


def _index(store: Store) -> str:
    recall = store.recall
    if recall.kind == "exact":
        return "exact search"
    return (
        f"{recall.kind}, recall of the nearest {recall.neighbours} {recall.measured:.3f} "
        f"(asked: {store.settings.recall:g})"
    )
