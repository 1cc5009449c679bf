#!/usr/bin/env python3
"""Values that a refactor must not change: recompute them and compare with those stored here.

    python tests/golden/record.py [PART ...]           compare; status 1 if anything differs
    python tests/golden/record.py --write [PART ...]   store

Parts, each with ``<part>.json`` beside this file:

- ``scores``: figures of the standard evaluator on drawn features, by protocol and setting.
- ``manifests``: manifest hashes of every recipe, and of every kernel, on miniature sources.

Hashes hold on the machine that they were recorded on (``machine`` in the file). Elsewhere they are
left out of the comparison, and numbers may differ a little more.
"""

# ruff: noqa: E402, I001 - the repository itself is imported, not what may be installed
from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent)]

import cv2
import numpy as np
import PIL
import torch
from PIL import Image

# What a refactor may have to change: these imports, and the functions below them.
import mini_sets
from lrreid_ext import build_dataset
from lrreid_ext.config import load_cfg
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.registry import DATASET_REGISTRY, EVALUATOR_REGISTRY, names

Values = dict[str, dict[str, Any]]

CONFIG = str(ROOT / "configs/osnet_copies.yml")


def evaluated(
    options: list[str], samples: list[Sample], features: np.ndarray, sizes: np.ndarray
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by ``protocol/group/figure``, and the content of the results file."""
    cfg = load_cfg(CONFIG, ["MODEL.DEVICE", "cpu", *options])
    with tempfile.TemporaryDirectory() as folder:
        test_set = TestSet("golden", samples)
        evaluator = EVALUATOR_REGISTRY.get("CrossResolutionEvaluator")(cfg, test_set, folder)
        evaluator.reset()
        for index in torch.arange(len(samples)).split(50):
            batch = {"index": index, "native_size": torch.from_numpy(sizes)[index]}
            evaluator.process(batch, torch.from_numpy(features)[index])
        figures = evaluator.evaluate()
        return dict(figures), json.loads(Path(folder, "results_golden.json").read_text())


# ------------------------------------------------------------------------------------------ scores


def scores(folder: Path) -> Values:
    """Figures of :func:`people` under many settings; ties, junk and distractors are among them."""
    multi = ["TEST.PROTOCOLS", "['multi_shot']"]
    single = ["TEST.PROTOCOLS", "['single_shot']"]
    euclidean = ["TEST.METRIC", "euclidean"]
    rerank = ["TEST.RERANK.ENABLED", "True", "TEST.RERANK.K1", "12", "TEST.RERANK.K2", "4"]
    aqe = ["TEST.AQE.ENABLED", "True", "TEST.AQE.QE_TIME", "2", "TEST.AQE.QE_K", "4"]
    roc = ["TEST.ROC.ENABLED", "True", "TEST.ROC.FARS", "[1e-3, 1e-2, 1e-1]"]
    ci = ["TEST.CI.REPEATS", "200"]
    anchors = ["MODEL.ANCHORS.FACTORS", "[2, 3, 4]", "TEST.FUSION.SIGMA", "0.2"]
    cases: dict[str, tuple[str, list[str]]] = {
        "default": ("twins", []),
        "euclidean": ("twins", euclidean),
        "per_query": ("twins", [*single, "TEST.DRAW", "per_query"]),
        "per_query_euclidean": ("plain", [*single, *euclidean, "TEST.DRAW", "per_query"]),
        "seed": ("plain", [*single, "TEST.SEED", "7", "TEST.TRIALS", "3"]),
        "bins": ("plain", ["TEST.FACTOR_BINS", "[1, 2.5, 3.5]"]),
        "hr_to_hr": ("hr", []),
        "mixed_gallery": ("mixed", []),
        "roc": ("plain", [*multi, *roc]),
        "roc_euclidean": ("plain", [*multi, *roc, *euclidean]),
        "rerank": ("twins", [*multi, *rerank]),
        "rerank_euclidean": ("plain", [*multi, *rerank, *euclidean, "TEST.RERANK.LAMBDA", "0.5"]),
        "aqe": ("plain", [*multi, *aqe]),
        "aqe_rerank_roc": ("plain", [*multi, *aqe, *rerank, *roc]),
        "fusion": ("anchors", anchors),
        "fusion_euclidean": ("anchors", [*anchors, *euclidean, "TEST.FUSION.ANCHORS", "[4, 2]"]),
        "fusion_even": ("anchors", [*anchors, "TEST.FUSION.SIGMA", "0.0"]),
        "fusion_untrained": ("untrained", anchors),
        "ci_identity": ("plain", [*ci, *roc]),
        "ci_query": ("plain", [*ci, "TEST.CI.BY", "query", "TEST.CI.LEVEL", "0.8"]),
        "ci_per_query": ("plain", [*ci, *single, "TEST.DRAW", "per_query"]),
    }
    values: Values = {}
    for name, (kind, options) in cases.items():
        figures, results = evaluated(["TEST.RANKS", "[1, 5]", *options], *people(kind))
        values[f"{name}/counts"] = results["counts"]
        for group, entry in results["groups"].items():
            counts = {key: n for key, n in entry.items() if isinstance(n, int)}
            for protocol in results["protocols"]:
                row = {**counts, **{k: v for k, v in entry[protocol].items() if k != "trials"}}
                prefix = f"{protocol}/{group}/"
                returned = {k[len(prefix) :]: v for k, v in figures.items() if k.startswith(prefix)}
                assert returned.items() <= row.items(), (name, prefix, returned, row)
                values[f"{name}/{protocol}/{group}"] = row
    return values


def people(kind: str) -> tuple[list[Sample], np.ndarray, np.ndarray]:
    """Images of 20 people by four cameras: samples, features and native sizes.

    Args:
        kind: ``plain``, queries of drawn factors and an HR gallery; ``twins``, with every query's
            twins besides; ``hr``, HR queries; ``mixed``, HR queries and a gallery of drawn factors;
            ``anchors``, features (N, 3, D), of which ``untrained`` lacks the second.
    """
    rng = np.random.default_rng(17)
    samples = []
    for pid in range(1, 21):
        for shot in range(3):
            # The last two aren't in the gallery; one query of some is junk.
            known = pid if pid <= 18 else pid + 100
            query = -1 if pid % 6 == 0 and shot == 2 else known
            camera, factor = 1 + shot % 2, float(rng.choice([2, 3, 4]))
            name = f"{pid}_{shot}.png"
            factor = 1.0 if kind in ("hr", "mixed") else factor
            samples.append(Sample(name, query, camera, "query", factor))
            if kind == "twins":
                samples.append(Sample(name, query, camera, "query_hr"))
                samples += [Sample(name, query, camera, f"x{f}", f, f) for f in (2.0, 4.0)]
    for pid in range(-1, 19):
        for shot in range(2 + (pid % 4 if pid > 0 else 8)):
            factor = float(rng.choice([1, 2, 3, 4])) if kind == "mixed" else 1.0
            samples.append(Sample(f"g{pid}_{shot}.png", pid, 1 + shot % 4, "gallery", factor))
    samples = [samples[i] for i in rng.permutation(len(samples))]
    centres = rng.normal(size=(130, 3, 16))
    # Multiples of 1/64, whose squares and sums are exact in float32.
    noise = rng.normal(size=(len(samples), 3, 16))
    spread = np.array([0.6 + 0.35 * s.factor for s in samples])[:, None, None]
    features = np.round(64 * (centres[[s.pid for s in samples]] + spread * noise)) / 64
    shown = [i for i, s in enumerate(samples) if s.group == "gallery"]
    ties = len(shown) // 5
    features[shown[:ties]] = features[shown[-ties:]]
    sizes = np.array([[int(128 / s.factor), int(64 / s.factor)] for s in samples])
    sizes += rng.integers(0, 6, sizes.shape)
    if kind == "untrained":
        features[:, 1] = np.nan
    if kind not in ("anchors", "untrained"):
        features = features[:, 0]
    return samples, features.astype(np.float32), sizes


# --------------------------------------------------------------------------------------- manifests


def cuhk01(root: Path) -> Path:
    for pid in range(1, 7):
        for shot in (1, 2, 3, 4):
            mini_sets.write(root / f"{pid:04d}{shot:03d}.png", 160, 60)
    return root


KERNELS = (
    "area", "bicubic", "bilinear", "blur", "cv2-linear", "first-order", "jpeg", "lanczos",
    "max-pool", "noise", "second-order", "shuffled",
)  # fmt: skip


def manifests(folder: Path) -> Values:
    """Manifest hash, counts, and a hash of labels and decoded pixels of built data sets."""
    # Source, recipe, options; "@" and what follows tells cases of one recipe apart.
    viper = {"identities": 8, "train_identities": 4}
    cuhk03 = {"identities": 10, "train_identities": 7, "split": 1}
    synth = {"identities": 16, "height": 64, "width": 32}
    sources: dict[str, Callable[[Path], Path]] = {
        "viper": mini_sets.viper,
        "prid": mini_sets.prid,
        "caviar": mini_sets.caviar,
        "sysu": mini_sets.sysu,
        "sysu_flat": lambda root: mini_sets.sysu(root, flat=True),
        "cuhk01": cuhk01,
        "cuhk03": mini_sets.cuhk03_folders,
        "cuhk03_mat": mini_sets.cuhk03_mat,
        "market": mini_sets.market,
        "duke": lambda root: mini_sets.market(root, 8, "_f0046182.jpg"),
        "folder": lambda root: mini_sets.market(root, 4, "-hall.png"),
        "msmt17": mini_sets.msmt17,
        "table": mini_sets.table,
    }
    sysu = {"identities": 6, "train_identities": 3, "shots": 5}
    caviar = {"identities": 6, "train_identities": 3}
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("viper", "mlr_viper", viper),
        ("viper", "mlr_viper@split", {**viper, "split": 3, "seed": 5, "lr_camera": 1}),
        ("viper", "salr_viper", {"identities": 8, "train_identities": 6}),
        ("prid", "salr_prid", {"identities": 6, "train_identities": 4}),
        ("caviar", "caviar", caviar),
        ("caviar", "salr_caviar", {"identities": 6, "train_identities": 4, "one_camera": 2}),
        ("sysu", "mlr_sysu", sysu),
        ("sysu", "mlr_sysu@identity", {**sysu, "factor_mode": "per_identity", "rounding": "ceil"}),
        ("sysu", "mlr_sysu@camera", {**sysu, "factor_mode": "per_camera", "rounding": "floor"}),
        ("sysu", "mlr_sysu@span", {**sysu, "span": [1.5, 5], "encoding": "jpeg"}),
        ("sysu", "mlr_sysu@random", {**sysu, "lr_camera": "random", "factors": [2.5, 5]}),
        ("sysu_flat", "mlr_sysu@flat", sysu),
        ("cuhk01", "mlr_cuhk01", {"identities": 6, "train_identities": 3}),
        ("cuhk03", "mlr_cuhk03", cuhk03),
        ("cuhk03_mat", "mlr_cuhk03@mat", cuhk03),
        ("market", "mlr_market1501", {}),
        ("market", "mlr_market1501_c3", {}),
        ("market", "mlr_market1501_per_identity", {}),
        ("market", "mlr_market1501_prpr", {}),
        ("market", "vr_market1501", {}),
        ("duke", "mlr_dukemtmc", {}),
        ("folder", "mlr_folder", {"lr_camera": 2}),
        ("msmt17", "vr_msmt17", {"train_identities": 3, "test_identities": 4}),
        ("table", "mlr_csv", {}),
        ("", "synth_pedestrians", synth),
        ("", "synth_pedestrians@other", {**synth, "split": 1, "seed": 2, "cameras": 3}),
        *(("viper", f"mlr_viper@{kernel}", {**viper, "kernel": kernel}) for kernel in KERNELS),
    ]
    recipes = {recipe.partition("@")[0] for _, recipe, _ in cases}
    named = [n for n in names(DATASET_REGISTRY) if n.startswith(("mlr_", "salr_", "vr_"))]
    assert recipes >= set(named), f"recipes without a case: {set(named) - recipes}"
    for name, make in sources.items():
        make(folder / "sources" / name)
    values: Values = {}
    for source, case, options in cases:
        out = folder / "built" / case
        recipe = case.partition("@")[0]
        data = build_dataset(
            recipe, folder / "sources" / source if source else None, out, **options
        )
        manifest = json.loads((out / "manifest.json").read_text())
        facts = ("file", "pid", "camid", "split", "role", "factor", "kernel", "parameters")
        digest = hashlib.sha256()
        for image in sorted(manifest["images"], key=lambda image: image["file"]):
            digest.update(json.dumps([image.get(fact) for fact in facts]).encode())
            digest.update(np.asarray(Image.open(out / image["file"]).convert("RGB")).tobytes())
        values[case] = {
            "sha256_manifest": manifest["hash"],
            "sha256_content": digest.hexdigest(),
            **{side: len(getattr(data, side)) for side in ("train", "query", "gallery")},
        }
    return values


# -------------------------------------------------------------------------- compare, store, command


PARTS: dict[str, Callable[[Path], Values]] = {"scores": scores, "manifests": manifests}
QUICK = ("scores", "manifests")


def machine() -> dict[str, str]:
    """What decides the last bits of numbers and the bytes of images."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
    }


