"""Maps from inside a backbone, by the names of its modules.

A level is the map that a module returns: ``layer3`` of a ResNet, ``conv4`` of an OSNet, ``layer3``
or ``blocks.5`` of a timm model. No backbone has to be written for it: forward hooks read the maps
as they pass. A module that only holds others, and is never called itself (the stages of fastreid's
ResNets), is the level of the last one called in it.

A backbone may help: see :class:`~lrreid_ext.modeling.contract.HasLevelsRoot` and
:class:`~lrreid_ext.modeling.contract.ConvertsMaps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.contract import ConvertsMaps, HasLevelsRoot
from lrreid_ext.modeling.inference import evaluating
from lrreid_ext.registry import suggest

__all__ = ["Level", "find_levels", "levels_of", "tapped"]


class Level(NamedTuple):
    """One map of a backbone.

    Attributes:
        module: dotted name of the module that returns it.
        channels, height, width: of the map of one image.
    """

    module: str
    channels: int
    height: int
    width: int


def levels_of(backbone: nn.Module, size: tuple[int, int]) -> dict[str, Level]:
    """Every level by its name, in the order of computation, found with a blank image.

    Args:
        backbone: called with images (B, 3, H, W).
        size: height and width of the images.
    """
    levels: dict[str, Level] = {}

    def note(name: str, output: Any) -> None:
        maps = _as_map(backbone, output, size)
        levels.pop(name, None)
        if maps is not None:
            levels[name] = Level(name, *maps.shape[1:])

    names = [name for name, _ in backbone.named_modules() if name]
    parameter = next(backbone.parameters())
    blank = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    with evaluating(backbone), _hooked(backbone, names, note):
        backbone(blank)
    for name in names:
        inside = [n for n in levels if n.startswith(name + ".")]
        if name not in levels and inside:
            levels[name] = levels[inside[-1]]
    order = list(dict.fromkeys(level.module for level in levels.values()))
    root = backbone.levels_root if isinstance(backbone, HasLevelsRoot) else ""
    prefix = f"{root}." if root else ""
    return {
        name.removeprefix(prefix): level
        for name, level in sorted(levels.items(), key=lambda item: order.index(item[1].module))
        if name != root
    }


def find_levels(
    backbone: nn.Module, names: Iterable[str], size: tuple[int, int], key: str
) -> dict[str, Level]:
    """The levels of these names; see :func:`levels_of`.

    Args:
        names: of the levels.
        key: the config key that holds the names, for the message.
        backbone, size: as for :func:`levels_of`.

    Raises:
        ConfigError: a name that no level has; lists those there are.
    """
    names = list(names)
    if not names:
        return {}
    levels = levels_of(backbone, size)
    for name in names:
        if name not in levels:
            top = [n for n in levels if "." not in n]
            raise ConfigError(
                f"{key}: {type(backbone).__name__} has no level {name!r}.{suggest(name, levels)} "
                f"There are {', '.join(top or levels)}, and the modules inside them"
            )
    return {name: levels[name] for name in names}


@contextmanager
def tapped(
    backbone: nn.Module, levels: Mapping[str, Level], size: tuple[int, int]
) -> Iterator[dict[str, Tensor]]:
    """Read levels while the backbone is run inside the block.

    Args:
        backbone: the one that ``levels`` were found in, or a copy.
        levels: from :func:`find_levels`.
        size: height and width of the images.

    Yields:
        A dict that is filled with a map (B, C, h, w) for each level, gradients included.
    """
    maps: dict[str, Tensor] = {}
    called: dict[str, list[str]] = {}
    for name, level in levels.items():
        called.setdefault(level.module, []).append(name)

    def note(module: str, output: Any) -> None:
        value = _as_map(backbone, output, size)
        assert value is not None  # it gave a map of the blank image
        maps.update(dict.fromkeys(called[module], value))

    with _hooked(backbone, called, note):
        yield maps


def _as_map(backbone: nn.Module, output: Any, size: tuple[int, int]) -> Tensor | None:
    if isinstance(backbone, ConvertsMaps):
        try:
            return backbone.as_map(output, size)
        except ValueError:
            return None
    return output if isinstance(output, Tensor) and output.ndim == 4 else None


@contextmanager
def _hooked(backbone: nn.Module, names: Iterable[str], note: Any) -> Iterator[None]:
    handles = [
        backbone.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: note(name, output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
