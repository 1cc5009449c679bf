#!/usr/bin/env python3
"""Time and memory of evaluation: a bare matrix product, ours, and fast-reid's, side by side.

Each contender runs in a process of its own on the same features: clusters of identities with noise,
as many as Market-1501 has by default. Peak memory is what a contender holds beyond the features and
the libraries. What fast-reid does in Python for one query after another is slow, so it is timed on
--host-queries of them and scaled; its distances are timed on all. Its Cython code is compiled first
(pip install "lrreid_ext[bench]" and a C compiler), and left out where that can't be done. With
--device cuda, the product and ours run on a GPU, features and all, and memory is the GPU's;
fast-reid's code stays on the processor.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

import lrreid_ext  # noqa: F401  makes fastreid importable
from lrreid_ext.evaluation.matching import Matching, Side
from lrreid_ext.evaluation.ranking import RankStatistics, rank_statistics
from lrreid_ext.evaluation.reranking import k_reciprocal
from lrreid_ext.evaluation.single_shot import single_shot
from lrreid_ext.evaluation.verification import tar_at_far
from lrreid_ext.results.provenance import provenance
from shared import (
    MEGABYTE,
    BenchmarkError,
    PeakMemory,
    command_line,
    in_fresh_process,
    machine_line,
    save,
)

CAMERAS = 6
# Market-1501 has 15913 gallery images of its 750 test people and of distractors.
IMAGES_PER_IDENTITY = 21
# Noise of the clusters, relative to where it drowns them in wide features: mAP is then about 0.5.
NOISE = 0.54
# Noise of one image relative to another's: some people are seen well and others hardly.
SPREAD = 0.25
# False accept rate whose true accept rate is compared.
FAR = 1e-3
# Figures may differ by float32 rounding of near-equal distances.
TOLERANCE = 1e-4
# Options that say what is measured.
SETTINGS = ("queries", "gallery", "dim", "repeats", "seed", "device")
# fast-reid's code in Cython, by name of the module.
CYTHON = ("rank_cy", "roc_cy")


class Data(NamedTuple):
    """Features (N, D) float32, identities from 1 and cameras from 0, (N,) int64 each."""

    query: Tensor
    gallery: Tensor
    q_pids: NDArray[np.int64]
    g_pids: NDArray[np.int64]
    q_camids: NDArray[np.int64]
    g_camids: NDArray[np.int64]

    @property
    def labels(self) -> tuple[NDArray[np.int64], ...]:
        """Identities and cameras, as evaluation takes them."""
        return self[2:]

    @property
    def matching(self) -> Matching:
        """Both sides, as evaluation takes them."""
        query = Side(self.query, self.q_pids, self.q_camids, "query")
        return Matching(query, Side(self.gallery, self.g_pids, self.g_camids, "gallery"))

    def first(self, queries: int) -> tuple[NDArray[np.int64], ...]:
        """Identities and cameras where only the first queries are asked."""
        return self.q_pids[:queries], self.g_pids, self.q_camids[:queries], self.g_camids


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


class Asked(NamedTuple):
    """How a contender is to be measured.

    Attributes:
        repeats: timed runs.
        some: queries that slow code of fast-reid is timed on, and that its mAP is taken from.
        compiled: folder of fast-reid's compiled code, "" without.
    """

    repeats: int
    some: int
    compiled: str


Found = dict[str, Any]


def _timed(work: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Each repeat's time, and what the last returned; earlier results are let go in time."""
    times, result = [], None
    for _ in range(repeats):
        result = None
        _wait()
        start = time.perf_counter()
        result = work()
        _wait()
        times.append(time.perf_counter() - start)
    return times, result


