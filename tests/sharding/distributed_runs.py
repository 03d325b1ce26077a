"""Runs of several processes on this machine, bounded in time: what the tests of distribution launch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["test_distributed"])  # torch and Lightning are imported once, not by each process


class WorkerError(Exception):
    """What went wrong in the processes."""


def launch(
    function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 90.0, raises: bool = True
) -> list:
    """Call ``function(*arguments)`` in ``world`` processes, and give what each returned, or its traceback as text.

    A process finds its place in the environment variables that torch and Lightning read. Whatever happens, no process
    is left after ``timeout`` seconds.
    """
    # the server of processes is started by the first of them, and finds what to preload by this path alone
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (str(Path(__file__).parent), *sys.path) if path)
    folder = Path(tempfile.mkdtemp())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_work, args=(function, rank, world, port, folder, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        results = []
        for rank, process in enumerate(processes):
            path = folder / f"{rank}.pt"
            state = "still running" if process.is_alive() else f"ended with {process.exitcode}"
            results.append(
                torch.load(path, weights_only=False) if path.exists() else WorkerError(f"rank {rank} {state}")
            )
    finally:
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(folder)
    failures = [result for result in results if isinstance(result, WorkerError)]
    if failures and raises:
        raise WorkerError("\n".join(map(str, failures)))
    return results


def _work(function: Callable[..., Any], rank: int, world: int, port: int, folder: Path, arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        result = function(*arguments)
    except BaseException:  # a test asks for the traceback of whatever ended a process
        result = WorkerError(f"rank {rank}: {traceback.format_exc()}")
    torch.save(result, folder / f"{rank}.partial")
    (folder / f"{rank}.partial").rename(folder / f"{rank}.pt")
    if distributed.is_initialized() and not isinstance(result, WorkerError):
        distributed.destroy_process_group()


def join_group(seconds: float = 30.0) -> int:
    """Join the processes of this launch, and give the rank among them."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    return distributed.get_rank()
