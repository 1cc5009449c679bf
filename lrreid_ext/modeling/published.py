"""Initial weights under other projects' names (MODEL.INIT): torchreid's, fastreid's, timm's."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.modeling.backbones.pretrained import filtered
from lrreid_ext.modeling.contract import HasWeightRoots
from lrreid_ext.registry import suggest
from lrreid_ext.weights import listed, read_state_dict

__all__ = ["FORMATS", "init_weights"]

logger = logging.getLogger(__name__)

# A name in the file to ("backbone" or "heads", the name there), or None for what has no place here.
Rule = Callable[[str], "tuple[str, str] | None"]


def _torchreid(name: str) -> tuple[str, str] | None:
    """The whole network at the top; ``fc`` is the neck, ``classifier`` is of its identities."""
    if name.startswith("classifier."):
        return None
    return ("heads" if name.startswith("fc.") else "backbone"), name


def _fastreid(name: str) -> tuple[str, str] | None:
    """``backbone.`` and ``heads.``; ``heads.weight`` or ``heads.classifier`` is the classifier."""
    part, _, rest = name.partition(".")
    if part not in ("backbone", "heads") or re.match(r"heads\.(weight$|classifier\.)", name):
        return None
    return part, rest


def _timm(name: str) -> tuple[str, str] | None:
    """The whole network at the top; no backbone has a place for its classifier."""
    return "backbone", name


FORMATS: dict[str, Rule] = {"torchreid": _torchreid, "fastreid": _fastreid, "timm": _timm}


def init_weights(
    model: nn.Module, path: str | Path, rules: Sequence[Sequence[Any]] = (), form: str = ""
) -> None:
    """Fill part of a model from a file of any origin, and log what didn't match.

    Args:
        model: the whole model.
        path: the file.
        rules: ``(pattern, replacement)`` pairs, tried in order on every key of the file; the first
            match wins. A list of replacements fills several parts. A key that none matches, or
            whose replacement is empty, is left out.
        form: whose names the file has, one of :data:`FORMATS`, in place of rules. Keys that have no
            place in the model are left out.

    Raises:
        ConfigError: both rules and a format, or an unknown format.
        WeightsError: a key maps to nothing in the model or to another shape, or nothing matched.
    """
    if form and len(rules):
        raise ConfigError("MODEL.INIT: give FORMAT or MAP, not both; an empty MAP is []")
    if form and form not in FORMATS:
        raise ConfigError(
            f"MODEL.INIT.FORMAT: {form!r} is none of {', '.join(FORMATS)}.{suggest(form, FORMATS)}"
        )
    state: Mapping[str, Tensor] = read_state_dict(path, "MODEL.INIT.WEIGHTS")
    expected = model.state_dict()
    places = _places(model)
    if form == "timm" and places["backbone"]:
        # timm renames keys of old files and resizes position embeddings.
        state = filtered(model.get_submodule(places["backbone"][0][:-1]), state)
    if form:
        targets = {name: _translated(name, form, places, expected.keys()) for name in state}
    else:
        targets = {name: _mapped(name, rules) for name in state}
    taken: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, tensor in state.items():
        for target in targets[name]:
            if target not in expected:
                problems.append(f"{name} -> {target}, which the model lacks")
            elif target in taken:
                problems.append(f"{name} -> {target}, which another key maps to as well")
            elif expected[target].shape != tensor.shape:
                shapes = list(tensor.shape), list(expected[target].shape)
                problems.append(f"{name} {shapes[0]} -> {target} {shapes[1]}")
            else:
                taken[target] = tensor
    if problems or not taken:
        nothing = f"no key matched; the file has {listed(list(state), 3)}"
        raise WeightsError(f"MODEL.INIT: {path}: {listed(problems) if problems else nothing}")
    model.load_state_dict({**expected, **taken})
    logger.info("MODEL.INIT: %d tensors taken from %s", len(taken), path)
    unused = [name for name in state if not targets[name]]
    if unused:
        logger.info("MODEL.INIT: left out: %s", ", ".join(unused))
    fresh = [k for k in expected if k not in taken and not k.endswith("num_batches_tracked")]
    if fresh:
        # Of a published network's backbone nothing should be missing.
        backbone = tuple(places["backbone"]) if form else ()
        level = logging.WARNING if any(k.startswith(backbone) for k in fresh) else logging.INFO
        logger.log(level, "MODEL.INIT: initialised afresh: %s", ", ".join(fresh))


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Prefixes of the backbones and heads that published weights fill, each with the final dot.

    Those of the model itself, or of each of its anchors; not a teacher's.
    """
    places: dict[str, list[str]] = {"backbone": [], "heads": []}
    for start in _roots(model, ""):
        for part, prefixes in places.items():
            module = getattr(model.get_submodule(start[:-1]), part, None)
            if isinstance(module, nn.Module):
                prefixes += _roots(module, f"{start}{part}.")
    return places


def _roots(module: nn.Module, prefix: str) -> list[str]:
    """Where a published network sits in a module: at its top, or in each of ``weight_roots``."""
    if not isinstance(module, HasWeightRoots):
        return [prefix]
    return [
        root
        for name in module.weight_roots
        for root in _roots(module.get_submodule(name), f"{prefix}{name}.")
    ]


def _translated(
    name: str, form: str, places: Mapping[str, Sequence[str]], expected: Any
) -> list[str]:
    place = FORMATS[form](name)
    targets = [] if place is None else [f"{prefix}{place[1]}" for prefix in places[place[0]]]
    return [target for target in targets if target in expected]


def _mapped(name: str, rules: Sequence[Sequence[Any]]) -> list[str]:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            several = [replacement] if isinstance(replacement, str) else replacement
            return [re.sub(pattern, one, name, count=1) for one in several if one]
    return []
