"""What a model's forwards leave in its modules: a test may read there what no answer tells it."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch import Tensor, nn

__all__ = ["LeftBehind"]

_OWN = frozenset(nn.Module().__dict__)


class LeftBehind:
    """The attributes of a model's modules, but for parameters, buffers and hooks.

    Parameters
    ----------
    model:
        The model, as it is now.
    """

    def __init__(self, model: nn.Module) -> None:
        # The values are kept: another one in the place of one that is gone could look like it.
        self._before = {name: _attributes(each) for name, each in model.named_modules()}

    def changed(self, model: nn.Module) -> str | None:
        """Return the name of an attribute that was set or changed since, or None."""
        for name, each in model.named_modules():
            before, now = self._before.get(name, {}), _attributes(each)
            for attribute in before.keys() | now.keys():
                if not _is_same(before.get(attribute), now.get(attribute)):
                    return f"{name}.{attribute}".lstrip(".")
        return None


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    return {
        name: (value, _extent(value)) for name, value in module.__dict__.items() if name not in _OWN
    }


def _extent(value: Any) -> Any:
    """What changes where the object stays: how much it holds, or how often it was written."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if not isinstance(value, Sized) or isinstance(value, nn.Module):
        return None
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        # Some have the method and no length: torch's packed weights, numpy's single numbers.
        return None


def _is_same(before: tuple[Any, Any] | None, now: tuple[Any, Any] | None) -> bool:
    if before is None or now is None:
        return False
    is_number = isinstance(now[0], bool | int | float | str)
    return before[1] == now[1] and (before[0] == now[0] if is_number else before[0] is now[0])
