"""Other projects' weights under our names (MODEL.INIT.FORMAT): torchreid's, fastreid's, timm's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import suggest

__all__ = ["FORMATS", "adapted", "homes", "translated"]

# A name in the file to ("backbone" or "heads", the name there), or None for what has no place here.
Rule = Callable[[str], "tuple[str, str] | None"]


def _torchreid(name: str) -> tuple[str, str] | None:
    """The whole network at the top; ``fc`` is the neck, ``classifier`` tells its own identities."""
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
    """The whole network at the top; its classifier finds no place by itself."""
    return "backbone", name


FORMATS: dict[str, Rule] = {"torchreid": _torchreid, "fastreid": _fastreid, "timm": _timm}


def homes(model: nn.Module) -> dict[str, list[str]]:
    """Where backbones and heads stand in a model: prefixes, each with the final dot.

    Those of the model itself and of its anchors; not a teacher's, which has weights of its own. In
    a doubled backbone both streams and the stem, in a timm model's wrapper the model inside.
    """
    from lrreid_ext.modeling.backbones import DualStream, TimmBackbone
    from lrreid_ext.modeling.meta_arch import Pipeline

    found: dict[str, list[str]] = {"backbone": [], "heads": []}
    for name, module in model.named_modules():
        if name and not isinstance(module, Pipeline):
            continue
        start = f"{name}." if name else ""
        for part, places in found.items():
            inside = getattr(module, part, None)
            if isinstance(inside, DualStream):
                places += [f"{start}{part}.{stream}." for stream in ("stem", "low", "high")]
            elif isinstance(inside, TimmBackbone):
                places.append(f"{start}{part}.model.")
            elif isinstance(inside, nn.Module):
                places.append(f"{start}{part}.")
    return found


def adapted(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """timm's own remapping of a file for the first timm model in ``model``: names that changed, and
    position embeddings resized."""
    from lrreid_ext.modeling.backbones import TimmBackbone
    from lrreid_ext.modeling.backbones.pretrained import filtered

    inside = next((m.model for m in model.modules() if isinstance(m, TimmBackbone)), None)
    return state if inside is None else filtered(inside, state)


def translated(
    model: nn.Module, state: Mapping[str, Tensor], form: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Where each tensor of a published file goes.

    Args:
        model: the whole model.
        state: the file's tensors, by its names.
        form: whose file it is; one of :data:`FORMATS`.

    Returns:
        The names in the model that each name in the file fills, and the names of the file that have
        no place in the model.

    Raises:
        ConfigError: an unknown format.
    """
    if form not in FORMATS:
        raise ConfigError(
            f"MODEL.INIT.FORMAT: {form!r} is none of {', '.join(FORMATS)}.{suggest(form, FORMATS)}"
        )
    own = model.state_dict().keys()
    places = homes(model)
    found: dict[str, list[str]] = {}
    left: list[str] = []
    for name in state:
        home = FORMATS[form](name)
        targets = [] if home is None else [f"{p}{home[1]}" for p in places[home[0]]]
        targets = [target for target in targets if target in own]
        if targets:
            found[name] = targets
        else:
            left.append(name)
    return found, left