def _wait() -> None:
    """Until a GPU has done what it was given; there is nothing to wait for without one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _measured(work: Callable[[], Any], repeats: int, **figures: Callable[[Any], float]) -> Found:
    """Time and peak memory of some work, and figures of what it returns."""
    peak = PeakMemory("cuda" if torch.cuda.is_initialized() else "cpu")
    seconds, result = _timed(work, repeats)
    found: Found = {"seconds": seconds, "peak_bytes": peak.read()}
    return {**found, "figures": {name: float(of(result)) for name, of in figures.items()}}


def _product(data: Data, asked: Asked) -> Found:
    return _measured(lambda: torch.mm(data.query, data.gallery.T), asked.repeats)


def _mean_ap(data: Data, asked: Asked) -> Callable[[RankStatistics], float]:
    return lambda ranked: ranked.subset(np.arange(min(asked.some, len(data.query)))).mean_ap


def _ranking(data: Data, asked: Asked) -> Found:
    return _measured(
        lambda: rank_statistics(data.matching),
        asked.repeats,
        mAP=_mean_ap(data, asked),
    )


def _verification(data: Data, asked: Asked) -> Found:
    return _measured(
        lambda: tar_at_far(data.matching, fars=(1e-6, FAR)),
        asked.repeats,
        TAR=lambda found: found.tar[1],
    )


def _reranking(data: Data, asked: Asked) -> Found:
    def work() -> RankStatistics:
        matching = data.matching
        jaccard = k_reciprocal(matching.query, matching.gallery)
        return rank_statistics(replace(matching, jaccard=jaccard))

    return _measured(work, 1, mAP=_mean_ap(data, asked))


def _single_shot(trials: int) -> Callable[[Data, Asked], Found]:
    return lambda data, asked: _measured(
        lambda: single_shot(data.matching, trials=trials),
        asked.repeats,
        Rank1=lambda found: found.mean([1])[0],
    )


def _host_in_python(
    data: Data, asked: Asked, rank: Callable[..., Any], figures: Callable[[Any], dict[str, float]]
) -> Found:
    """fast-reid's distances of all queries, and its ranking of some, scaled."""
    from fastreid.utils.compute_dist import build_dist

    some = min(asked.some, len(data.query))
    scale = len(data.query) / some
    peak = PeakMemory()
    distance_seconds, matrix = _timed(
        lambda: build_dist(data.query, data.gallery, "cosine"), asked.repeats
    )
    distance_peak = peak.read()

    def work() -> Any:
        return rank(matrix[:some], *data.first(some))

    seconds, ranked = _timed(work, asked.repeats)
    # Once more, untimed: it is all numpy's memory, which can be traced. The process's largest size
    # would not show it, since making the distances took more.
    tracemalloc.start()
    work()
    ranking_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "seconds": [d + scale * r for d, r in zip(distance_seconds, seconds, strict=True)],
        # Most of it (the order, the CMC curves) has a row per query.
        "peak_bytes": max(distance_peak, matrix.nbytes + round(ranking_peak * scale)),
        "figures": figures(ranked),
        "scaled_from": some if some < len(data.query) else None,
        "distance_seconds": distance_seconds,
    }


def _host_ranking(data: Data, asked: Asked) -> Found:
    from fastreid.evaluation.rank import evaluate_rank

    return _host_in_python(
        data,
        asked,
        lambda *ranked: evaluate_rank(*ranked, use_cython=False),
        lambda found: {"mAP": float(np.mean(found[1]))},
    )


def _host_single_shot(data: Data, asked: Asked) -> Found:
    from fastreid.evaluation.rank import eval_cuhk03

    np.random.seed(0)
    return _host_in_python(
        data,
        asked,
        lambda *ranked: eval_cuhk03(*ranked, 10),
        lambda found: {"Rank1": float(found[0][0])},
    )


def _host_ranking_cython(data: Data, asked: Asked) -> Found:
    from fastreid.utils.compute_dist import build_dist

    evaluate = _load(asked.compiled, "rank_cy").evaluate_cy
    return _measured(
        lambda: evaluate(build_dist(data.query, data.gallery, "cosine"), *data.labels, 50),
        asked.repeats,
        mAP=lambda found: np.mean(found[1][: asked.some]),
    )


