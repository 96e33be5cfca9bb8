"""The native operations: found, loaded once per process, and told about.

:func:`load` registers them in torch as ``torch.ops.ft2``, and :func:`operations` returns them
without Python in between. They change tensors in place, have no gradients, and are opaque to
``torch.compile``. Values are fp16, bf16 or fp32; bounds, sums and weights contiguous fp32.

Tokens are counted row by row over all dimensions but the last. What belongs to whole requests or
rows (bounds, counters, marks, flags) is shared evenly: each of n has the next tokens / n tokens. So
(rows, tokens, columns) and the flattened (rows * tokens, columns) are the same to them, and so are
marks (rows, tokens) and (rows, 1). Outputs may be empty, or any strided view.

``restrict_(output, bounds, corrected, counted=None)``
    NaN becomes 0, then values are clipped to their request's bounds. A value within its bounds
    stays as it is, the sign of a zero included; so do memory and neighbours of a strided view.
    Beyond three dimensions `output` must be contiguous. `bounds` is (2, n), lower ones first;
    `corrected`, int64, is added the number of corrected values; `counted`, bool, is False at tokens
    whose corrections do not count.
``restrict_at(output, restriction)``
    The same, with the address of a :class:`ft2.native.direct.RestrictionAt` in place of the other
    arguments: to unpack those takes longer than to restrict the values of a token.
``count_outside(outputs, bounds, corrected, counted=None)``
    Counts what ``restrict_`` would correct in each of the outputs, and changes none of them.
    `bounds` is (outputs, 2, n); the outputs as for ``check_bounds``.
``record_(output, bounds, corrected, counted=None)``
    NaN becomes 0 and ±Inf the type's largest number; `bounds` (2, n), to be started at +inf and
    -inf, are widened to all values of counted tokens but those that were infinite. A bound of zero
    is +0.
``record_at(output, restriction)``
    The same, with an address as for ``restrict_at``.
``check_bounds(outputs, bounds, flags)``
    A row of any of the outputs with a value outside of its bounds gets bit :data:`OUTSIDE_BOUNDS`
    of its flag set. `bounds` is (outputs, 2, n), `flags` uint8. Here and below all outputs are of
    one type, with adjacent columns, and change nothing. One launch on CUDA for up to 480 outputs.
``check_sums(outputs, expected, flags, roundoffs=8.0)``
    Sets bit :data:`WRONG_SUM` unless the sum of each group of columns is as expected to within
    ``roundoffs`` times the type's unit roundoff times the group's Euclidean norm; NaN and ±Inf are
    not. `expected` holds (tokens, groups) for each output. 8 suits fp16 and bf16; fp32 outputs,
    which are not rounded last of all, need about 64 (``csrc/checksum.h``).
``check_products(outputs, inputs, weights, flags, roundoffs=8.0)``
    The same, with the sums expected from the layers' inputs: `weights` holds for each output
    (groups, inputs + 1), the sum of W over the group's rows and, last, the sum of the bias.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

__all__ = [
    "OUTSIDE_BOUNDS",
    "WRONG_SUM",
    "LibraryStatus",
    "NativeStatus",
    "Operations",
    "load",
    "operations",
]

OUTSIDE_BOUNDS = 1
WRONG_SUM = 2

_DISTRIBUTION = "pytest-ft2"
_HERE = Path(__file__).parent
_SOURCES = _HERE.parent.parent / "csrc"

Operation = Callable[..., None]


@dataclass(frozen=True)
class LibraryStatus:
    """Whether one of the libraries is in use.

    Attributes
    ----------
    active:
        Whether it is loaded and registered.
    detail:
        The library's path; the reason where it is not active.
    """

    active: bool
    detail: str


@dataclass(frozen=True)
class NativeStatus:
    """What :func:`load` found for each kind of device."""

    cpu: LibraryStatus
    cuda: LibraryStatus

    def serves(self, device: torch.device) -> bool:
        """Whether the operations take tensors of this device."""
        library = {"cpu": self.cpu, "cuda": self.cuda}.get(device.type)
        return library is not None and library.active


@dataclass(frozen=True)
class Operations:
    """The registered operations, called without Python in between."""

    restrict_: Operation
    restrict_at: Operation
    count_outside: Operation
    record_: Operation
    record_at: Operation
    check_bounds: Operation
    check_sums: Operation
    check_products: Operation


_lock = threading.Lock()
_status: NativeStatus | None = None


def load(folder: Path | None = None) -> NativeStatus:
    """Load the libraries, if that was not tried yet, and tell what is active and why not.

    Parameters
    ----------
    folder:
        Where the libraries are; the default is beside this file or, in a checkout, where the
        installed package keeps them. Without effect once they are loaded.
    """
    global _status
    with _lock:
        if _status is None or not (_status.cpu.active or folder is None):
            folders = _folders() if folder is None else [folder]
            cpu = _load_cpu(folders)
            _status = NativeStatus(cpu, _load_cuda(folders, cpu))
        return _status


def operations() -> Operations | None:
    """Return the operations; None if not even the CPU's library is active."""
    if not load().cpu.active:
        return None
    # An OpOverload adds 0.2 µs of Python to each call of what it holds.
    return Operations(
        **{name: getattr(torch.ops.ft2, name).default._op for name in Operations.__annotations__}
    )


