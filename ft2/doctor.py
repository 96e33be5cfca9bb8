"""What ``python -m ft2 doctor`` prints: versions, devices, and which path protects on each."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ft2.native import LibraryStatus, load
from ft2.native.exchange import exchange

__all__ = ["report"]

_WIDTH = 16


def report() -> str:
    """Return what is installed here, and for each kind of device which path is active and why."""
    status = load()
    lines = {
        "ft2": _version("pytest-ft2"),
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "transformers": _version("transformers"),
        "CUDA device": _cuda_device(),
        "on the CPU": _path(status.cpu),
        "on CUDA": _path(status.cuda),
        "torch.compile": "plain torch, which the compiler folds into neighbouring kernels",
        "float64": "plain torch",
    }
    return "\n".join(f"{name:{_WIDTH}}{text}" for name, text in lines.items())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda_device() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"


def _path(library: LibraryStatus) -> str:
    if not library.active:
        return f"plain torch: {library.detail}"
    # Without it each call takes several times as long while a model decodes.
    way = (
        ""
        if exchange() is not None
        else ", by torch's dispatch (it offers no DLPack exchange in C)"
    )
    return f"native: {library.detail}{way}"