def rounded(value: Any) -> Any:
    """Floats to six significant digits, arrays as lists."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def computed(part: str) -> Values:
    """The values of one part now, rounded, computed by one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return rounded(PARTS[part](Path(folder)))


def differences(part: str, values: Values) -> Iterable[str]:
    """A line for each value that isn't the stored one."""
    stored = json.loads((HERE / f"{part}.json").read_text())
    same = stored["machine"] == machine()
    for key in sorted(stored["values"].keys() | values.keys()):
        then, now = stored["values"].get(key, {}), values.get(key, {})
        for name in sorted(then.keys() | now.keys()):
            if name.startswith("sha256_") and not same:
                continue
            if not equal(then.get(name), now.get(name), 2e-5 if same else 0.02):
                yield f"{part}: {key} {name}: {then.get(name)} -> {now.get(name)}"


def equal(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two stored values are the same, numbers within a relative tolerance."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    return a == b


def write(part: str, values: Values) -> None:
    """Store a part, a line for each key."""
    lines = [f'"{key}": {json.dumps(values[key], sort_keys=True)}' for key in sorted(values)]
    body = ",\n".join(lines)
    text = f'{{"machine": {json.dumps(machine())},\n"values": {{\n{body}\n}}}}\n'
    (HERE / f"{part}.json").write_text(text)


def main() -> int:
    """Run the command; 0, or 1 if a value differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--write", action="store_true", help="store instead of comparing")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    wrong = 0
    for part in args.parts or PARTS:
        values = computed(part)
        if args.write:
            write(part, values)
            continue
        lines = list(differences(part, values))
        print("\n".join([*lines, f"{part}: {len(lines)} differences in {len(values)} entries"]))
        wrong += len(lines)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