def _host_verification(data: Data, asked: Asked) -> Found:
    from fastreid.utils.compute_dist import build_dist
    from sklearn.metrics import roc_curve

    evaluate = _load(asked.compiled, "roc_cy").evaluate_roc_cy

    def work() -> float:
        scores, labels = evaluate(build_dist(data.query, data.gallery, "cosine"), *data.labels)
        # It calls impostors 1 and takes their rate of rejection; the same work the right way round.
        false, true, _ = roc_curve(1 - labels, -scores)
        return true[np.searchsorted(false, FAR, side="right") - 1]

    return _measured(work, 1, TAR=lambda found: found)


def _host_reranking(data: Data, asked: Asked) -> Found:
    import fastreid.utils.compute_dist as host
    from fastreid.evaluation.rank import evaluate_rank

    # GPUs are counted by a faiss that a CPU's build lacks.
    host.faiss = SimpleNamespace(**{**vars(host.faiss), "get_num_gpus": lambda: 0})
    queries = len(data.query)

    def work() -> NDArray[np.float32]:
        unit = torch.nn.functional.normalize(torch.cat([data.query, data.gallery]))
        jaccard = host.compute_jaccard_distance(unit, search_option=3)[:queries, queries:]
        return jaccard * 0.7 + host.build_dist(data.query, data.gallery, "cosine") * 0.3

    def mean_ap(distances: NDArray[np.float32]) -> float:
        some = min(asked.some, queries)
        found = evaluate_rank(distances[:some], *data.first(some), use_cython=False)
        return float(np.mean(found[1]))

    return _measured(work, 1, mAP=mean_ap)


class Contender(NamedTuple):
    """Something to be measured: for which task, by whom, how, and whether it must be compiled."""

    task: str
    by: str
    run: Callable[[Data, Asked], Found]
    compiled: bool = False


TORCH, OURS = "torch", "lrreid_ext"
PYTHON, COMPILED = "fast-reid, Python", "fast-reid, Cython"

CONTENDERS = {
    "product": Contender("matrix product", TORCH, _product),
    "ranking": Contender("ranking", OURS, _ranking),
    "ranking-python": Contender("ranking", PYTHON, _host_ranking),
    "ranking-cython": Contender("ranking", COMPILED, _host_ranking_cython, True),
    "tar": Contender("TAR at FAR", OURS, _verification),
    "tar-cython": Contender("TAR at FAR", COMPILED, _host_verification, True),
    "reranking": Contender("re-ranking", OURS, _reranking),
    "reranking-python": Contender("re-ranking", PYTHON, _host_reranking),
    "single-shot": Contender("single-shot, 10 trials", OURS, _single_shot(10)),
    "single-shot-python": Contender("single-shot, 10 trials", PYTHON, _host_single_shot),
    "single-shot-100": Contender("single-shot, 100 trials", OURS, _single_shot(100)),
}

# Draws differ between the two, so what a single-shot test finds is not compared.
COMPARED = ("mAP", "TAR")


