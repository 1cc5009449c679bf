#!/usr/bin/env python3
"""Searching a gallery: exact and HNSW, at a size that outgrows a laptop's patience.

Each kind of index makes a gallery of the same vectors and then, opened anew, answers the same
queries one at a time; both in processes of their own. Vectors are clusters of identities with noise
in a space whose directions matter less and less, as the features of trained networks lie: standard
deviations fall with the square root of the direction's number, and all is turned at random.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate

import lrreid_ext  # noqa: F401  makes fastreid importable
from lrreid_ext.results.provenance import provenance
from lrreid_ext.search import Entry
from lrreid_ext.search.index import KINDS, Queries
from lrreid_ext.search.sqlite import SqliteStore
from lrreid_ext.search.store import Settings
from shared import (
    MEGABYTE,
    BenchmarkError,
    PeakMemory,
    command_line,
    in_fresh_process,
    machine_line,
    save,
)

# As many images of a person as Market-1501's gallery has.
IMAGES_PER_IDENTITY = 21
# Deviation of an image from its identity's centre, relative to that of the centres; it varies from
# image to image by SPREAD, as some people are seen well and others hardly.
NOISE, SPREAD = 0.8, 0.25
# Matches asked for, and queries before the clock is started.
MATCHES, WARM_UP = 10, 20
_BLOCK = 4096


class Drawn:
    """Vectors (N, D) float32 of identities 0 to N // 21, in blocks, the same for the same seed."""

    def __init__(self, count: int, dim: int, seed: int) -> None:
        self.count, self.seed = count, seed
        random = np.random.default_rng([seed, 0])
        self.identities = max(2, count // IMAGES_PER_IDENTITY)
        self._deviations = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
        turn = np.linalg.qr(random.standard_normal((dim, dim)))[0]
        self._turn = np.ascontiguousarray(turn, np.float32)
        self._centres = random.standard_normal((self.identities, dim), dtype=np.float32)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The gallery's."""
        for start in range(0, self.count, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, self.count))
            yield self._images(rows % self.identities, [self.seed, 1, start])

    def queries(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Other images of the same people, and who they are."""
        people = np.random.default_rng([self.seed, 2]).integers(self.identities, size=count)
        return self._images(people, [self.seed, 3]), people

    def _images(self, people: NDArray[np.int64], seed: list[int]) -> NDArray[np.float32]:
        random = np.random.default_rng(seed)
        level = NOISE * random.lognormal(0, SPREAD, (len(people), 1)).astype(np.float32)
        noise = random.standard_normal((len(people), len(self._turn)), dtype=np.float32)
        vectors = (self._centres[people] + level * noise) * self._deviations @ self._turn
        return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def build(kind: str, folder: Path, drawn: Drawn, dim: int, recall: float) -> dict[str, Any]:
    """Make one gallery in this process.

    Returns:
        ``seconds`` from the first vector to a gallery that can be searched, its recall having been
        measured; drawing the vectors is not counted. ``peak_bytes`` in memory.
    """
    settings = Settings("-", "-", "cosine", False, (), dim, kind, recall)
    peak = PeakMemory()
    seconds, number = 0.0, 0
    store = SqliteStore.create(str(folder), settings)
    for block in drawn.blocks():
        numbers = range(number, number + len(block))
        number += len(block)
        entries = [Entry(f"{n:064x}", f"/{n:09d}.png", 128, 64) for n in numbers]
        start = time.perf_counter()
        store.put(entries, block)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    store.refresh()
    seconds += time.perf_counter() - start
    figures = {"seconds": seconds, "peak_bytes": peak.read(), "kind": store.recall.kind}
    return {**figures, "disk_bytes": store.size()}


def serve(folder: Path, drawn: Drawn, queries: int) -> dict[str, Any]:
    """Open a gallery in this process and ask it one query after another.

    Returns:
        ``milliseconds`` of each, its ``first`` match's number, ``right`` (share of queries whose
        first match shows the same person), ``peak_bytes`` and ``setting``.
    """
    vectors, people = drawn.queries(queries)
    weights = np.ones((1, 1), np.float32)
    peak = PeakMemory()
    store = SqliteStore.open(str(folder))
    times, first = [], []
    for n in [*range(min(WARM_UP, queries)), *range(queries)]:
        start = time.perf_counter()
        (matches,) = store.search(Queries(vectors[n : n + 1], weights), MATCHES)
        times.append(1000 * (time.perf_counter() - start))
        first.append(int(matches[0][0].sha256, 16))
    first, times = first[-queries:], times[-queries:]
    right = np.array(first) % drawn.identities == people
    return {
        "milliseconds": times,
        "first": first,
        "right": float(right.mean()),
        "peak_bytes": peak.read(),
        "setting": store.recall.setting,
        "measured": store.recall.measured,
    }


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Build and serve every kind; the content of the results file.

    Raises:
        BenchmarkError: a process failed, or there isn't room for so many vectors.
    """
    needed = 4 * args.vectors * args.dim
    _check_room(needed, args.work)
    kinds: dict[str, dict[str, Any]] = {}
    exact: list[int] = []
    with tempfile.TemporaryDirectory(prefix="search-", dir=args.work) as work:
        for k, kind in enumerate(KINDS, start=1):
            print(f"[{k}/{len(KINDS)}] {kind} ...", end=" ", flush=True)
            folder = Path(work, kind)
            built = _in_fresh_process("build", kind, folder, args)
            served = _in_fresh_process("serve", kind, folder, args)
            shutil.rmtree(folder)
            exact = exact or served["first"]
            times = served["milliseconds"]
            kinds[kind] = {
                "index": built["kind"],
                "build_seconds": built["seconds"],
                "build_peak_bytes": built["peak_bytes"],
                "disk_bytes": built["disk_bytes"],
                "p50_milliseconds": statistics.median(times),
                "p99_milliseconds": float(np.percentile(times, 99)),
                "recall_at_1": float(np.mean(np.equal(served["first"], exact))),
                "same_person_first": served["right"],
                "search_peak_bytes": served["peak_bytes"],
                "setting": served["setting"],
                "own_recall": served["measured"],
            }
            print(
                f"{built['seconds']:.3g} s to build, {statistics.median(times):.3g} ms a query",
                flush=True,
            )
    keys = ("vectors", "dim", "queries", "recall", "seed")
    settings = {key: getattr(args, key) for key in keys}
    threads = args.threads or torch.get_num_threads()
    return {
        "settings": {**settings, "matches": MATCHES, "metric": "cosine", "threads": threads},
        "drawn": (__doc__ or "").split("; both in processes of their own. ")[1].strip(),
        "kinds": kinds,
        "faiss": faiss.__version__,
        **provenance(),
    }


