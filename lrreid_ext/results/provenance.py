"""Where a figure came from: the command, the code, the machine and the weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Keys that don't change the features that given weights compute: training, data, and where the
# weights come from and run.
_NOT_OF_FEATURES = frozenset(
    (
        *("DATASETS", "DATALOADER", "INPUT", "SOLVER", "PHASES", "START_PHASE", "HOOKS", "TEST"),
        *("SEED", "PLUGINS", "OUTPUT_DIR", "CUDNN_BENCHMARK"),
    )
)
_NOT_OF_MODEL = frozenset(("DEVICE", "LOSSES", "FREEZE_LAYERS", "CHANNELS_LAST", "INIT"))


def provenance(checkpoint: str = "", device: str = "cpu") -> dict[str, Any]:
    """Where a figure comes from; the fields are written beside it.

    Args:
        checkpoint: path of the weights, or "".
        device: device that the network ran on, ``cpu`` or ``cuda``.

    Returns:
        ``command`` (without the interpreter; paths below the working directory are relative to
        it), ``commit`` ("" outside a checkout), ``machine`` and ``checkpoint``.
    """
    return {
        "command": command_line(),
        "commit": commit(),
        "machine": machine(device),
        "checkpoint": relative_path(checkpoint),
    }


def command_line() -> str:
    """The command of this process, as one could type it again in the same folder."""
    return shlex.join(relative_path(word) for word in sys.argv)


def relative_path(word: str) -> str:
    """An absolute path below the working directory, also after ``--key=``, made relative to it."""
    option = re.match(r"--?[\w.-]+=", word)
    start = option.end() if option else 0
    path = word[start:]
    if os.path.isabs(path) and Path(os.path.normpath(path)).is_relative_to(os.getcwd()):
        path = os.path.relpath(path)
    return word[:start] + path


def commit(root: Path | None = None) -> str:
    """``git describe --always --dirty`` of the project's checkout, or "" if it is none.

    Args:
        root: folder that holds ``.git``; by default the one above this package.
    """
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # git does not work here
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processors, their model, the GPU if ``device`` is one, and the versions that matter."""
    facts: dict[str, Any] = {
        "processors": os.cpu_count() or 1,
        "cpu": _cpu_model(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    if str(device).startswith("cuda") and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpus"] = torch.cuda.device_count()
    return facts


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's parameters and buffers."""
    return tensors_hash(model.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def config_hash(cfg: Mapping[str, Any]) -> str:
    """SHA-256 over the keys of a config that decide the features that given weights compute.

    They are MODEL (without losses, files of weights and the device), the size that images
    are resized to, where native sizes come from, and the top-level keys of plugins.
    """

    def kept(node: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: kept(value) if isinstance(value, Mapping) else value
            for key, value in node.items()
            if not key.endswith(("WEIGHTS", "PRETRAIN", "PRETRAIN_PATH"))
        }

    content = kept({k: v for k, v in cfg.items() if k not in _NOT_OF_FEATURES})
    content["MODEL"] = {k: v for k, v in content["MODEL"].items() if k not in _NOT_OF_MODEL}
    crop = cfg["INPUT"]["CROP"]
    content["INPUT"] = [list(cfg["INPUT"]["SIZE_TEST"]), crop["ENABLED"] and list(crop["SIZE"])]
    if cfg["INPUT"]["NATIVE_SIZE"] != "file":  # hashes of earlier versions stay valid
        content["INPUT"].append(cfg["INPUT"]["NATIVE_SIZE"])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if model:
            return model.group(1).strip()
    return platform.processor() or platform.machine()
