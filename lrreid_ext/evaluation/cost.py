"""What a network costs: parameters, multiply-accumulates, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in its own mode again."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True


def gmacs(module: nn.Module, *inputs: Any) -> float:
    """Multiply-accumulates of one forward pass in evaluation mode, in units of 10^9.

    Convolutions, matrix products and attention are counted; element-wise work, normalisation and
    pooling are not. On the ``meta`` device nothing is computed, so that a large network is counted
    at once.

    Args:
        module: the network.
        inputs: what it is called with.
    """
    with _evaluating(module), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2 / 1e9


def latency(module: nn.Module, *inputs: Any, repeats: int = 20, warmup: int = 3) -> float:
    """Median time of one forward pass in evaluation mode, in seconds.

    Args:
        module: the network.
        inputs: what it is called with.
        repeats: timed passes, at least 1.
        warmup: passes before those.

    Raises:
        ValueError: ``repeats`` below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    cuda = [x.device for x in inputs if isinstance(x, Tensor) and x.is_cuda]

    def finish() -> None:
        for device in cuda:
            torch.cuda.synchronize(device)

    times = []
    with _evaluating(module):
        for _ in range(warmup):
            module(*inputs)
        for _ in range(repeats):
            finish()
            start = time.perf_counter()
            module(*inputs)
            finish()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
