"""What the benchmarks share: options, fresh processes, peak memory, results and their page."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lrreid_ext.files import write_json, write_text

__all__ = [
    "MEGABYTE",
    "BenchmarkError",
    "PeakMemory",
    "command_line",
    "in_fresh_process",
    "machine_line",
    "save",
]

MEGABYTE = 2**20


class BenchmarkError(RuntimeError):
    """Something measured failed, or the machine is too small, or results don't agree."""


def command_line(name: str, about: str, results: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has: ``--threads``, ``--seed`` and ``--out``.

    Args:
        name: the script's.
        about: its docstring: one line, and what follows it below the options.
        results: file that the figures are written to.
    """
    description, _, details = about.partition("\n\n")
    out = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=details,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--threads", type=_count, default=0, metavar="N", help="0: as torch chooses")
    out.add_argument("--seed", type=_count, default=0, metavar="N", help="of everything drawn")
    out.add_argument(
        "--out", type=_json, default=Path(results), metavar="FILE.json",
        help="the table is written beside it as .md",
    )  # fmt: skip
    return out


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 0 on")
    return int(word)


def _json(word: str) -> Path:
    if not word.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"{word}: must end in .json; the table goes beside it as .md"
        )
    return Path(word)


def in_fresh_process(script: str, words: Sequence[str], threads: int, what: str) -> dict[str, Any]:
    """Run a script that prints JSON in its last line, and read that.

    Args:
        script: its file.
        words: its arguments.
        threads: processors that it may use; 0 leaves it as it is.
        what: what it measures, for the message.

    Raises:
        BenchmarkError: it failed; the message ends with what it wrote to stderr.
    """
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, str(Path(script).resolve()), *words],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"{what} failed, status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine_line(results: dict[str, Any], *libraries: str) -> str:
    """Where results come from, in one line: processors, versions, commit and command.

    Args:
        results: with what ``provenance`` returns among it.
        libraries: more versions, such as ``faiss 1.9``.
    """
    machine = results["machine"]
    gpu = [machine["gpu"]] if "gpu" in machine else []
    parts = [f"{machine['processors']} x {machine['cpu']}", *gpu, *libraries]
    parts += [f"torch {machine['torch']}", f"Python {machine['python']}"]
    return f"{', '.join(parts)}; commit {results['commit'] or 'unknown'}; {results['command']}"


def save(
    out: Path,
    measure: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any], str], str],
) -> int:
    """Measure, write the results and their table, and print it.

    Args:
        out: the results' file; the page is written beside it as ``.md``.
        measure: makes the content of the results.
        table: makes a page of it, in one of tabulate's formats.

    Returns:
        The exit status: 1, and nothing written, where measuring failed.
    """
    try:
        results = measure()
    except BenchmarkError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    write_json(out, results)
    page = out.with_suffix(".md")
    write_text(page, table(results, "pipe"))
    print(f"\n{table(results, 'simple')}\n{out} and {page} written")
    return 0


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