def _check_room(needed: int, work: Path | None) -> None:
    """Refuse what this machine can't hold: the vectors twice in memory, and thrice on the disk."""
    place = work or Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if 3 * needed > free:
        raise BenchmarkError(
            f"{place}: {3 * needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free; name "
            "another folder with --work, or fewer --vectors"
        )
    path = Path("/proc/meminfo")
    if not path.is_file():
        return
    lines = dict(line.split(":") for line in path.read_text().splitlines())
    available = 1024 * int(lines["MemAvailable"].split()[0])
    if 2.5 * needed > available:
        raise BenchmarkError(
            f"{2.5 * needed / 2**30:.1f} GiB of memory are needed, {available / 2**30:.1f} are "
            "available; take fewer --vectors"
        )


def _in_fresh_process(
    task: str, kind: str, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    words = ["--task", task, kind, str(folder)]
    for key in ("vectors", "dim", "queries", "recall", "threads", "seed"):
        words += [f"--{key}", str(getattr(args, key))]
    return in_fresh_process(__file__, words, args.threads, kind)


def table(results: dict[str, Any], style: str) -> str:
    """A row per kind, and below it what was searched and on which machine.

    Args:
        results: what :func:`run_all` returns.
        style: tabulate's name of a format, such as ``pipe`` for Markdown.
    """
    chosen = results["settings"]
    rows, notes = [], []
    for kind, figures in results["kinds"].items():
        if figures["index"] != kind:
            notes.append(f"{kind} missed the recall asked for; {figures['index']} took its place.")
        rows.append(
            [
                kind,
                f"{figures['build_seconds']:.3g}",
                f"{figures['p50_milliseconds']:.3g}",
                f"{figures['p99_milliseconds']:.3g}",
                f"{figures['recall_at_1']:.3f}",
                str(figures["setting"] or ""),
                f"{figures['search_peak_bytes'] / MEGABYTE:.0f}",
                f"{figures['build_peak_bytes'] / MEGABYTE:.0f}",
                f"{figures['disk_bytes'] / MEGABYTE:.0f}",
            ]
        )
    headers = [
        "", "build s", "p50 ms", "p99 ms", "recall@1", "visits", "memory MiB",
        "while building", "disk MiB",
    ]  # fmt: skip
    right = results["kinds"]["exact"]["same_person_first"]
    threads = chosen["threads"]
    notes += [
        f"{chosen['vectors']} vectors of {chosen['dim']} values; {chosen['queries']} queries, one "
        f"at a time, {chosen['matches']} matches each, after {WARM_UP} that aren't counted; "
        f"{chosen['metric']} distance, seed {chosen['seed']}, {threads} "
        f"thread{'s' if threads > 1 else ''}. recall@1: the exact search's first match is this "
        f"one's too. Asked for: {chosen['recall']:g} of the ten nearest, measured by the gallery "
        "on itself, which so chooses how many nodes a search visits.",
        "Building ends with a gallery that can be searched, its recall measured. Memory is what a "
        "process holds beyond the libraries.",
        f"{results['drawn']} The exact search's first match shows the query's identity in "
        f"{100 * right:.0f} % of queries.",
        machine_line(results, f"faiss {results['faiss']}"),
    ]
    align = ["left"] + ["right"] * (len(headers) - 1)
    body = tabulate(rows, headers, style, colalign=align, disable_numparse=True)
    return body + "\n\n" + "\n\n".join(" ".join(note.split()) for note in notes) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line("search.py", __doc__ or "", "benchmarks/results/search.json")
    command.add_argument(
        "--vectors", type=int, default=1_000_000, metavar="N", help="in the gallery"
    )
    command.add_argument("--dim", type=int, default=512, metavar="N", help="width of the vectors")
    command.add_argument("--queries", type=int, default=500, metavar="N", help="timed one by one")
    command.add_argument("--recall", type=float, default=0.95, metavar="R", help="asked for")
    command.add_argument(
        "--work", type=Path, metavar="DIR", help="for the galleries, removed again"
    )
    command.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status: 1 if a kind failed or there isn't room."""
    cli = parser()
    args = cli.parse_args(argv)
    for key, least in (("vectors", 100), ("dim", 2), ("queries", 1)):
        if getattr(args, key) < least:
            cli.error(f"--{key} must be at least {least}")
    if not 0 < args.recall <= 1:
        cli.error("--recall must be above 0 and at most 1")
    if args.task:
        if args.threads:
            torch.set_num_threads(args.threads)
        task, kind, folder = args.task
        drawn = Drawn(args.vectors, args.dim, args.seed)
        if task == "build":
            figures = build(kind, Path(folder), drawn, args.dim, args.recall)
        else:
            figures = serve(Path(folder), drawn, args.queries)
        print(json.dumps(figures))
        return 0
    return save(args.out, lambda: run_all(args), table)


if __name__ == "__main__":
    raise SystemExit(main())
