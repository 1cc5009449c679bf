"""What a network costs: parameters, multiply-accumulates, time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lrreid_ext.modeling.inference import evaluating


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


def parameters_used(module: nn.Module, *inputs: Any) -> int:
    """Number of parameters that one forward pass in evaluation mode reads; shared ones count once.

    A classifier, a teacher or a discriminator that only training needs is not among them.

    """
    watch = _Watch({id(p) for p in module.parameters()})
    with evaluating(module), watch:
        module(*inputs)
    return sum(p.numel() for p in module.parameters() if id(p) in watch.seen)


def passes(module: nn.Module, part: str, *inputs: Any) -> bool:
    """Whether one forward pass in evaluation mode reads a parameter of a submodule called ``part``,
    or no such has any.

    Args:
        module: the network.
        part: the last word of a submodule's name, such as ``frontend``.
        inputs: arguments of the network.
    """
    parts = [child for name, child in module.named_modules() if name.split(".")[-1] == part]
    parameter_ids = {id(p) for child in parts for p in child.parameters()}
    watch = _Watch(parameter_ids)
    with evaluating(module), watch:
        module(*inputs)
    return bool(watch.seen) or not parameter_ids


class _Watch(TorchFunctionMode):
    """Notes which of some tensors functions get; reading an attribute doesn't count."""

    def __init__(self, ids: set[int]) -> None:
        super().__init__()
        self.ids = ids
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":
            self.seen.update(self.ids & {id(x) for x in tree_leaves((args, kwargs))})
        return func(*args, **kwargs)


def gmacs(module: nn.Module, *inputs: Any) -> float:
    """Multiply-accumulates of one forward pass in evaluation mode, in units of 10^9.

    Convolutions, matrix products and attention are counted; element-wise work, normalisation and
    pooling are not. On the ``meta`` device nothing is computed, so that a large network is counted
    at once.
    """
    with evaluating(module), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2 / 1e9


def latency(module: nn.Module, *inputs: Any, repeats: int = 20, warmup: int = 3) -> float:
    """Median time of ``repeats`` forward passes in evaluation mode, in seconds."""
    cuda = [x.device for x in inputs if isinstance(x, Tensor) and x.is_cuda]

    def finish() -> None:
        for device in cuda:
            torch.cuda.synchronize(device)

    times = []
    with evaluating(module):
        for _ in range(warmup):
            module(*inputs)
        for _ in range(repeats):
            finish()
            start = time.perf_counter()
            module(*inputs)
            finish()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
