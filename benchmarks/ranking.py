#!/usr/bin/env python3
"""Time and memory of ranking: a bare matrix product, ours, and fast-reid's, side by side.

Each contender runs in a process of its own on the same features: clusters of identities with noise,
as many as Market-1501 has by default. Peak memory is what a contender holds beyond the features and
the libraries. fast-reid's Python ranking treats one query after another and is slow, so it is timed
on --host-queries of them and scaled; its distances are timed on all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

import lrreid_ext  # noqa: F401  makes fastreid importable
from lrreid_ext.evaluation.memory import PeakMemory
from lrreid_ext.evaluation.provenance import provenance, write_json
from lrreid_ext.evaluation.ranking import rank_statistics
from lrreid_ext.files import write_text

PRODUCT, OURS, HOST = "matrix product", "lrreid_ext", "fast-reid, Python ranking"
CONTENDERS = (PRODUCT, OURS, HOST)

CAMERAS = 6
# Market-1501 has 15913 gallery images of its 750 test people and of distractors.
IMAGES_PER_IDENTITY = 21
# Noise of the clusters, relative to where it drowns them in wide features: mAP is then about 0.5.
NOISE = 0.54
# Noise of one image relative to another's: some people are seen well and others hardly.
SPREAD = 0.25
# Means of the two average precisions may differ by float32 rounding of near-equal distances.
TOLERANCE = 1e-4

MEGABYTE = 2**20


class BenchmarkError(RuntimeError):
    """A contender that failed, or contenders that don't agree."""


class Data(NamedTuple):
    """Features (N, D) float32, identities from 1 and cameras from 0, (N,) int64 each."""

    query: Tensor
    gallery: Tensor
    q_pids: NDArray[np.int64]
    g_pids: NDArray[np.int64]
    q_camids: NDArray[np.int64]
    g_camids: NDArray[np.int64]


