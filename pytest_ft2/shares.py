"""Shares of this machine, one for each of pytest-xdist's workers: GPUs and CPU threads.

They are part of the environment that a worker is born with, before anything can import torch, and
one that replaces a worker gets the share of that worker.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import takewhile

import pytest

__all__ = ["GPUS", "crowding", "gpus_here", "share", "too_many_workers"]

GPUS = "ft2_gpus"
"""Under this name a worker's input holds how many GPUs all workers share."""

_GPUS_CHOSEN = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"
_THREADS_CHOSEN = (_THREADS, "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def gpus_here() -> list[str]:
    """Return the GPUs that this process can use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    chosen = os.environ.get(_GPUS_CHOSEN)
    if chosen is not None:
        # What follows a device that is not there is not there either.
        names = [name.strip() for name in chosen.split(",")]
        return list(takewhile(lambda name: name and not name.startswith("-"), names))
    if shutil.which("nvidia-smi") is None:
        return []
    # Without a GPU nothing here is worth the second that this takes.
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def share(worker: int, workers: int, gpus: Sequence[str]) -> Mapping[str, str]:
    """Return the variables that give a worker its share.

    Parameters
    ----------
    worker:
        Its number, from 0 on.
    gpus:
        The GPUs of all workers; too few for one each are left to whoever needs none.
    """
    variables = {}
    each = len(gpus) // workers
    if each:
        variables[_GPUS_CHOSEN] = ",".join(gpus[worker * each : (worker + 1) * each])
    if not any(name in os.environ for name in _THREADS_CHOSEN):
        variables[_THREADS] = str(max(_cores() // workers, 1))
    return variables


def too_many_workers(workers: int, gpus: int) -> str | None:
    """Return a sentence if workers would have to share GPUs, or None."""
    if not 0 < gpus < workers:
        return None
    return (
        f"{workers} workers would share {gpus} GPU{'s' if gpus > 1 else ''}, where each needs one "
        f"of its own: use -n {gpus}"
    )


def crowding(config: pytest.Config) -> str | None:
    """Return a sentence if this process is a worker that shares its GPU with others, or None."""
    given = getattr(config, "workerinput", {})
    return too_many_workers(given.get("workercount", 1), given.get(GPUS, 0))


def _cores() -> int:
    # Not all systems can tell which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
