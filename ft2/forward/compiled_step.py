"""The compiled code of a step that repeats, checked for the next step while the device computes.

Before compiled code runs, torch looks for code that was made for what is there: that takes a check
of each thing the code relies on, hundreds for every layer, and the device waits. A step that
repeats the one before is computed by the same code. So its checks are made behind it, and before
the next one only what that is given is compared.
"""

from __future__ import annotations

import weakref
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame

__all__ = ["CompiledStep"]

# What is equal if its type and value are.
_PLAIN = (type(None), bool, int, float, str)
# So torch names what goes on in Python where compiled code was left.
_RESUMPTION = "__resume_at"


class CompiledStep:
    """Code that torch has compiled, and what it was given last.

    Parameters
    ----------
    code:
        The code.
    guards:
        Torch's checks of what the code was made for.
    compiler:
        What compiled it, as ``set_eval_frame`` takes it.
    function:
        What it was made of.
    arguments:
        What it was given.

    Raises
    ------
    TypeError
        If something among the arguments, other than a number or a text, cannot be told again.
    """

    def __init__(
        self,
        code: Any,
        guards: Any,
        compiler: Any,
        function: FunctionType,
        arguments: tuple[Any, ...],
    ) -> None:
        self._compiler = compiler
        self._run = FunctionType(code, function.__globals__)
        self._guards = guards
        self._check = guards.check
        self._names = function.__code__.co_varnames[: len(arguments)]
        given = _Given(arguments)
        self._like = given.alike
        # While these are there, no other object has one's id.
        self._objects = [weakref.ref(each) for each in given.objects]

    @classmethod
    def after(
        cls, compiler: Any, function: FunctionType, arguments: tuple[Any, ...]
    ) -> CompiledStep | None:
        """Return the code that has just computed ``function(*arguments)``.

        Parameters
        ----------
        compiler:
            What compiles, as ``set_eval_frame`` takes it.
        function:
            A function without free variables, which was compiled where it was called.
        arguments:
            What it was given, one for each of its parameters.

        Returns
        -------
        CompiledStep or None
            None if there is none, or more than one: compiled code that is left in between goes on
            with other code, which torch has to look for.
        """
        try:
            entries = _entries_of(function)
            if not entries or not callable(compiler):
                return None
            # The first ran last, if any did; of those given up no code is left.
            code, guards = entries[0].code, entries[0].guard_manager
            if code is None or entries[0].backend != _backend_of(compiler):
                return None
            if any(name.startswith(_RESUMPTION) for name in code.co_names):
                return None
            return cls(code, guards, compiler, function, arguments)
        except (AttributeError, TypeError):
            # A torch that keeps its code elsewhere looks for it itself, as it does for arguments
            # that are not known again.
            return None

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        """Compute what the function computes, without a check."""
        return self._run(*arguments)

    def takes(self, compiler: Any, arguments: tuple[Any, ...]) -> bool:
        """Whether the compiler is the same, and these arguments are like those before.

        That is, tensors of the same type, shape, strides, dtype and device, equal numbers and
        texts, and otherwise the same objects, in the same places.
        """
        return (
            compiler is self._compiler
            and _Given(arguments).alike == self._like
            and all(each() is not None for each in self._objects)
        )

    def is_valid(self, arguments: tuple[Any, ...]) -> bool:
        """Whether all is there that the code was made for, by torch's own checks."""
        # Code that torch has given up, since something it relies on is gone, has no entry.
        if self._guards.cache_entry is None:
            return False
        return bool(self._check(dict(zip(self._names, arguments, strict=True))))


class _Given:
    """What some arguments are, and the objects among them that are nothing but themselves."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.objects: list[Any] = []
        self._tensors: list[int] = []
        self.alike = self._alike(arguments)

    def _alike(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor) and value.layout is torch.strided:
            # Which of them are one and the same is relied on, too.
            self._tensors.append(id(value))
            first = self._tensors.index(id(value))
            traits = (value.dtype, value.device, value.requires_grad)
            return (kind, first, value.shape, value.stride(), *traits)
        if kind in _PLAIN:
            return (kind, value)
        if kind is dict:
            return (kind, [(name, self._alike(each)) for name, each in value.items()])
        if kind in (tuple, list):
            return (kind, [self._alike(each) for each in value])
        self.objects.append(value)
        return (kind, id(value))


def _entries_of(function: FunctionType) -> list[Any]:
    """Return what torch has compiled of a function, the one that ran last first."""
    of_region = getattr(eval_frame, "_get_cache_entries_for_region", None)
    if of_region is None:
        return eval_frame._debug_get_cache_entry_list(function.__code__)
    # Regions that share no compiled code came with torch 2.13.
    region = eval_frame.get_eval_frame_isolate_recompiles_id()
    found: list[Any] = of_region(function.__code__, region)
    return found


def _backend_of(compiler: Any) -> Any:
    """Return what a compiler that torch has wrapped compiles with."""
    while hasattr(compiler, "_torchdynamo_orig_backend"):
        compiler = compiler._torchdynamo_orig_backend
    return compiler