def make_data(queries: int, gallery: int, dim: int, seed: int = 0) -> Data:
    """Features of people seen by six cameras; every query has a right answer.

    Args:
        queries, gallery: numbers of images; a gallery has at least two.
        dim: width of the features.
        seed: of everything drawn.
    """
    random = np.random.default_rng(seed)
    identities = max(1, gallery // IMAGES_PER_IDENTITY)
    centres = random.standard_normal((identities, dim), dtype=np.float32)
    # In turn, so that every identity is in the gallery, seen by one camera after another.
    g_pids = np.arange(gallery) % identities
    g_camids = (g_pids + np.arange(gallery) // identities) % CAMERAS
    q_pids = random.integers(identities, size=queries)
    # A camera other than that of the identity's first gallery image.
    q_camids = (q_pids + random.integers(1, CAMERAS, size=queries)) % CAMERAS

    def features(pids: NDArray[np.int64]) -> Tensor:
        out = np.empty((len(pids), dim), dtype=np.float32)
        for start in range(0, len(pids), 128):  # few at a time, to leave no mark on peak memory
            own = pids[start : start + 128]
            level = NOISE * dim**0.25 * random.lognormal(0, SPREAD, (len(own), 1))
            block = out[start : start + len(own)]
            random.standard_normal(out=block, dtype=np.float32)
            block *= level.astype(np.float32)
            block += centres[own]
        return torch.from_numpy(out)

    query, shown = features(q_pids), features(g_pids)
    return Data(query, shown, q_pids + 1, g_pids + 1, q_camids, g_camids)


def _seconds(work: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Each repeat's time, and what the last returned; earlier results are let go in time."""
    times, result = [], None
    for _ in range(repeats):
        result = None
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return times, result


def measure(contender: str, data: Data, repeats: int, host_queries: int) -> dict[str, Any]:
    """Time one contender in this process.

    Args:
        contender: one of ``CONTENDERS``.
        data: what is ranked.
        repeats: timed runs.
        host_queries: queries that fast-reid's ranking is timed on, and that mAP is compared on.

    Returns:
        ``seconds`` of each repeat and ``peak_bytes`` for all queries, ``map`` (0 to 1, over the
        first ``host_queries``; None for the bare product), ``threads``, and ``scaled_from``: the
        queries that time and memory were scaled from, None if all were ranked.
    """
    some = min(host_queries, len(data.query))
    # Thread pools and the libraries' own buffers belong to no contender.
    torch.mm(data.query[:8], data.gallery[:64].T)
    found: dict[str, Any] = {"map": None, "scaled_from": None, "threads": torch.get_num_threads()}
    labels = (data.q_pids, data.g_pids, data.q_camids, data.g_camids)
    peak = PeakMemory()
    if contender == PRODUCT:
        seconds, _ = _seconds(lambda: torch.mm(data.query, data.gallery.T), repeats)
        found["peak_bytes"] = peak.read()
    elif contender == OURS:
        seconds, ranked = _seconds(
            lambda: rank_statistics(data.query, data.gallery, *labels), repeats
        )
        found["peak_bytes"] = peak.read()
        found["map"] = ranked.subset(np.arange(some)).mean_ap
    else:
        seconds = _measure_host(data, repeats, some, peak, found)
    return {"seconds": seconds, **found}


def _measure_host(
    data: Data, repeats: int, some: int, peak: PeakMemory, found: dict[str, Any]
) -> list[float]:
    from fastreid.evaluation.rank import evaluate_rank
    from fastreid.utils.compute_dist import build_dist

    scale = len(data.query) / some
    distance_seconds, matrix = _seconds(
        lambda: build_dist(data.query, data.gallery, "cosine"), repeats
    )
    distance_peak = peak.read()

    def rank() -> Any:
        return evaluate_rank(
            matrix[:some], data.q_pids[:some], data.g_pids, data.q_camids[:some], data.g_camids,
            use_cython=False,
        )  # fmt: skip

    rank_seconds, (_, precisions, _) = _seconds(rank, repeats)
    # Once more, untimed: it is all numpy's memory, which can be traced. The process's largest size
    # would not show it, since making the distances took more.
    tracemalloc.start()
    rank()
    ranking_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Most of it (the order, the CMC curves) has a row per query.
    found["peak_bytes"] = max(distance_peak, matrix.nbytes + round(ranking_peak * scale))
    found["map"] = float(np.mean(precisions))
    found["scaled_from"] = some if some < len(data.query) else None
    found["distance_seconds"] = distance_seconds
    return [d + scale * r for d, r in zip(distance_seconds, rank_seconds, strict=True)]


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run every contender in a fresh process; the content of the results file.

    Raises:
        BenchmarkError: a contender failed, or ours and fast-reid's mAP differ.
    """
    contenders: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(CONTENDERS, start=1):
        print(f"[{k}/{len(CONTENDERS)}] {name} ...", end=" ", flush=True)
        found = _in_fresh_process(name, args)
        found["median_seconds"] = statistics.median(found["seconds"])
        contenders[name] = found
        print(f"{found['median_seconds']:.3g} s", flush=True)
    bare = contenders[PRODUCT]["median_seconds"]
    for found in contenders.values():
        found["ratio"] = found["median_seconds"] / bare
    ours, host = contenders[OURS]["map"], contenders[HOST]["map"]
    if abs(ours - host) > TOLERANCE:
        raise BenchmarkError(f"mAP differs: ours {ours:.6f}, fast-reid's {host:.6f}")
    settings = {k: getattr(args, k) for k in ("queries", "gallery", "dim", "repeats", "seed")}
    compared = min(args.host_queries, args.queries)
    return {
        "settings": {**settings, "metric": "cosine", "compared_queries": compared},
        "contenders": contenders,
        **provenance(),
    }


def _in_fresh_process(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--contender", contender]
    for key in ("queries", "gallery", "dim", "repeats", "host_queries", "threads", "seed"):
        command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
    environment = dict(os.environ)
    if args.threads:
        environment["OMP_NUM_THREADS"] = str(args.threads)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise BenchmarkError(f"{contender} failed, status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, Any], style: str) -> str:
    """A row per contender, and below it what was ranked and on which machine.

    Args:
        results: what :func:`run_all` returns.
        style: tabulate's name of a format, such as ``pipe`` for Markdown.
    """
    rows, notes = [], []
    for name, found in results["contenders"].items():
        mark = ""
        if found["scaled_from"]:
            mark = " *" if style != "pipe" else r" \*"
            notes.append(
                f"{mark.strip()} {name}: distances of all queries, median "
                f"{statistics.median(found['distance_seconds']):.2f} s; ranking timed on "
                f"{found['scaled_from']} queries, time and memory scaled to all."
            )
        rows.append(
            [
                name + mark,
                f"{found['median_seconds']:.3g}",
                f"{found['ratio']:.2f}",
                f"{found['peak_bytes'] / MEGABYTE:.0f}",
                "" if found["map"] is None else f"{found['map']:.4f}",
            ]
        )
    chosen, machine = results["settings"], results["machine"]
    compared = chosen["compared_queries"]
    headers = ["", "median s", "x product", "peak extra MiB", f"mAP of {compared} queries"]
    threads = results["contenders"][PRODUCT]["threads"]
    notes += [
        f"{chosen['queries']} queries, {chosen['gallery']} gallery images, {chosen['dim']} values "
        f"each, {chosen['metric']} distance, seed {chosen['seed']}; median of {chosen['repeats']}; "
        f"{threads} thread{'s' if threads > 1 else ''}.",
        f"{machine['processors']} x {machine['cpu']}, torch {machine['torch']}, Python "
        f"{machine['python']}; commit {results['commit'] or 'unknown'}; {results['command']}",
    ]
    body = tabulate(rows, headers, style, colalign=["left"] + ["right"] * 4, disable_numparse=True)
    return body + "\n\n" + "\n\n".join(notes) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, _, details = (__doc__ or "").partition("\n\n")
    out = argparse.ArgumentParser(
        prog="ranking.py",
        description=description,
        epilog=details,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--queries", type=int, default=3368, metavar="N", help="query images")
    out.add_argument("--gallery", type=int, default=15913, metavar="N", help="gallery images")
    out.add_argument("--dim", type=int, default=2048, metavar="N", help="width of the features")
    out.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each")
    out.add_argument(
        "--host-queries", type=int, default=400, metavar="N",
        help="queries that fast-reid's ranking is timed on, and that mAP is compared on",
    )  # fmt: skip
    out.add_argument("--threads", type=int, default=0, metavar="N", help="0: as torch chooses")
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of the features")
    out.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/ranking.json"), metavar="FILE",
        help="results file; the table is written beside it as .md",
    )  # fmt: skip
    out.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status: 1 if a contender failed or the figures differ."""
    cli = parser()
    args = cli.parse_args(argv)
    for key, least in (("queries", 1), ("gallery", 2), ("dim", 1), ("repeats", 1),
                       ("host_queries", 1), ("threads", 0), ("seed", 0)):  # fmt: skip
        if getattr(args, key) < least:
            cli.error(f"--{key.replace('_', '-')} must be at least {least}")
    if args.out.suffix != ".json":
        cli.error(f"--out {args.out}: must end in .json; the table goes beside it as .md")
    if args.contender:
        if args.threads:
            torch.set_num_threads(args.threads)
        data = make_data(args.queries, args.gallery, args.dim, args.seed)
        print(json.dumps(measure(args.contender, data, args.repeats, args.host_queries)))
        return 0
    try:
        results = run_all(args)
    except BenchmarkError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    write_json(args.out, results)
    page = args.out.with_suffix(".md")
    write_text(page, table(results, "pipe"))
    print(f"\n{table(results, 'simple')}\n{args.out} and {page} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