def compile_host(folder: str) -> str:
    """Compile fast-reid's Cython code into a folder; "" or, if that can't be done, why."""
    import fastreid.evaluation

    if importlib.util.find_spec("Cython") is None:
        return "Cython is not installed"
    sources = Path(fastreid.evaluation.__file__).parent / "rank_cylib"
    for name in CYTHON:
        shutil.copy(sources / f"{name}.pyx", folder)
    command = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-q"]
    done = subprocess.run(
        [*command, *(f"{name}.pyx" for name in CYTHON)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "CFLAGS": f"-O3 -w -I{np.get_include()}"}, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def _load(folder: str, name: str) -> ModuleType:
    (file,) = [f for f in Path(folder).glob(f"{name}*") if f.suffix in (".so", ".pyd")]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(name: str, data: Data, asked: Asked, device: str = "cpu") -> Found:
    """Time one contender in this process.

    Args:
        name: the contender's.
        data: on the processor.
        asked: how.
        device: where the features go first, unless the contender is fast-reid's.

    Returns:
        ``seconds`` of each repeat and ``peak_bytes`` for all queries, ``figures`` from 0 to 1 (mAP
        over the first ``asked.some`` queries), ``threads``, ``device``, and ``scaled_from``: the
        queries that time and memory were scaled from, None if all were asked.
    """
    if CONTENDERS[name].by in (OURS, TORCH):
        data = data._replace(query=data.query.to(device), gallery=data.gallery.to(device))
    # Thread pools and the libraries' own buffers belong to no contender.
    torch.mm(data.query[:8], data.gallery[:64].T)
    found = CONTENDERS[name].run(data, asked)
    where = data.query.device.type
    return {"scaled_from": None, "threads": torch.get_num_threads(), "device": where, **found}


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen contenders in fresh processes; the content of the results file.

    Raises:
        BenchmarkError: a contender failed, or ours and fast-reid's figures differ.
    """
    names = [name for name in CONTENDERS if not args.only or name in args.only]
    found: dict[str, Found] = {}
    left_out = {}
    with tempfile.TemporaryDirectory(prefix="ranking-") as folder:
        start = time.perf_counter()
        needed = any(CONTENDERS[name].compiled for name in names)
        why = compile_host(folder) if needed else ""
        compile_seconds = time.perf_counter() - start if needed and not why else None
        for k, name in enumerate(names, start=1):
            contender = CONTENDERS[name]
            print(f"[{k}/{len(names)}] {contender.task}, {contender.by}", end=" ... ", flush=True)
            if contender.compiled and why:
                left_out[name] = why
                print(f"left out: {why}", flush=True)
                continue
            words = ["--contender", name, "--compiled", folder]
            for key in (
                "queries",
                "gallery",
                "dim",
                "repeats",
                "host_queries",
                "threads",
                "seed",
                "device",
            ):
                words += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
            found[name] = in_fresh_process(__file__, words, args.threads, name)
            found[name]["median_seconds"] = statistics.median(found[name]["seconds"])
            print(f"{found[name]['median_seconds']:.3g} s", flush=True)
    _check_agreement(found)
    settings = {k: getattr(args, k) for k in SETTINGS}
    compared = min(args.host_queries, args.queries)
    return {
        "settings": {**settings, "metric": "cosine", "compared_queries": compared, "far": FAR},
        "contenders": found,
        "left_out": left_out,
        "compile_seconds": compile_seconds,
        **provenance(device=args.device),
    }


def _check_agreement(found: dict[str, Found]) -> None:
    seen: dict[tuple[str, str], tuple[str, float]] = {}
    for name, result in found.items():
        contender = CONTENDERS[name]
        for figure in set(COMPARED) & result["figures"].keys():
            value = result["figures"][figure]
            by, other = seen.setdefault((contender.task, figure), (contender.by, value))
            if not abs(value - other) <= TOLERANCE:
                raise BenchmarkError(
                    f"{contender.task}: {figure} differs: {by} {other:.6f}, {contender.by} "
                    f"{value:.6f}"
                )


def table(results: dict[str, Any], style: str) -> str:
    """A row per contender, and below it what was ranked and on which machine.

    Args:
        results: what :func:`run_all` returns.
        style: tabulate's name of a format, such as ``pipe`` for Markdown.
    """
    rows, notes = [], []
    star = "*" if style != "pipe" else r"\*"
    found = results["contenders"]
    bare = found.get("product", {}).get("median_seconds")
    ours = {CONTENDERS[n].task: f["median_seconds"] for n, f in found.items()
            if CONTENDERS[n].by == OURS}  # fmt: skip
    for name, result in found.items():
        contender, seconds = CONTENDERS[name], result["median_seconds"]
        base = ours.get(contender.task)
        rows.append(
            [
                contender.task,
                contender.by + (f" {star}" if result["scaled_from"] else ""),
                f"{seconds:.3g}",
                f"{seconds / bare:.2f}" if bare else "",
                f"{seconds / base:.3g}" if base and contender.by != OURS else "",
                f"{result['peak_bytes'] / MEGABYTE:.0f}",
                ", ".join(f"{k} {v:.4f}" for k, v in result["figures"].items()),
            ]
        )
    scaled = {f["scaled_from"] for f in found.values() if f["scaled_from"]}
    if scaled:
        notes.append(
            f"{star} Distances of all queries; what follows was timed on {scaled.pop()} queries, "
            "time and memory scaled to all."
        )
    chosen = results["settings"]
    if any(CONTENDERS[name].compiled for name in found):
        notes.append(f"Compiling fast-reid's Cython took {results['compile_seconds']:.3g} s more.")
    for name, why in results["left_out"].items():
        notes.append(f"{CONTENDERS[name].task}, {CONTENDERS[name].by}: left out, {why}.")
    threads = next(iter(found.values()))["threads"] if found else 0
    notes += [
        *_of_device(chosen, found),
        f"{chosen['queries']} queries, {chosen['gallery']} gallery images, {chosen['dim']} values "
        f"each, {chosen['metric']} distance, seed {chosen['seed']}; median of {chosen['repeats']} "
        f"(re-ranking, and TAR by fast-reid: once); {threads} thread{'s' if threads > 1 else ''}. "
        f"mAP of the first {chosen['compared_queries']} queries, TAR at FAR {chosen['far']:g}.",
        machine_line(results),
    ]
    headers = ["", "by", "median s", "x product", "x ours", "peak extra MiB", ""]
    align = ["left", "left", *["right"] * 4, "left"]
    body = tabulate(rows, headers, style, colalign=align, disable_numparse=True)
    return body + "\n\n" + "\n\n".join(notes) + "\n"


def _of_device(chosen: dict[str, Any], found: dict[str, Found]) -> list[str]:
    """Who ran where, and whose memory is counted; nothing where all ran on the processor."""
    if chosen.get("device", "cpu") == "cpu":
        return []
    note = f"On {chosen['device']}: torch and lrreid_ext, whose memory is that device's"
    host = any(CONTENDERS[name].by in (PYTHON, COMPILED) for name in found)
    return [f"{note}; fast-reid's ranking stays on the processor." if host else f"{note}."]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = command_line("ranking.py", __doc__ or "", "benchmarks/results/ranking.json")
    out.add_argument("--queries", type=int, default=3368, metavar="N", help="query images")
    out.add_argument("--gallery", type=int, default=15913, metavar="N", help="gallery images")
    out.add_argument("--dim", type=int, default=2048, metavar="N", help="width of the features")
    out.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each")
    out.add_argument(
        "--host-queries", type=int, default=400, metavar="N",
        help="queries that fast-reid's Python is timed on, and that mAP is compared on",
    )  # fmt: skip
    out.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where features are")
    out.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME",
        help=f"measure these alone: {', '.join(CONTENDERS)}",
    )  # fmt: skip
    out.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    out.add_argument("--compiled", default="", help=argparse.SUPPRESS)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status: 1 if a contender failed or the figures differ."""
    cli = parser()
    args = cli.parse_args(argv)
    for key, least in (("queries", 1), ("gallery", 2), ("dim", 1), ("repeats", 1),
                       ("host_queries", 1)):  # fmt: skip
        if getattr(args, key) < least:
            cli.error(f"--{key.replace('_', '-')} must be at least {least}")
    if args.device == "cuda" and not torch.cuda.is_available():
        cli.error("--device cuda: torch sees no GPU here")
    if args.contender:
        if args.threads:
            torch.set_num_threads(args.threads)
        data = make_data(args.queries, args.gallery, args.dim, args.seed)
        asked = Asked(args.repeats, args.host_queries, args.compiled)
        print(json.dumps(measure(args.contender, data, asked, args.device)))
        return 0
    return save(args.out, lambda: run_all(args), table)


if __name__ == "__main__":
    raise SystemExit(main())
