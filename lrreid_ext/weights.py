"""Files of weights: read safely, loaded strictly, downloaded from the Hugging Face hub."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError, WeightsError

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "HUB",
    "WEIGHTS_FILE",
    "AdoptsState",
    "download",
    "hub_client",
    "hub_errors",
    "listed",
    "load_strictly",
    "load_weights",
    "read_checkpoint",
    "read_state_dict",
]

# How a model of the hub is named: hub:owner/name or hub:owner/name@revision.
HUB = "hub:"
# The files of a model that is shared.
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.yaml", "model.safetensors", "README.md"

_HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def read_state_dict(path: str | Path, key: str = "weights") -> dict[str, Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file; see :func:`read_checkpoint`."""
    return read_checkpoint(path, key)[0]


def read_checkpoint(
    path: str | Path, key: str = "weights"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a ``.pth`` or ``.safetensors`` file of any origin.

    Args:
        path: the file.
        key: the config key that named it, for messages.

    Returns:
        The tensors by name, on the CPU, out of whatever they are wrapped in; and what the file says
        of its training (command, commit, seed, phase ...), {} if it isn't of this project.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not a file of tensors. Pickled code is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{key}: {path}: no such file")
    try:
        data, training = _read(path)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        # PyTorch's message begins with advice for files that one trusts.
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        why = reason or "it is no file that PyTorch writes"
        if code:
            why = f"it holds pickled code ({code[1]}), which is not run"
        raise WeightsError(f"{key}: {path} can't be read as weights: {why}") from error
    except Exception as error:  # torch and safetensors raise a dozen types
        why = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{key}: {path} can't be read as weights: {why}") from error
    for wrapper in ("model", "state_dict", "params_ema", "params"):
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    items = data.items() if isinstance(data, Mapping) else ()
    tensors = {k.removeprefix("module."): v for k, v in items if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{key}: {path} holds no tensors by name")
    return tensors, training


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get("training", "{}"))
    with torch.serialization.safe_globals(_numpy_numbers()):
        data = torch.load(path, map_location="cpu", weights_only=True)
    trainer = data.get("trainer") if isinstance(data, Mapping) else None
    info = trainer.get("info") if isinstance(trainer, Mapping) else None
    return data, dict(info) if isinstance(info, Mapping) else {}


def _numpy_numbers() -> list[Any]:
    """Types of pickled numpy numbers; torchreid keeps some beside the weights (``rank1``)."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{package}.multiarray.scalar" for package in ("core", "_core")]
    types = {type(np.dtype(code)) for code in f"?efd{np.typecodes['AllInteger']}"}
    return [np.dtype, *((scalar, name) for name in names), *types]


@runtime_checkable
class AdoptsState(Protocol):
    """A module whose shape follows from its weights."""

    def adopt_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the shape that its part of a model's weights needs."""


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``; every name and shape must agree.

    A module that :class:`AdoptsState` receives its part of the weights first.

    Raises:
        WeightsError: lists what is missing, left over, or of another shape. Nothing is loaded then.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, AdoptsState):
            start = f"{name}." if name else ""
            part = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
            module.adopt_state(part)
    expected = model.state_dict()
    shapes = [
        f"{k} {list(state[k].shape)} in the file, {list(v.shape)} in the model"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = {
        "missing in the file": [k for k in expected if k not in state],
        "not in the model": [k for k in state if k not in expected],
        "of another shape": shapes,
    }
    lines = [f"  {label}: {listed(keys)}" for label, keys in problems.items() if keys]
    if lines:
        raise WeightsError("\n".join([f"{source}: the weights don't fit the model.", *lines]))
    model.load_state_dict(state)


def listed(keys: Sequence[str], limit: int = 12) -> str:
    """The first ``limit`` names, and how many more there are."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def load_weights(model: nn.Module, path: str | Path, *, key: str, prefix: str = "") -> None:
    """Load a file into a module, strictly.

    Args:
        model: the module.
        path: a checkpoint of the module itself, or of a model that holds it under ``prefix``.
        key: the config key that named the file, for messages.
        prefix: the module's name in a whole model, or in an anchor of it, with the final dot.
    """
    state = read_state_dict(path, key)
    # Of a model with anchors, the first one's.
    places = [k[: k.index(prefix)] + prefix for k in state if f".{prefix}" in f".{k}"]
    if prefix and places:
        whole = min(places, key=len) if prefix in places else places[0]
        state = {k[len(whole) :]: v for k, v in state.items() if k.startswith(whole)}
    load_strictly(model, state, f"{key}: {path}")


def hub_client() -> Any:
    """The module huggingface_hub.

    Raises:
        ConfigError: it isn't installed; says how to install it.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "the Hugging Face hub needs huggingface_hub: pip install -e .[hub] in the checkout"
        ) from error
    return huggingface_hub


@contextmanager
def hub_errors(failed: str, advice: str) -> Iterator[None]:
    """Turn the errors of the hub, and of its client's HTTP library, into one ConfigError."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{failed} ({type(error).__name__}: {why}). {advice}") from error


def download(name: str) -> Path:
    """The folder of a model of the hub, downloaded if it isn't yet.

    Only config, weights and card are downloaded, no code.

    Args:
        name: ``owner/name`` or ``owner/name@revision``, with or without ``hub:`` before it.

    Raises:
        ConfigError: another kind of name, or a repository that can't be downloaded.
    """
    parts = _HUB_NAME.fullmatch(name.removeprefix(HUB))
    if parts is None:
        raise ConfigError(
            f"{name}: a hub model is named {HUB}owner/name or {HUB}owner/name@revision"
        )
    hub = hub_client()
    with hub_errors(
        f"{name}: can't be downloaded from the hub",
        "Where there is no network, name a folder with its files",
    ):
        folder = hub.snapshot_download(
            parts["repository"],
            revision=parts["revision"],
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
        )
    _refuse_code(Path(folder) / CONFIG_FILE, name)
    return Path(folder)


def _refuse_code(config: Path, name: str) -> None:
    """Refuse a stranger's config that would import modules or read other files of this machine."""
    if not config.is_file():
        raise ConfigError(f"{name}: holds no {CONFIG_FILE}; it isn't a model of this project")
    try:
        raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: its {CONFIG_FILE} can't be read: {error}") from error
    refused = [key for key in ("PLUGINS", "_BASE_") if isinstance(raw, dict) and raw.get(key)]
    if refused:
        raise ConfigError(
            f"{name}: its {CONFIG_FILE} has {refused[0]} {raw[refused[0]]}, and nothing of that "
            f"kind is loaded from the hub. If you trust it, copy {config.parent} and what it names "
            "into a folder, and name that"
        )
