#!/usr/bin/env python3
"""Values that a refactor must not change: recompute them and compare with those stored here.

    python tests/golden/record.py [PART ...]           compare; status 1 if anything differs
    python tests/golden/record.py --write [PART ...]   store

Parts, each with ``<part>.json`` beside this file:

- ``scores``: figures of the standard evaluator on drawn features, by protocol and setting.
- ``manifests``: manifest hashes of every recipe, and of every kernel, on miniature sources.
- ``run``: results of a small trained run; what its model embeds, restores, evaluates and exports.
- ``search``: ranked answers of a small gallery.
- ``training_SING`` ... of the five systems: weights after two epochs of every phase, and whether a
  run that was killed and resumed has the same. Slow, half a minute each, so not in CI.
  ``training`` names all of them: a PART may be the beginning of several.

On another machine than the recorded one (``machine`` in the file) trained weights differ a little:
hashes and what rests on ranks is left out there, and numbers may differ by 2 percent.
"""

# ruff: noqa: E402, I001 - the repository itself is imported, not what may be installed
from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
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
from lrreid_ext import build_dataset, evaluate, load_model
from lrreid_ext.cli import main as command
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
    """Figures of :func:`people` under many settings; junk and distractors are among them."""
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
        "ties": ("signs", roc),
        "ties_euclidean": ("signs", euclidean),
        "ties_per_query": ("signs", [*single, "TEST.DRAW", "per_query"]),
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
            ``signs``, as plain, each value 1 or -1, so that many distances tie; ``anchors``,
            features (N, 3, D), of which ``untrained`` lacks the second.
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
    sizes = np.array([[int(128 / s.factor), int(64 / s.factor)] for s in samples])
    sizes += rng.integers(0, 6, sizes.shape)
    if kind == "signs":
        features = np.where(features < 0, -1.0, 1.0)
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


# ---------------------------------------------------------------------------------------- training

SMALL = [
    "MODEL.DEVICE", "cpu", "SEED", "0",
    "DATASETS.OPTIONS.synth_pedestrians.identities", "8",
    "DATASETS.OPTIONS.synth_pedestrians.cameras", "3",
    "DATASETS.OPTIONS.synth_pedestrians.shots", "2",
    "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
    "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "8", "SOLVER.CHECKPOINT_PERIOD", "1",
    "TEST.TRIALS", "2", "TEST.FACTORS", "[4]", "TEST.EVAL_PERIOD", "1000",
]  # fmt: skip
# Phases, the epoch that is killed (each phase has two), and what makes the system small.
SYSTEMS: dict[str, tuple[list[str], int, list[str]]] = {
    "SING": (
        ["srcnn", "dgd", "x2", "x3", "x4"], 7,
        ["MODEL.BACKBONE.DGD.WIDTH", "0.125", "MODEL.BACKBONE.FEAT_DIM", "192"],
    ),
    "CSRGAN": (
        ["reid", "generators", "together"], 5,
        ["MODEL.SR.CASCADE.WIDTH", "4", "CSRGAN.DISCRIMINATOR.WIDTH", "4"],
    ),
    "FFSR_RIFE": (["mse", "ffsr", "rife", "joint"], 5, ["MODEL.SR.WIDTH", "4"]),
    "RAIN": (
        ["joint"], 1,
        ["RAIN.CRITIC_WIDTH", "4", "DATASETS.LABELLED", "0.5", "DATALOADER.NUM_INSTANCE", "2"],
    ),
    "PSHRNet": (
        ["teacher", "student"], 3,
        [
            "MODEL.BACKBONE.HRNET.WIDTH", "4", "MODEL.SR.DEPTH", "3", "MODEL.SR.WIDTH", "8",
            "DATALOADER.NUM_INSTANCE", "2",
        ],
    ),
}  # fmt: skip


def training(system: str, folder: Path) -> Values:
    """Hash and norms of weights, losses and mAP after two epochs of every phase of a system.

    ``resumed_alike``: whether a run that is killed within its training and resumed has the same
    weights.
    """
    phases, epoch, options = SYSTEMS[system]
    words = ["--config-file", f"projects/{system}/synth.yml", *SMALL, *options]
    words += [word for name in phases for word in (f"PHASES.{name}.EPOCHS", "2")]
    words += ["DATASETS.ROOT", str(folder)]
    whole, killed = ([*words, "OUTPUT_DIR", str(folder / name)] for name in ("whole", "killed"))
    train(whole)
    weights = final_weights(folder / "whole")
    plugin = ["PLUGINS", f"['{HERE / 'killing.py'}']", "HOOKS", "['KillGolden']"]
    train([*killed, *plugin], killed_at=epoch)
    train(["--resume", *killed])
    digest = weights_hash(weights)
    resumed = weights_hash(final_weights(folder / "killed"))
    last = json.loads((folder / "whole/metrics.json").read_text().splitlines()[-1])
    results = json.loads((folder / "whole/results_synth_pedestrians.json").read_text())
    return {
        "weights": {"sha256_weights": digest, "resumed_alike": resumed == digest},
        "norms": weights_norms(weights),
        "losses": {name: value for name, value in last.items() if "loss" in name},
        "mAP": {name: entry["multi_shot"]["mAP"] for name, entry in results["groups"].items()},
    }


