"""What `generate` is given to compile its steps on any device, as it does on a GPU."""

from __future__ import annotations

from typing import Any

from transformers import CompileConfig

__all__ = ["compiling"]


def compiling(backend: str = "eager") -> dict[str, Any]:
    """Return options of `generate`: a static cache, and steps that `backend` compiles."""
    config = CompileConfig(backend=backend, mode=None, fullgraph=False)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}
