"""Features of a test set kept in a file, to be scored many times without images or network.

A file is named by the hash of all that its features depend on: the weights, what of the config
reaches the features, the code, and the images with their groups. So what changed is never found
under the old name; and the key in a file is checked again when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from fastreid.utils import comm
from torch import nn

from lrreid_ext.config import CfgNode, changed, load_cfg
from lrreid_ext.data.recipes import MANIFEST_FILE, load_manifest
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import CacheError, ConfigError, suggest
from lrreid_ext.evaluation.features import Features, extract_features
from lrreid_ext.evaluation.scored import plain_info
from lrreid_ext.files import atomic
from lrreid_ext.plugins import plugin_files
from lrreid_ext.results.provenance import (
    config_hash,
    provenance,
    relative_path,
    tensors_hash,
    weights_hash,
)
from lrreid_ext.weights import read_state_dict

__all__ = [
    "CachedFeatures",
    "cache_key",
    "cached_features",
    "is_features",
    "load_cache",
    "load_unchanged",
    "save_cache",
    "scoring_cfg",
]

SCHEMA = 2
# What of this package images pass through on their way to features.
CODE = ("compat.py", "data/**/*.py", "modeling/**/*.py", "evaluation/features.py")
SUFFIX = ".safetensors"
# Keys of TEST that decide figures, not features.
SCORING = (
    "AQE", "CI", "DRAW", "FACTOR_BINS", "FUSION", "METRIC", "PROTOCOLS", "RANKS", "RERANK", "ROC",
    "SEED", "TRIALS",
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedFeatures:
    """A test set, its features, and where they came from.

    Attributes:
        test_set: the images by name, with all their labels; the files themselves need not be there.
        features: of its images.
        key: what the features depend on, as :func:`cache_key` gives it.
        about: ``checkpoint``, ``folder`` (of the built data set, or ""), ``images`` (a digest of
            their bytes, or ""), ``anchors`` (their factors) and where the features were extracted.
    """

    test_set: TestSet
    features: Features
    key: dict[str, str]
    about: dict[str, Any]


# ---------------------------------------------------------------- what features depend on
def cache_key(cfg: CfgNode, weights: str, test_set: TestSet) -> dict[str, str]:
    """Hashes of all that features depend on.

    Args:
        cfg: the config.
        weights: :func:`lrreid_ext.results.provenance.weights_hash` of the model.
        test_set: the images; its ``info["training"]`` may name the phase of training whose step
            decides what an architecture evaluates.

    Returns:
        ``weights``, ``config``, ``code`` (of all that images pass through, plugins included),
        ``manifest`` (of a data set without one, over the files' bytes), ``samples`` (over the
        images' names, labels, groups and degradation) and ``files`` (over the files' sizes and
        when they were changed).

    Raises:
        FileNotFoundError: an image isn't there; names it.
    """
    training: Any = test_set.info.get("training") or {}
    config = {
        "model": config_hash(cfg),
        "native_size": cfg.INPUT.NATIVE_SIZE,
        "flip": bool(cfg.TEST.FLIP.ENABLED),
        "phase": cfg.TEST.PHASE or training.get("phase", ""),
    }
    paths = [s.path for s in test_set.samples]
    return {
        "weights": weights,
        "config": _digest(config),
        "code": _code_digest(),
        "files": _files_state(paths),
        "manifest": test_set.manifest_hash or _files_digest(paths),
        "samples": _digest([test_set.name, _rows(test_set)]),
    }


def _rows(test_set: TestSet) -> list[list[Any]]:
    """The samples' fields in their order, each path shortened."""
    return [[_short(s.path), *astuple(s)[1:]] for s in test_set.samples]


def _short(path: str) -> str:
    """A file's folder and name; where the data set itself lies doesn't matter."""
    return "/".join(Path(path).parts[-2:])


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _code_digest() -> str:
    package = Path(__file__).resolve().parents[1]
    files = [path for part in CODE for path in sorted(package.glob(part))]
    return _digest(
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in files + plugin_files()]
    )


def _files_state(paths: Iterable[str]) -> str:
    """A digest of images' sizes and times of change: quick, and another one if an image was written
    again, even with the same content."""
    state = []
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{path}: no such image, though the test set names it; put it back, or build the "
                "data set anew"
            ) from error
        state.append([_short(path), status.st_size, status.st_mtime_ns])
    return _digest(state)