def train(words: list[str], killed_at: int | None = None) -> None:
    """``tools/train_net.py`` in a process of one thread, perhaps killed in an epoch."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "tools/train_net.py", *words]
    env |= {} if killed_at is None else {"GOLDEN_KILL_AT": str(killed_at)}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True)
    wanted = 0 if killed_at is None else -signal.SIGKILL
    assert done.returncode == wanted, (done.returncode, done.stdout[-2000:], done.stderr[-3000:])


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a run's last checkpoint."""
    name = (run / "last_checkpoint").read_text().strip()
    assert name == "model_final.pth", name
    state = torch.load(run / name, map_location="cpu", weights_only=False)["model"]
    return {key: state[key].detach().float().contiguous() for key in sorted(state)}


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and float32 bytes."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def weights_norms(weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """The length of each top-level part's weights as one vector."""
    squares: dict[str, float] = {}
    for name, value in weights.items():
        part = name.partition(".")[0]
        squares[part] = squares.get(part, 0.0) + float(value.double().square().sum())
    return {part: math.sqrt(square) for part, square in squares.items()}


# ---------------------------------------------------------------------------------- run and search

SYNTH = {"identities": 16, "cameras": 3, "shots": 2, "height": 64, "width": 32}
RUN = [
    "MODEL.DEVICE", "cpu", "MODEL.INIT.WEIGHTS", "",
    "MODEL.SR.NAME", "SRCNN", "MODEL.SR.FILTERS", "[8, 4]",
    "MODEL.BACKBONE.NAME", "build_dual_stream_backbone",
    "MODEL.BACKBONE.DUAL.BASE", "build_osnet_backbone",
    "MODEL.BACKBONE.DUAL.GATE_DIM", "8", "MODEL.BACKBONE.DUAL.WIDEST", "32",
    "DATASETS.NAMES", "['synth_pedestrians']", "DATASETS.TESTS", "['synth_pedestrians']",
    *(w for k, v in SYNTH.items() for w in (f"DATASETS.OPTIONS.synth_pedestrians.{k}", str(v))),
    "INPUT.SIZE_TRAIN", "[48, 24]", "INPUT.SIZE_TEST", "[48, 24]", "INPUT.PADDING.SIZE", "2",
    "DATALOADER.NUM_WORKERS", "0", "DATALOADER.NUM_INSTANCE", "2", "TEST.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "2",
    "TEST.TRIALS", "3", "TEST.FACTORS", "[2]",
    "TEST.EVALUATORS", "['CrossResolutionEvaluator', 'ImageQualityEvaluator']",
]  # fmt: skip
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def trained_run() -> tuple[Path, Any]:
    """A run of a front-end and two gated streams, and the people that it saw; until the end."""
    _KEPT.append(tempfile.TemporaryDirectory())
    folder = Path(_KEPT[0].name)
    where = ["DATASETS.ROOT", str(folder), "OUTPUT_DIR", str(folder / "run")]
    train(["--config-file", CONFIG, *RUN, *where])
    return folder / "run", build_dataset("synth_pedestrians", None, folder / "people", **SYNTH)


def lrreid(*words: str) -> None:
    """The command, in this process."""
    with redirect_stdout(StringIO()) as out:
        assert command(words) == 0, out.getvalue()


def flat(values: Any, name: str = "") -> dict[str, float]:
    """Numbers of nested dictionaries by their keys, joined by slashes."""
    if isinstance(values, dict):
        return {k: v for key, x in values.items() for k, v in flat(x, f"{name}/{key}").items()}
    return {name.strip("/"): float(values)} if isinstance(values, (int, float)) else {}


