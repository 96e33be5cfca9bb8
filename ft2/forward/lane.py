"""Taps of many modules that share one object, the lane, for as little work in each as possible.

A tap of :mod:`ft2.forward.tap` calls functions that compiled code has to guard on, one by one in
every layer. Here all modules run the same code, which finds the lane, and a module's seat in it, in
a namespace that the modules of one model share: so compiled code guards on it once.
"""

from __future__ import annotations

import inspect
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn import functional
from torch.nn.modules import module as _modules
from transformers.modeling_layers import GradientCheckpointingLayer

from ft2.forward.compiled_seats import Wardrobe
from ft2.forward.disguise import Disguise, undisguised
from ft2.forward.shortcuts import shortcuts
from ft2.forward.slots import Slots

__all__ = ["Lane", "Seat", "hears_nothing", "may_be_spared", "seats_of", "takes_a_seat"]


class Lane(ABC):
    """What becomes of the outputs of some modules.

    Attributes
    ----------
    is_direct:
        Whether nothing listens that a module's call would tell: global hooks, gradients, tracers.
        Set for each forward; then linear layers are called past the ways of a module's call.
    slots:
        Where it is set, linear layers that are called so, in the order of their numbers, leave
        what they were given and what they computed here, in place of :meth:`eager`, and the output
        goes on as it is.
    wardrobe:
        What the modules wear.
    count:
        How many modules' outputs it has; set with the wardrobe by
        :func:`ft2.forward.tap_in_lane`.
    """

    wardrobe: Wardrobe
    count: int

    # Not the class's: Python 3.12 looks up longer what both an object and its class have.
    def __init__(self) -> None:
        self.is_direct = False
        self.slots: Slots | None = None

    @abstractmethod
    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        """Return what goes on in place of a module's output.

        Parameters
        ----------
        seat:
            The module's number in the lane.
        hidden, output:
            What the module was given and what it computed.
        """

    @abstractmethod
    def traced(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        """As :meth:`eager`, in code that ``torch.compile`` reads."""

    @abstractmethod
    def finish(self) -> None:
        """Called when a forward is computed, inside of what is compiled where that can be."""

    @abstractmethod
    def end(self) -> None:
        """Called at the end of each forward, also of one that failed or was interrupted."""


class _Empty(Lane):
    """Changes nothing."""

    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        return output

    def traced(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        return output

    def finish(self) -> None:
        pass

    def end(self) -> None:
        pass


_EMPTY = _Empty()


class Seat:
    """One module's place in the lanes of its model.

    Parameters
    ----------
    module:
        The module, to which a weak reference is kept.
    disguise:
        What the module wears in it; the same for all modules of a class, since code that meets
        many classes is slow.
    namespace:
        What the seats of a lane share.
    wardrobe:
        Where the seats of a lane keep what their modules wear.
    number:
        Which one it is; None for a module that the lane has nothing of, and that is only called
        past the ways of a module's call when the lane is direct.
    """

    def __init__(
        self,
        module: nn.Module,
        disguise: Disguise,
        namespace: dict[str, Any],
        wardrobe: Wardrobe,
        number: int | None,
    ) -> None:
        self.module = weakref.ref(module)
        self.number = number
        self.disguise = disguise
        self.wardrobe = wardrobe
        self._namespace = namespace
        wardrobe.add(module, disguise, number)

    def take(self, lane: Lane) -> None:
        """Let `lane` have what the module puts out, while the module wears the disguise."""
        self._namespace["lane"] = lane

    def leave(self, lane: Lane) -> None:
        """Let `lane` have nothing more, also of modules whose own class came of the disguise."""
        if self._namespace["lane"] is lane:
            self._namespace["lane"] = _EMPTY


# The namespace of what follows, as it is written; each model has another one.
lane: Any = None
# By a module's id: compiled code would look for modules that are keys, and for their weights, here.
seats: dict[int, int] = {}
call: Callable[..., Any] = nn.Module.__call__
checkpointed: Callable[..., Any] = GradientCheckpointingLayer.__call__
# Past torch.nn.functional, where profilers put others in its place.
linear = torch._C._nn.linear


def _call_module(module: Any, *args: Any, **kwargs: Any) -> Any:
    output = call(module, *args, **kwargs)
    seat = seats.get(id(module))
    # What else is made of the class that the module wears is in no lane.
    if seat is None:
        return output
    hidden = args[0] if args else next(iter(kwargs.values()))
    if is_compiling():
        return lane.traced(seat, hidden, output)
    # What a hook returns may be the user's own, and a lane may change what it is given.
    return lane.eager(seat, hidden, output.clone() if module._forward_hooks else output)


def _call_linear(module: Any, *args: Any, **kwargs: Any) -> Any:
    # Cheaper to ask than whether anything compiles, which a direct lane knew when it began.
    if not is_dynamo_compiling() and lane.is_direct and len(args) == 1 and not kwargs:
        own, hidden = module.__dict__, args[0]
        # What a linear layer's call comes to, without the ways of a module's call.
        if (
            not own["_forward_hooks"]
            and not own["_forward_pre_hooks"]
            and "forward" not in own
            and "_compiled_call_impl" not in own
            and (weight := (parameters := own["_parameters"]).get("weight")) is not None
            and "bias" in parameters
        ):
            output = linear(hidden, weight, parameters["bias"])
            seat = seats.get(id(module))
            # A spared one, or what else is made of the class that it wears.
            if seat is None:
                return output
            slots = lane.slots
            # One out of turn is the lane's, and so are all that follow one that did not run.
            if slots is not None and slots.next == seat:
                slots.next = seat + 1
                slots.hidden[seat] = hidden
                slots.outputs[seat] = output
                return output
            return lane.eager(seat, hidden, output)
    hooks = module._forward_hooks or module._forward_pre_hooks
    if len(args) != 1 or kwargs or not is_compiling() or hooks:
        return call_module(module, *args, **kwargs)
    seat = seats.get(id(module))
    if seat is None:
        return call_spared(module, *args)
    return lane.traced(seat, args[0], module.forward(*args))


def _call_spared(module: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_dynamo_compiling() and lane.is_direct:
        own = module.__dict__
        if (
            not own["_forward_hooks"]
            and not own["_forward_pre_hooks"]
            and "_compiled_call_impl" not in own
        ):
            return module.forward(*args, **kwargs)
    # For compiled code each way of a call would be one more thing to check in every module.
    elif is_compiling() and not (
        is_grad_enabled() or module._forward_hooks or module._forward_pre_hooks
    ):
        return module.forward(*args, **kwargs)
    return call(module, *args, **kwargs)


def _call_checkpointed(module: Any, *args: Any, **kwargs: Any) -> Any:
    # Outside of training its call is what any module's is.
    if module.training or is_compiling():
        return checkpointed(module, *args, **kwargs)
    return call_spared(module, *args, **kwargs)


call_module = _call_module
call_spared = _call_spared


_Names = tuple[str, ...]
# Classes are kept: compiled code knows a model by them when the same is attached again.
_SEATS: WeakKeyDictionary[nn.Module, dict[tuple[_Names, _Names], list[Seat]]] = WeakKeyDictionary()


def takes_a_seat(module: nn.Module) -> bool:
    """Whether calling the module is what calling any module is."""
    kind: Any = undisguised(type(module))
    return kind.__call__ is call and _is_called_as_usual(module)


def may_be_spared(module: nn.Module) -> bool:
    """Whether calling the module is that, outside of training at least."""
    kind: Any = undisguised(type(module))
    calling = [each for each in kind.__mro__ if "__call__" in vars(each)]
    is_usual = calling in ([nn.Module], [GradientCheckpointingLayer, nn.Module])
    return is_usual and _is_called_as_usual(module)


def _is_called_as_usual(module: nn.Module) -> bool:
    kind: Any = undisguised(type(module))
    own, usual = vars(module), nn.Module
    return (
        kind._wrapped_call_impl is usual._wrapped_call_impl
        and kind._call_impl is usual._call_impl
        and not {"_wrapped_call_impl", "_call_impl"} & own.keys()
    )


def seats_of(model: nn.Module, names: Iterable[str], spared: Iterable[str] = ()) -> list[Seat]:
    """Return seats for the modules of those names, always the same ones for the same names.

    Parameters
    ----------
    model:
        The model.
    names:
        The modules' names, in the order of their numbers.
    spared:
        Names of modules that get a seat without a number, after the others.
    """
    names, spared = tuple(names), tuple(spared)
    by_name = dict(model.named_modules(remove_duplicate=False))
    modules = [by_name[name] for name in (*names, *spared)]
    kinds = [undisguised(type(module)) for module in modules]
    known = _SEATS.setdefault(model, {})
    found = known.get((names, spared))
    # Modules are exchanged, and sharding and parametrizing exchange a module's class.
    if found is None or [(each.module(), each.disguise.original) for each in found] != list(
        zip(modules, kinds, strict=True)
    ):
        numbered = dict(enumerate(modules[: len(names)]))
        # Without a module's name: compiled code would look there instead.
        namespace: dict[str, Any] = {
            "__builtins__": __builtins__,
            "call": call,
            "checkpointed": checkpointed,
            "is_compiling": is_compiling,
            "is_dynamo_compiling": is_dynamo_compiling,
            "is_grad_enabled": is_grad_enabled,
            "lane": _EMPTY,
            "linear": linear,
            "seats": {id(module): number for number, module in numbered.items()},
        }
        for module in numbered.values():
            # Another module may be given the id of one that is gone.
            weakref.finalize(module, namespace["seats"].pop, id(module), None).atexit = False
        namespace["call_module"] = _bound(_call_module, namespace)
        namespace["call_spared"] = _bound(_call_spared, namespace)
        wardrobe = Wardrobe(namespace)
        theirs: dict[type, list[nn.Module]] = {}
        for module, kind in zip(modules, kinds, strict=True):
            theirs.setdefault(kind, []).append(module)
        parts = {kind: shortcuts(kind, some) for kind, some in theirs.items()}
        seated, others = kinds[: len(names)], kinds[len(names) :]
        disguises = {kind: _disguise(kind, namespace, parts[kind]) for kind in seated}
        sparing = {kind: _sparing_disguise(kind, namespace, parts[kind]) for kind in others}
        found = [
            Seat(module, disguises[kind], namespace, wardrobe, number)
            for (number, module), kind in zip(numbered.items(), seated, strict=True)
        ]
        found += [
            Seat(module, sparing[kind], namespace, wardrobe, None)
            for module, kind in zip(modules[len(names) :], others, strict=True)
        ]
        known[names, spared] = found
    return found


def _disguise(kind: type, namespace: dict[str, Any], parts: dict[str, Any]) -> Disguise:
    template = _call_linear if kind is nn.Linear else _call_module
    return Disguise(kind, {"__call__": _bound(template, namespace), **parts})


def _sparing_disguise(kind: Any, namespace: dict[str, Any], parts: dict[str, Any]) -> Disguise:
    template = _call_linear if kind is nn.Linear else _call_spared
    if kind.__call__ is not call:
        template = _call_checkpointed
    return Disguise(kind, {"__call__": _bound(template, namespace), **parts})


def _bound(template: Any, namespace: dict[str, Any]) -> FunctionType:
    return FunctionType(template.__code__, namespace, "__call__")


def hears_nothing() -> bool:
    """Whether no global hook, gradient, tracer or compiler wants to hear of modules' calls.

    And whether what a linear layer does is torch's own: others are put in its place.
    """
    return not (
        torch.is_grad_enabled()
        or _modules._has_any_global_hook()
        or torch._C._get_tracing_state()
        or is_compiling()
        or functional.linear is not linear
        or getattr(nn.Linear.forward, "__code__", None) is not _LINEAR_CODE
    )


def _code_of_linear() -> Any:
    code = getattr(nn.Linear.forward, "__code__", None)
    is_torchs = code is not None and code.co_filename == inspect.getsourcefile(nn.Linear)
    return code if is_torchs else object()


_LINEAR_CODE = _code_of_linear()
