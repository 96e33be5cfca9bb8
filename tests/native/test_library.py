"""The library as torch, the linker and a second loader see it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ft2 import doctor, native
from ft2.native.direct import RestrictionAt

_SOURCES = Path(__file__).parents[2] / "csrc"
_TORCH_2_10 = "0x020a000000000000"


def _flags() -> torch.Tensor:
    return torch.zeros(2, dtype=torch.uint8)


def _counters() -> torch.Tensor:
    return torch.zeros(2, dtype=torch.int64)


_BOUNDS = torch.tensor([[-1.0, -2.0], [1.0, 2.0]])
_VALUES = torch.randn(2, 3, 8)
_RESTRICTION = RestrictionAt(_BOUNDS, _counters(), None)
_CALLS = {
    "restrict_": (_VALUES, _BOUNDS, _counters()),
    "record_": (_VALUES, _BOUNDS, _counters(), torch.ones(2, 1, dtype=torch.bool)),
    "restrict_at": (_VALUES, _RESTRICTION.address),
    "record_at": (_VALUES, _RESTRICTION.address),
    "count_outside": ([_VALUES, _VALUES], torch.stack([_BOUNDS, _BOUNDS]), _counters()),
    "check_bounds": ([_VALUES, _VALUES], torch.stack([_BOUNDS, _BOUNDS]), _flags()),
    "check_sums": ([_VALUES], [_VALUES.sum(-1)], _flags(), 4.0),
    "check_products": ([_VALUES], [_VALUES], [torch.ones(1, 9)], _flags()),
}


@pytest.mark.parametrize("name", _CALLS)
def test_torch_finds_nothing_wrong(operations: native.Operations, name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.ft2, name).default, _CALLS[name])


def test_every_operation_is_checked() -> None:
    assert set(_CALLS) == set(native.Operations.__annotations__)


def test_no_symbol_of_an_unstable_interface(status: native.NativeStatus) -> None:
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("no nm")
    for library in (status.cpu, status.cuda):
        if library.active:
            names = subprocess.run(
                [tool, "-D", "-C", library.detail], check=True, capture_output=True, text=True
            ).stdout
            assert re.findall(r"\b(?:at|c10|torch)::|\b_?Py[A-Z]", names) == []
            used = set(re.findall(r" U ((?:aoti_)?torch_\w+)", names))
            assert used
            assert used <= set(_declared())


def test_declarations_agree_with_torch_2_10(agrees_with_torch: Callable[..., None]) -> None:
    # A C function that is declared twice, differently, does not compile; nor does one that the
    # headers for torch 2.10 do not have.
    uses = "".join(
        f"void* use_{name} = reinterpret_cast<void*>(&{name});\n" for name in _declared()
    )
    agrees_with_torch(
        "#include <type_traits>\n#include <torch/csrc/stable/c/shim.h>\n"
        f"{uses}"
        '#include "torch_abi.h"\n'
        "static_assert(std::is_same_v<StableIValue, unsigned long>);\n"
        "static_assert(AOTI_TORCH_SUCCESS == 0);\n",
        "-DUSE_CUDA",
        f"-DTORCH_TARGET_VERSION={_TORCH_2_10}",
    )


def _declared() -> list[str]:
    text = (_SOURCES / "torch_abi.h").read_text()
    return re.findall(r"^(?:int32_t|AOTITorchError) (\w+)\(", text, re.MULTILINE)


def test_declarations_are_found() -> None:
    assert len(_declared()) > 20


def test_builtin_functions_outlive_what_made_them() -> None:
    program = """
import gc, importlib, torch
from ft2.native import builtin, direct, exchange, load
if not load().cpu.active:
    raise SystemExit
restriction = direct.DirectRestriction("cpu")
count = torch.zeros(1, dtype=torch.int64)
at = direct.RestrictionAt(torch.tensor([[-2.0], [3.0]]), count, None)
exchange.exchange.cache_clear()
for room in (builtin, exchange):
    importlib.reload(room)
gc.collect()
others = [bytearray(size) for size in (24, 32, 40, 48) for _ in range(1000)]
values = torch.tensor([[9.0]])
assert restriction.restrict(values, at.address)
assert values.item() == 3.0
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=_SOURCES.parent)


def test_loading_again_is_harmless(status: native.NativeStatus) -> None:
    assert native.load() is status
    assert native.load(Path("/nowhere")) is status
    # As another import of the package would, in a process of its own.
    folder = Path(status.cpu.detail).parent
    program = f"""
import importlib
from pathlib import Path
from ft2 import native
folder = Path({str(folder)!r})
first = native.load(folder)
importlib.reload(native)
assert repr(native.load(folder)) == repr(first), (native.load(folder), first)
assert first.cpu.active, first
assert native.operations() is not None
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=_SOURCES.parent)


def test_a_second_copy_in_the_process_is_refused(
    status: native.NativeStatus, tmp_path: Path
) -> None:
    copy = shutil.copy(status.cpu.detail, tmp_path)
    program = f"""
import importlib
from pathlib import Path
from ft2 import native
assert native.load(Path({str(Path(status.cpu.detail).parent)!r})).cpu.active
importlib.reload(native)
refused = native.load(Path({str(Path(copy).parent)!r}))
assert not refused.cpu.active
assert "another copy" in refused.cpu.detail, refused
assert native.operations() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=_SOURCES.parent)


def test_a_missing_or_broken_library_is_told_not_raised(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from ft2 import doctor, native
from ft2.native.direct import RestrictionAt
status = native.load(Path(sys.argv[1]))
assert not status.cpu.active
assert native.operations() is None
print(doctor.report())
"""

    def report() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=_SOURCES.parent
        )
        return done.stdout

    assert "plain torch: libft2_cpu.so is not there: no C++ compiler" in report()
    (tmp_path / "libft2_cpu.so").write_bytes(b"not a library")
    assert "invalid ELF header" in report() or "file too short" in report()


def test_doctor_tells_versions_and_paths(status: native.NativeStatus) -> None:
    text = doctor.report()
    assert torch.__version__ in text
    assert f"native: {status.cpu.detail}" in text


def test_the_doctor_tells_of_a_torch_that_lets_no_c_read_its_tensors(
    status: native.NativeStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "dispatch" not in doctor.report()
    monkeypatch.setattr(doctor, "exchange", lambda: None)
    assert f"{status.cpu.detail}, by torch's dispatch" in doctor.report()
