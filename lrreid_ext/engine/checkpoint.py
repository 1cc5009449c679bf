"""Checkpoints that load strictly, are written whole or not at all, and hold no code."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.utils.checkpoint import Checkpointer as HostCheckpointer
from torch import Tensor, nn

from lrreid_ext.engine.published import adapted, homes, translated
from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.files import atomic, write_again, write_text

logger = logging.getLogger(__name__)


def read_state_dict(path: str | Path, key: str = "weights") -> dict[str, Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file, whatever they are wrapped in.

    Args:
        path: the file.
        key: the config key that named it, for messages.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not a file of tensors. Pickled code is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{key}: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            data: Any = load_file(str(path))
        else:
            with torch.serialization.safe_globals(_numbers()):
                data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        # Behind what PyTorch advises for files that one trusts.
        told = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        why = told or "it is no file that PyTorch writes"
        if named:
            why = f"it holds pickled code ({named[1]}), which is not run"
        raise WeightsError(f"{key}: {path} can't be read as weights: {why}") from error
    except Exception as error:  # torch and safetensors raise a dozen kinds
        why = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{key}: {path} can't be read as weights: {why}") from error
    for wrapper in ("model", "state_dict", "params_ema", "params"):
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    tensors = (
        {k.removeprefix("module."): v for k, v in data.items() if isinstance(v, Tensor)}
        if isinstance(data, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(f"{key}: {path} holds no tensors by name")
    return tensors


def _numbers() -> list[Any]:
    """What numpy's numbers are pickled as; torchreid keeps such beside the weights (``rank1``)."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{package}.multiarray.scalar" for package in ("core", "_core")]
    kinds = {type(np.dtype(kind)) for kind in f"?efd{np.typecodes['AllInteger']}"}
    return [np.dtype, *((scalar, name) for name in names), *kinds]


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load ``state`` into ``model``; every name and shape must agree.

    A module that is known only by its weights may offer ``adopt_state(state)``, called first with
    its own part of the weights.

    Raises:
        WeightsError: lists what is missing, left over, or of another shape. Nothing is loaded then.
    """
    for name, module in list(model.named_modules()):
        adopt = getattr(module, "adopt_state", None)
        if adopt is not None:
            start = f"{name}." if name else ""
            adopt({k[len(start) :]: v for k, v in state.items() if k.startswith(start)})
    problems = _mismatches(model, state)
    if problems:
        raise WeightsError(f"{what}: the weights don't fit the model.\n" + "\n".join(problems))
    model.load_state_dict(state)


def _mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {list(state[k].shape)} in the file, {list(own[k].shape)} in the model"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    groups = (
        ("missing in the file", missing),
        ("not in the model", unexpected),
        ("of another shape", shapes),
    )
    return [f"  {label}: {_listed(keys)}" for label, keys in groups if keys]


def _listed(keys: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def load_weights(model: nn.Module, path: str | Path, *, key: str, prefix: str = "") -> None:
    """Load a file into a module, strictly.

    Args:
        model: the module.
        path: a checkpoint of the module itself, or of a model that holds it under ``prefix``.
        key: the config key that named the file, for messages.
        prefix: where the module stands in a whole model, or in an anchor of it, with the final
            dot.
    """
    state = read_state_dict(path, key)
    # Of a model with anchors, the first one's.
    places = [k[: k.index(prefix)] + prefix for k in state if f".{prefix}" in f".{k}"]
    if prefix and places:
        whole = min(places, key=len) if prefix in places else places[0]
        state = {k[len(whole) :]: v for k, v in state.items() if k.startswith(whole)}
    load_strictly(model, state, f"{key}: {path}")


def init_weights(
    model: nn.Module, path: str | Path, rules: Sequence[Sequence[Any]] = (), form: str = ""
) -> None:
    """Fill part of a model from a file of any origin (``MODEL.INIT``), and log what didn't match.

    Args:
        model: the whole model.
        path: the file.
        rules: ``(pattern, replacement)`` pairs, tried in order on every key of the file; the first
            match wins. A list of replacements fills several parts. A key that none matches, or
            whose replacement is empty, is left out.
        form: whose names the file has, in place of rules; see
            :mod:`lrreid_ext.engine.published`. Keys that have no place in the model are left out.

    Raises:
        ConfigError: both rules and a format, or an unknown format.
        WeightsError: a key maps to nothing in the model or to another shape, or nothing matched.
    """
    if form and len(rules):
        raise ConfigError("MODEL.INIT: give FORMAT or MAP, not both; an empty MAP is []")
    state: Mapping[str, Tensor] = read_state_dict(path, "MODEL.INIT.WEIGHTS")
    own = model.state_dict()
    left: list[str] = []
    if form:
        state = adapted(model, state) if form == "timm" else state
        found, left = translated(model, state, form)
    else:
        found = {name: _mapped(name, rules) for name in state}
        left = [name for name, targets in found.items() if not targets]
    taken: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, targets in found.items():
        tensor = state[name]
        for target in targets:
            if target not in own:
                wrong.append(f"{name} -> {target}, which the model lacks")
            elif target in taken:
                wrong.append(f"{name} -> {target}, which another key maps to as well")
            elif own[target].shape != tensor.shape:
                wrong.append(f"{name} {list(tensor.shape)} -> {target} {list(own[target].shape)}")
            else:
                taken[target] = tensor
    if wrong or not taken:
        names = f"no key matched; the file has {_listed(list(state), 3)}"
        raise WeightsError(f"MODEL.INIT: {path}: {_listed(wrong) if wrong else names}")
    model.load_state_dict({**own, **taken})
    logger.info("MODEL.INIT: %d tensors taken from %s", len(taken), path)
    if left:
        logger.info("MODEL.INIT: left out: %s", ", ".join(left))
    fresh = [k for k in own if k not in taken and not k.endswith("num_batches_tracked")]
    if fresh:
        # Of a published network's backbone nothing should be missing.
        places = tuple(homes(model)["backbone"]) if form else ()
        level = logging.WARNING if any(k.startswith(places) for k in fresh) else logging.INFO
        logger.log(level, "MODEL.INIT: initialised afresh: %s", ", ".join(fresh))


def _mapped(name: str, rules: Sequence[Sequence[Any]]) -> list[str]:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            several = [replacement] if isinstance(replacement, str) else replacement
            return [re.sub(pattern, one, name, count=1) for one in several if one]
    return []


class Checkpointer(HostCheckpointer):
    """fastreid's checkpointer, made strict, atomic and safe."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` whole or not at all; :meth:`tag_last_checkpoint` notes the last."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        for key, obj in self.checkpointables.items():
            data[key] = obj.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        with atomic(path) as temporary:
            torch.save(data, temporary)
        self.logger.info("Saved %s", path)

    def save_as(self, names: Sequence[str]) -> None:
        """:meth:`save` the same state under several names; it is written once."""
        if not names or not self.save_dir or not self.save_to_disk:
            return
        first, *others = (os.path.join(self.save_dir, f"{name}.pth") for name in names)
        self.save(names[0])
        for path in others:
            write_again(first, path)
            self.logger.info("Saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the file from which a run would be resumed."""
        write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_file(self, f: str) -> Any:
        if f.endswith(".safetensors"):
            self._path = f
            return {"model": read_state_dict(f, "MODEL.WEIGHTS")}
        try:
            data = torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds
            raise WeightsError(f"checkpoint {f} can't be read: {error}") from error
        if not isinstance(data, dict) or "model" not in data:
            raise WeightsError(
                f"checkpoint {f} is not one of this program's: it has no entry 'model'. Weights of "
                "another origin go into MODEL.INIT.WEIGHTS"
            )
        self._path = f
        return data

    def _load_model(self, checkpoint: Any) -> None:
        state = {k.removeprefix("module."): v for k, v in checkpoint.pop("model").items()}
        load_strictly(self.model, state, f"checkpoint {self._path}")
