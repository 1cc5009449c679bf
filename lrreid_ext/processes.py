"""Worker processes that can't hang."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext


def clean_context(module: str) -> BaseContext:
    """Fresh processes, forked off one that has imported ``module`` and no more where that can be.

    A copy of the calling process would hang as soon as it waits for one of the threads (OpenCV's,
    PyTorch's) that weren't copied with it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context
