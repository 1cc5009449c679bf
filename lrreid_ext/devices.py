"""What a model runs on."""

from __future__ import annotations

import torch
from fastreid.utils import comm

from lrreid_ext.errors import ConfigError

__all__ = ["check_device", "device_type", "usable_device"]


def device_type(name: str, key: str = "MODEL.DEVICE") -> str:
    """What a device is, such as ``cpu`` or ``cuda``, whether or not this machine has one.

    Raises:
        ConfigError: PyTorch knows no such device; begins with ``key``.
    """
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{key}: {name!r} is no device; cpu, cuda and cuda:1 are") from error
    if kind == "meta":
        raise ConfigError(f"{key}: a meta device computes nothing; cpu, cuda and cuda:1 do")
    return kind


def check_device(name: str, key: str = "MODEL.DEVICE") -> None:
    """Refuse a device that this machine, or this PyTorch, hasn't.

    Raises:
        ConfigError: begins with ``key``.
    """
    if device_type(name, key) == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: {name!r}, but PyTorch finds no GPU here; use 'cpu'")
    try:
        torch.empty(0, device=name)
    except Exception as error:  # each kind of device has its own
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ConfigError(f"{key}: {name!r} can't be used here; use 'cpu' ({first})") from error


def usable_device(name: str) -> str:
    """The device asked for, or ``cpu`` where a GPU is asked for and there is none.

    Each of several processes on GPUs gets its own.

    Raises:
        ConfigError: another device that this machine hasn't.
    """
    if device_type(name) != "cuda":
        check_device(name)
        return name
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{comm.get_local_rank()}" if comm.get_world_size() > 1 else name
