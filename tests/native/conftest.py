"""The native operations, built for these tests where they are not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ft2 import native

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def status(tmp_path_factory: pytest.TempPathFactory) -> native.NativeStatus:
    """What is active, after building what is not."""
    found = native.load()
    if found.cpu.active:
        return found
    if not sys.platform.startswith("linux"):
        pytest.skip(found.cpu.detail)
    for tool in ("c++", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"the library cannot be built: no {tool}")
    build, installed = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("installed")
    subprocess.run(["cmake", "-S", _ROOT / "csrc", "-B", build], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    subprocess.run(["cmake", "--install", build, "--prefix", installed], check=True)
    built = native.load(installed / "ft2" / "native")
    assert built.cpu.active, built.cpu.detail
    return built


@pytest.fixture(scope="session")
def operations(status: native.NativeStatus) -> native.Operations:
    found = native.operations()
    assert found is not None
    return found


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, status: native.NativeStatus) -> torch.device:
    """Each device in turn."""
    chosen = torch.device(request.param)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if not status.serves(chosen):
        pytest.skip(status.cuda.detail)
    return chosen


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def agrees_with_torch(tmp_path: Path) -> Callable[..., None]:
    """Fails if a C++ source does not compile beside torch's headers and this library's."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no c++")
    include = Path(torch.__file__).parent / "include"
    if not (include / "torch/csrc/stable/c/shim.h").is_file():
        pytest.skip("this torch came without its headers")

    def agrees(source: str, *flags: str) -> None:
        (tmp_path / "agreement.cpp").write_text(source)
        folders = (f"-I{include}", f"-I{_ROOT / 'csrc'}")
        command = [compiler, "-std=c++20", "-fsyntax-only", *folders, *flags]
        subprocess.run([*command, tmp_path / "agreement.cpp"], check=True)

    return agrees