def _folders() -> list[Path]:
    folders = [_HERE]
    try:
        installed = distribution(_DISTRIBUTION).locate_file("ft2/native")
    except PackageNotFoundError:
        return folders
    return list(dict.fromkeys([*folders, Path(str(installed))]))


def _load_cpu(folders: list[Path]) -> LibraryStatus:
    if not sys.platform.startswith("linux"):
        return LibraryStatus(False, "native operations are built on Linux only")
    status = _load_library("libft2_cpu.so", folders, "no C++ compiler when ft2 was installed")
    if status.active:
        _register_fakes()
    return status


def _load_cuda(folders: list[Path], cpu: LibraryStatus) -> LibraryStatus:
    if torch.version.cuda is None:
        return LibraryStatus(False, "this torch has no CUDA")
    if not cpu.active:
        return LibraryStatus(False, "it needs the CPU's library")
    return _load_library("libft2_cuda.so", folders, "no CUDA compiler when ft2 was installed")


def _load_library(name: str, folders: list[Path], why_missing: str) -> LibraryStatus:
    refused = []
    for path in (folder / name for folder in folders):
        if not path.is_file():
            continue
        why_not = _register(path)
        if why_not is None:
            return LibraryStatus(True, str(path))
        refused.append(f"{path}: {why_not}")
    return LibraryStatus(False, "; ".join(refused) or f"{name} is not there: {why_missing}")


def _register(path: Path) -> str | None:
    """Load and register a library; return why that cannot be."""
    if str(path) in torch.ops.loaded_libraries:
        return None  # This module was imported anew.
    try:
        library = ctypes.CDLL(str(path))
        register, digest = library.ft2_register, library.ft2_source_digest
    except (OSError, AttributeError) as error:
        return str(error)
    digest.restype = ctypes.c_char_p
    if _SOURCES.is_dir() and digest().decode() != _source_digest():
        return "built from other sources than this checkout's csrc; install it again"
    # To register a second copy would end the process on some versions of torch.
    key = "CUDA" if "cuda" in path.name else "CPU"
    if _is_registered(key):
        return "another copy of ft2 has registered its operations in this process"
    if register() != 0:
        return f"torch {torch.__version__} refused it"
    torch.ops.loaded_libraries.add(str(path))
    return None


def _is_registered(dispatch_key: str) -> bool:
    if not hasattr(torch.ops.ft2, "restrict_"):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key("ft2::restrict_", dispatch_key)


def _source_digest() -> str:
    digests = "".join(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(_SOURCES.iterdir())
        if path.is_file()
    )
    return hashlib.sha256(digests.encode()).hexdigest()


def _register_fakes() -> None:
    for name in Operations.__annotations__:
        try:
            torch.library.register_fake(f"ft2::{name}", _changes_in_place)
        except RuntimeError:
            return  # This module was imported anew.


def _changes_in_place(*_args: object, **_kwargs: object) -> None:
    """Stand in for an operation where tensors have no values: it returns nothing."""
