"""The memory that a piece of work holds at most."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

__all__ = ["PeakMemory"]


class PeakMemory:
    """Most memory held above what was held at the start, in bytes.

    Of a GPU, what its tensors take. Of the process, on Linux the excess over what is resident now
    if it exceeds what this process ever held, and else at most that; on other systems the growth
    of the process's largest size, at least that.

    Args:
        device: whose memory: ``cpu`` for the process's, ``cuda`` for the current GPU's.
    """

    def __init__(self, device: str = "cpu") -> None:
        gc.collect()
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return
        status = _linux_status()
        self._start = status["VmRSS"] if status else _largest_size()

    def read(self) -> int:
        """The peak so far."""
        if self._on_gpu:
            return max(0, torch.cuda.max_memory_allocated() - self._start)
        status = _linux_status()
        return max(0, (status["VmHWM"] if status else _largest_size()) - self._start)


def _linux_status() -> dict[str, int]:
    """Resident size now (VmRSS) and at most (VmHWM) in bytes; {} where /proc has none."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return {}
    rows = (line.split() for line in path.read_text().splitlines())
    found = {r[0].rstrip(":"): 1024 * int(r[1]) for r in rows if r and r[0] in ("VmRSS:", "VmHWM:")}
    return found if len(found) == 2 else {}


def _largest_size() -> int:
    import resource  # not on Windows

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
