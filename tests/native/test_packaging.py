"""What is built of this checkout: with a compiler, without one, and as sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("scikit_build_core")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

_ROOT = Path(__file__).parents[2]
_NO_CUDA = "-DCMAKE_CUDA_COMPILER=NOTFOUND"


def _build(what: str, folder: Path, **environment: str) -> Path:
    program = f"from scikit_build_core.build import build_{what}; build_{what}({str(folder)!r})"
    variables = {**os.environ, "CMAKE_ARGS": _NO_CUDA, **environment}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=_ROOT, env=variables)
    (built,) = folder.iterdir()
    return built


def _libraries(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"ft2", "pytest_ft2"}
    return [name for name in names if name.endswith(".so")]


def test_with_a_compiler_the_wheel_holds_the_library(tmp_path: Path) -> None:
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("no compiler or no CMake")
    wheel = _build("wheel", tmp_path)
    assert "-py3-none-linux_" in wheel.name
    assert _libraries(wheel) == ["ft2/native/libft2_cpu.so"]


def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    wheel = _build("wheel", tmp_path, CC="/no/compiler", CXX="/no/compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert _libraries(wheel) == []


def test_the_sources_are_complete(tmp_path: Path) -> None:
    with tarfile.open(_build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"csrc/{path.name}" for path in (_ROOT / "csrc").iterdir()} <= names
    assert {"ft2/native/__init__.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(".so")]
