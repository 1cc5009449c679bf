"""One process or several, on CPUs (gloo) or GPUs (NCCL), spawned here or by ``torchrun``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastreid.utils import comm

from lrreid_ext.errors import ConfigError


def launch(
    main: Callable[..., None],
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
    args: Sequence[Any] = (),
    backend: str = "gloo",
) -> None:
    """Run ``main(*args)`` in every process.

    fastreid's own launcher asserts a GPU and hard-codes NCCL; this one sets up the same groups.
    Under ``torchrun`` the processes exist already, and the arguments about them are left aside.

    Args:
        main: what to run.
        processes: per machine; one per GPU, or any number on a CPU.
        machines, machine_rank: how many machines take part, and which this is.
        url: where the processes meet, e.g. ``tcp://10.0.0.1:29500``; "auto" on one machine.
        args: for ``main``.
        backend: ``nccl`` for models on GPUs, ``gloo`` for models on the CPU.
    """
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        _join(int(os.environ["LOCAL_RANK"]), local_size, rank, world, "env://", backend)
        try:
            main(*args)
        finally:
            _leave()
        return
    world = processes * machines
    if world == 1:
        main(*args)
        return
    if url == "auto":
        if machines > 1:
            raise ConfigError("--dist-url: several machines need an address, tcp://HOST:PORT")
        url = f"tcp://127.0.0.1:{_free_port()}"
    mp.spawn(_worker, (main, processes, machine_rank, world, url, tuple(args), backend), processes)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _worker(
    local_rank: int,
    main: Callable[..., None],
    processes: int,
    machine_rank: int,
    world: int,
    url: str,
    args: tuple[Any, ...],
    backend: str,
) -> None:
    _join(local_rank, processes, machine_rank * processes + local_rank, world, url, backend)
    try:
        main(*args)
    finally:
        _leave()


def _join(local_rank: int, local_size: int, rank: int, world: int, url: str, backend: str) -> None:
    if backend == "nccl":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"--num-processes: {local_size} processes, but {torch.cuda.device_count()} GPUs; "
                "with MODEL.DEVICE cpu any number can run"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=world)
    for start in range(0, world, local_size):
        ranks = list(range(start, start + local_size))
        group = dist.new_group(ranks)
        if rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _leave() -> None:
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()