def run(folder: Path) -> Values:
    """A trained run's results, what is embedded, restored, evaluated and exported from it."""
    path, people = trained_run()
    values: Values = {}
    for file in sorted(path.glob("*_synth_pedestrians.json")):
        content = json.loads(file.read_text())
        values[f"file/{file.stem}"] = flat(content["groups"])
    model = load_model(path)
    files = [query[0] for query in people.query[:2]] + [shown[0] for shown in people.gallery[:2]]
    embedded = {
        "plain": model.embed(files),
        "flip": model.embed(files, flip=True),
        "native_size": model.embed(files, native_size=[20, 10]),
    }
    lrreid("export", str(path), "--to", "torch", "--out", str(folder))
    program = torch.export.load(folder / "model.pt2").module()
    small = np.array(Image.open(files[0]).convert("RGB"))
    crops = torch.from_numpy(small).permute(2, 0, 1)[None]
    embedded["exported"] = program(crops, torch.tensor([small.shape[:2]]))
    for name, features in embedded.items():
        for k, row in enumerate(features):
            head = {str(n): float(row[n]) for n in range(6)}
            values[f"embed/{name}/{k}"] = head | {"length": float(row.norm())}
    for k, file in enumerate(files):
        pixels = np.asarray(model.restore(file), np.float64)
        values[f"restore/{k}"] = {"mean": float(pixels.mean()), "std": float(pixels.std())}
    values["evaluate"] = dict(evaluate(model, people))
    values["evaluate/mixed"] = dict(
        evaluate(model, people, gallery={"lr_share": 0.5, "lr_factors": [3]}, trials=2, hr=False)
    )
    return values


def search(folder: Path) -> Values:
    """Ranked answers of an exact index to three queries."""
    path, people = trained_run()
    for name, side in (("shown", people.gallery), ("asked", people.query[::5][:3])):
        (folder / name).mkdir()
        for image in side:
            shutil.copy(image[0], folder / name)
    index, answers = str(folder / "index"), folder / "answers.json"
    lrreid(
        *("gallery", "build", index, str(folder / "shown"), "--model", str(path)),
        *("--kind", "exact", "--labels", "none"),
    )
    asked = [str(file) for file in sorted((folder / "asked").iterdir())]
    lrreid(
        *("gallery", "search", index, *asked, "--top", "8", "--json", str(answers)),
        *("--labels", "none"),
    )
    values: Values = {}
    for answer in json.loads(answers.read_text())["answers"]:
        key = Path(answer["query"]["file"]).name
        matches = [(Path(m["file"]).name, m["distance"]) for m in answer["matches"]]
        values[key] = {"files": [m[0] for m in matches], "distances": [m[1] for m in matches]}
    return values


# -------------------------------------------------------------------------- compare, store, command


PARTS: dict[str, Callable[[Path], Values]] = {
    "scores": scores,
    "manifests": manifests,
    "run": run,
    "search": search,
    **{f"training_{system}": partial(training, system) for system in SYSTEMS},
}
QUICK = ("scores", "manifests", "run", "search")


# What is compared on the same machine only.
EXACT = re.compile(r"sha256_|^file/results|^evaluate|files$|^mAP")


def machine(part: str) -> dict[str, str]:
    """What decides the last bits of a part's numbers and the bytes of its images."""
    versions = {"numpy": np.__version__, "pillow": PIL.__version__, "opencv": cv2.__version__}
    if part == "manifests":
        return versions
    models = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {models[0] if models else 'unknown'}"
    return {"cpu": cpu, "torch": torch.__version__, **versions}


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
    same = stored["machine"] == machine(part)
    for key in sorted(stored["values"].keys() | values.keys()):
        then, now = stored["values"].get(key, {}), values.get(key, {})
        for name in sorted(then.keys() | now.keys()):
            if not same and EXACT.search(f"{key}/{name}"):
                continue
            if not equal(then.get(name), now.get(name), *(2e-5, 2e-6) if same else (0.02, 0.02)):
                yield f"{part}: {key} {name}: {then.get(name)} -> {now.get(name)}"


def equal(a: Any, b: Any, relative: float, absolute: float) -> bool:
    """Whether two stored values are the same, numbers within either tolerance."""
    if isinstance(a, list) and isinstance(b, list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(equal(x, y, relative, absolute) for x, y in pairs)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=relative, abs_tol=absolute)
    return a == b


def write(part: str, values: Values) -> None:
    """Store a part, a line for each key."""
    lines = [f'"{key}": {json.dumps(values[key], sort_keys=True)}' for key in sorted(values)]
    body = ",\n".join(lines)
    text = f'{{"machine": {json.dumps(machine(part))},\n"values": {{\n{body}\n}}}}\n'
    (HERE / f"{part}.json").write_text(text)


def main() -> int:
    """Run the command; 0, or 1 if a value differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--write", action="store_true", help="store instead of comparing")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    wrong = 0
    for part in [p for p in PARTS if p.startswith(tuple(args.parts or PARTS))]:
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
