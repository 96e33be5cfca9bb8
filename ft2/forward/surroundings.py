"""What a forward could change beside its cache: its inputs, and what modules keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ft2.forward.left_behind import LeftBehind
from ft2.forward.tokens import tensors_in

__all__ = ["Surroundings"]


class Surroundings:
    """The inputs of a forward, and the attributes and buffers of a model's modules, as they are.

    Parameters
    ----------
    model:
        The model.
    inputs:
        What its forward is given, by name.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._model = model
        self._attributes = LeftBehind(model)
        self._buffers = _versions(model)
        self._inputs = [
            (name, each, None if not each.is_inference() else each.clone(), _version(each))
            for name, value in inputs.items()
            for each in tensors_in(value)
        ]

    def changed(self) -> str | None:
        """Return what is another one by now, in words, or None."""
        now = _versions(self._model)
        buffers = (name for name in now if now[name] != self._buffers.get(name))
        left = self._attributes.changed(self._model) or next(buffers, None)
        if left is not None:
            return f"leaves {left} behind"
        for name, tensor, copy, version in self._inputs:
            is_same = _version(tensor) == version if copy is None else torch.equal(tensor, copy)
            if not is_same:
                return f"writes to what it is given as {name}"
        return None


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {name: (id(each), _version(each)) for name, each in model.named_buffers()}


def _version(tensor: Tensor) -> int:
    # What was made in inference mode counts no versions.
    return 0 if tensor.is_inference() else tensor._version