def _files_digest(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in dict.fromkeys(paths):
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return f"files-{digest.hexdigest()}"


def _path(folder: str | Path, key: Mapping[str, str], test_set: TestSet) -> Path:
    return Path(folder) / f"{test_set.name}-{_digest(dict(key))[:16]}{SUFFIX}"


# ---------------------------------------------------------------- files
def save_cache(path: Path, cached: CachedFeatures) -> None:
    """Write a file of features, whole or not at all."""
    from safetensors.torch import save_file

    test_set = cached.test_set
    tensors = {
        "features": cached.features.features.contiguous(),
        "native_size": cached.features.native_size.contiguous(),
    }
    content = {
        "schema": SCHEMA,
        "test_set": [test_set.name, _rows(test_set), test_set.manifest_hash, plain_info(test_set)],
        "key": cached.key,
        "about": cached.about,
        "content": tensors_hash(tensors),
    }
    with atomic(path) as temporary:
        save_file(tensors, str(temporary), {"lrreid_features": json.dumps(content)})


def load_cache(path: str | Path) -> CachedFeatures:
    """Read a file of features.

    Raises:
        FileNotFoundError: no such file.
        CacheError: not a file of features, of another schema, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features")
    try:
        with safe_open(str(path), "pt") as opened:
            text = (opened.metadata() or {}).get("lrreid_features", "")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path}: can't be read as a file of features: {error}") from error
    if not text:
        raise CacheError(f"{path}: holds tensors, but no features of a test set")
    content = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise CacheError(
            f"{path}: schema {content.get('schema')}; this version reads {SCHEMA}. Name the run "
            "instead, to extract the features anew"
        )
    if content["content"] != tensors_hash(tensors):
        raise CacheError(f"{path}: is damaged, its content isn't what was written; remove it")
    name, rows, manifest_hash, info = content["test_set"]
    test_set = TestSet(name, [Sample(*row) for row in rows], manifest_hash, info)
    features = Features(tensors["features"], tensors["native_size"])
    return CachedFeatures(test_set, features, content["key"], content["about"])


def is_features(path: Path) -> bool:
    """Whether a path is that of a file of features; other safetensors files hold weights.

    Raises:
        FileNotFoundError: no such file.
        CacheError: a safetensors file that can't be read.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != SUFFIX:
        return False
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features")
    try:
        with safe_open(str(path), "pt") as opened:
            return "lrreid_features" in (opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path}: can't be read as a file of features: {error}") from error


def load_unchanged(path: Path) -> tuple[CachedFeatures, list[str]]:
    """Read a file of features whose checkpoint and data set haven't changed since.

    Returns:
        The features, and what can't be checked because it isn't at hand.

    Raises:
        CacheError: they have changed, or see :func:`load_cache`.
    """
    cached = load_cache(path)
    differences, unknown = stale(cached)
    if differences:
        raise CacheError(
            f"{path}: {'; '.join(differences)}, so that these features are no longer the model's. "
            "Name the run instead of the file to extract them anew"
        )
    return cached, unknown


def scoring_cfg(cached: CachedFeatures, opts: Sequence[str]) -> CfgNode:
    """A config to score a file of features with.

    Args:
        cached: the features.
        opts: words ``KEY VALUE ...``; keys of TEST in :data:`SCORING`.

    Raises:
        ConfigError: an option that decides the features, or isn't one.
    """
    names = [f"TEST.{name}" for name in SCORING]
    for key in opts[::2]:
        if ".".join(key.split(".")[:2]) not in names:
            raise ConfigError(
                f"--opts {key}: can't be changed for features that are in a file."
                f"{suggest(key, names)} Can be: {', '.join(names)}"
            )
    about = cached.about
    return changed(
        load_cfg("", opts),
        ("MODEL.ANCHORS.FACTORS", list(about["anchors"])),
        ("MODEL.WEIGHTS", about["checkpoint"]),
        ("MODEL.DEVICE", "cuda" if "gpu" in about["machine"] else "cpu"),
        ("TEST.FLIP.ENABLED", about["flip"]),
    )


# ---------------------------------------------------------------- extract or read
def cached_features(
    cfg: CfgNode, model: nn.Module, test_set: TestSet, folder: str | Path
) -> Features | None:
    """Features of a test set: read from ``folder`` if they are there, else extracted and kept.

    All processes must call it.

    Args:
        cfg, model, test_set: as :func:`lrreid_ext.evaluation.features.extract_features` takes them.
        folder: where files of features are.

    Returns:
        The features; None on all processes but the first.
    """
    cached: CachedFeatures | None = None
    key: dict[str, str] = {}
    if comm.is_main_process():
        key = cache_key(cfg, weights_hash(model), test_set)
        cached = find_cache(folder, key, test_set)
    if comm.all_gather(cached is not None)[0]:
        return cached.features if cached else None
    features = extract_features(cfg, model, test_set)
    if features is not None:
        path = _path(folder, key, test_set)
        save_cache(path, CachedFeatures(test_set, features, key, _about(cfg, test_set)))
        logger.info("Features of %s kept in %s", test_set.name, path)
    return features


def find_cache(
    folder: str | Path, key: Mapping[str, str], test_set: TestSet
) -> CachedFeatures | None:
    """The file in ``folder`` whose features have this key, or None.

    One that is damaged or says that it has another key is not used, and a warning names it.
    """
    path = _path(folder, key, test_set)
    if not path.is_file():
        return None
    try:
        cached = load_cache(path)
    except CacheError as error:
        logger.warning("%s; the features are extracted anew", error)
        return None
    if cached.key != dict(key):
        logger.warning("%s: holds other features than its name says; extracted anew", path)
        return None
    logger.info("Features of %s read from %s", test_set.name, path)
    return cached


def _about(cfg: CfgNode, test_set: TestSet) -> dict[str, Any]:
    folder = images = ""
    if test_set.manifest_hash and test_set.samples:
        # A built data set's images lie in one folder each role.
        folder = relative_path(str(Path(test_set.samples[0].path).resolve().parents[1]))
        images = _files_digest([s.path for s in test_set.samples])
    return {
        "anchors": [float(f) for f in cfg.MODEL.ANCHORS.FACTORS],
        "folder": folder,
        "images": images,
        "flip": bool(cfg.TEST.FLIP.ENABLED),
        **provenance(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE),
    }


def stale(cached: CachedFeatures) -> tuple[list[str], list[str]]:
    """Whether the checkpoint and the data set that the features came from are as they were.

    Returns:
        What has changed, and what is unknown because the file or folder is missing; a line for
        each.
    """
    changed, unknown = [], []
    checkpoint, folder = cached.about["checkpoint"], cached.about["folder"]
    if checkpoint and Path(checkpoint).is_file():
        if tensors_hash(read_state_dict(checkpoint, "checkpoint")) != cached.key["weights"]:
            changed.append(f"the checkpoint {checkpoint} has other weights now")
    else:
        unknown.append(f"its checkpoint {checkpoint or '(none)'} is not at hand")
    if folder and (Path(folder) / MANIFEST_FILE).is_file():
        if load_manifest(folder).hash != cached.test_set.manifest_hash:
            changed.append(f"the data set {folder} has another manifest now")
        else:
            changed += _changed_images(cached, Path(folder))
    else:
        unknown.append(f"its data set {folder or cached.test_set.name} is not at hand")
    return changed, unknown


def _changed_images(cached: CachedFeatures, folder: Path) -> list[str]:
    """What has changed among the images in a built data set: a line, or none."""
    paths = [str(folder / sample.path) for sample in cached.test_set.samples]
    try:
        if _files_state(paths) == cached.key["files"]:
            return []
        # Copied or built again, they may be what they were.
        same = _files_digest(paths) == cached.about["images"]
    except FileNotFoundError as error:
        return [str(error)]
    return [] if same else [f"images in {folder} have changed"]


def feed(evaluator: Any, features: Features | None) -> dict[str, Any]:
    """The figures of an evaluator without ``attach``, of features that have been extracted.

    Args:
        evaluator: takes batches of features.
        features: of all images; None on all processes but the first.
    """
    evaluator.reset()
    if features is not None:
        index = torch.arange(len(features.features))
        evaluator.process({"index": index, "native_size": features.native_size}, features.features)
    figures: dict[str, Any] = evaluator.evaluate()
    return figures
