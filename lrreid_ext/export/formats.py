"""ONNX and torch.export files, written only if they compute what the model does."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrreid_ext
from lrreid_ext.errors import ConfigError
from lrreid_ext.export.deployable import Deployable
from lrreid_ext.export.parity import Parity
from lrreid_ext.files import atomic
from lrreid_ext.results.portable import portable
from lrreid_ext.results.provenance import config_hash, provenance, weights_hash
from lrreid_ext.trained import TrainedModel

__all__ = [
    "METADATA_KEY",
    "describe",
    "dynamic_shapes",
    "read_metadata",
    "write_onnx",
    "write_torch",
]

# A file holds what describe() returns as JSON under this name.
METADATA_KEY = "lrreid_ext"
INPUTS = ("images", "native_size")
OUTPUT = "embedding"


def describe(run: TrainedModel, deployable: Deployable) -> dict[str, Any]:
    """The metadata of an exported file.

    Returns:
        ``format`` (1), ``lrreid_ext`` (version), ``architecture``, ``config_hash`` and
        ``weights_hash`` (SHA-256), ``inputs``, ``output``, ``metric`` (of the distances),
        ``fusion`` (anchors' factors and sigma, of a model with anchors), ``training`` (how the
        weights were trained) and ``export`` (command, commit and machine).
    """
    cfg = run.cfg
    height, width = deployable.size
    at_size = [height, width] if deployable.resized else ["height", "width"]
    native = "height and width in pixels as the camera delivered them"
    if not deployable.resized:
        native += "; each crop is in its image's top left corner, and ends there"
    k = [] if deployable.factors is None else [len(deployable.factors)]
    content = {
        "format": 1,
        "lrreid_ext": lrreid_ext.__version__,
        "name": run.name,
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "frontend": {"name": cfg.MODEL.SR.NAME, "apply": cfg.MODEL.SR.APPLY},
        "config_hash": config_hash(cfg),
        "weights_hash": weights_hash(run.module),
        "inputs": {
            "images": {
                "shape": ["batch", 3, *at_size],
                "type": "uint8",
                "colours": "RGB, 0-255",
                "resize": "outside, bicubic" if deployable.resized else f"to {height}x{width}",
            },
            "native_size": {"shape": ["batch", 2], "type": "int64", "meaning": native},
        },
        "output": {
            OUTPUT: {
                "shape": ["batch", *k, "dimensions"],
                "type": "float32",
                "unit_length": deployable.normalised,
                "mirror_image_averaged": deployable.flip,
            }
        },
        "metric": cfg.TEST.METRIC,
        "fusion": deployable.factors
        and {"anchors": deployable.factors, "sigma": float(cfg.TEST.FUSION.SIGMA)},
        "training": run.training,
        "export": {k: v for k, v in provenance().items() if k != "checkpoint"},
    }
    return portable(content)


def dynamic_shapes(deployable: Deployable) -> tuple[dict[int, Any], dict[int, Any]]:
    """The sides of both inputs that vary, as ``torch.export`` takes them."""
    batch = torch.export.Dim("batch")
    sides = {} if deployable.resized else {2: "height", 3: "width"}
    dims = {axis: torch.export.Dim(name) for axis, name in sides.items()}
    return {0: batch, **dims}, {0: batch}


@contextmanager
def _tracing(file: str) -> Iterator[None]:
    """One ConfigError for PyTorch's errors in tracing, and no warnings of the exporters."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{file}: PyTorch can't make a graph of this model, nothing was written: {first} "
            f"({type(error).__name__}). Some networks compute with sizes of the batch outside of "
            "tensors; docs/deploy.md says which parts are known to be exported"
        ) from error
    finally:
        exporter.setLevel(level)


def write_torch(
    path: Path, deployable: Deployable, parity: Parity, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Write ``torch.export``'s file, ``.pt2``.

    Returns:
        The metadata with the result of :meth:`Parity.check` as ``parity``.

    Raises:
        ConfigError: a model that can't be traced.
        ParityError: the program computes something else; nothing is written.
    """
    with _tracing(path.name):
        program = torch.export.export(
            deployable, parity.example, dynamic_shapes=dynamic_shapes(deployable), strict=False
        )
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    with atomic(path) as temporary:
        torch.export.save(program, temporary)
        checked = parity.check(torch.export.load(temporary).module(), path.name)
        metadata = {**metadata, "parity": checked}
        extra = {f"{METADATA_KEY}.json": json.dumps(metadata)}
        torch.export.save(program, temporary, extra_files=extra)
    return metadata


def write_onnx(
    path: Path, deployable: Deployable, parity: Parity, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Write an ONNX file, weights included.

    Returns:
        The metadata with the result of :meth:`Parity.check` as ``parity``.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime aren't installed, or a model that can't be
            traced.
        ParityError: ONNX Runtime computes something else from it; nothing is written.
    """
    ort = runtime()
    with _tracing(path.name):
        program = torch.onnx.export(
            deployable,
            parity.example,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dynamic_shapes(deployable),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None is what a path as second argument gives
    graphs: list[Any] = [program.model.graph, *program.model.functions.values()]
    for node in (node for graph in graphs for node in graph.all_nodes()):
        node.metadata_props.clear()  # it names folders of this machine
    with atomic(path) as temporary:
        program.save(temporary, external_data=False)
        session = ort.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(images: Tensor, native_size: Tensor) -> Tensor:
            feed = {"images": images.numpy(), "native_size": native_size.numpy()}
            return torch.from_numpy(session.run(None, feed)[0])

        metadata = {**metadata, "parity": parity.check(run, path.name)}
        program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
        program.save(temporary, external_data=False)
    return metadata


def runtime() -> Any:
    """The module onnxruntime, if that and the exporter's needs are installed.

    Raises:
        ConfigError: they aren't; says how to install them.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--to onnx needs {error.name}, which is not installed: pip install -e .[export] in "
            "the checkout"
        ) from error
    return onnxruntime


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of an exported file, ``.onnx`` or ``.pt2``.

    Raises:
        ConfigError: it has none; it isn't one of this project's.
    """
    if path.suffix == ".pt2":
        extra = {f"{METADATA_KEY}.json": ""}
        torch.export.load(path, extra_files=extra)
        text = extra[f"{METADATA_KEY}.json"]
    else:
        session = runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    if not text:
        raise ConfigError(f"{path}: holds no metadata of lrreid_ext")
    return json.loads(text)
