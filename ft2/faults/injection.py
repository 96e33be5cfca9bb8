"""Inject faults into a model while it runs, and keep the proof that they landed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

from ft2.faults.fault import Fault
from ft2.faults.formats import flip, format_of, number_format
from ft2.forward import Call, Clock, Forward, Listener, Order, Vectors, attach, by_row
from ft2.layers import Projection, projections, unwrap

__all__ = ["Injection", "inject"]


class Injection:
    """What became of one fault.

    Reading a value waits for the device; the injection itself does not.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._before: Tensor | None = None
        self._after: Tensor | None = None

    @property
    def fired(self) -> bool:
        """Whether the fault's element was computed."""
        return self._before is not None

    @property
    def landed(self) -> bool:
        """Whether the element was computed and its stored bits are other ones now."""
        if self._before is None or self._after is None:
            return False
        bits = format_of(self._before.dtype).pattern_dtype
        return not torch.equal(self._before.view(bits), self._after.view(bits))

    @property
    def before(self) -> float | None:
        """The value without the fault; None if it was never computed."""
        return None if self._before is None else float(self._before.item())

    @property
    def after(self) -> float | None:
        """The value with the fault; None if it was never computed."""
        return None if self._after is None else float(self._after.item())

    @property
    def phase(self) -> str:
        """``first`` for the first token's step, ``later`` for all others."""
        return "first" if self.fault.step == 0 else "later"

    @property
    def step(self) -> int:
        """The step that the fault belongs to."""
        return self.fault.step

    def strike(self, value: Tensor) -> Tensor:
        """Return the faulty value in place of `value`, shape (), and remember both."""
        encoding = (
            format_of(value.dtype)
            if self.fault.encoding is None
            else number_format(self.fault.encoding)
        )
        self._before = value.detach().clone()
        self._after = flip(self._before, self.fault.bits, encoding)
        return self._after


# Where the tokens of one step are counted that all products with raw parameters see.
_EVERY_PRODUCT = ""


class _Injector(Listener):
    """Waits for the elements of its faults to be computed."""

    def __init__(self, model: nn.Module, injections: Iterable[Injection]) -> None:
        self.waiting: dict[str, list[Injection]] = {}
        for injection in injections:
            self.waiting.setdefault(injection.fault.layer, []).append(injection)
        self.clock = Clock.listen(model, self)
        running = self.clock.innermost
        self._first_call = self.clock.calls if running is None else running.index
        self._positions: dict[tuple[str, Call, int], int] = {}

    def whole(self, projection: Projection) -> Callable[[Tensor], Tensor]:
        """Strike the output of a module."""

        @torch.compiler.disable
        def strike(output: Tensor) -> Tensor:
            return self._strike(projection.name, output, self.clock.forward)

        return strike

    def vectors(self, group: list[Projection]) -> Callable[[Vectors], Tensor]:
        """Strike the products with one parameter."""

        def strike(vectors: Vectors) -> Tensor:
            for projection in group:
                self._strike_vectors(projection, vectors, self.clock.forward)
            return vectors.values

        return strike

    def forward_finished(self, forward: Forward, output: Any) -> None:
        place = (_EVERY_PRODUCT, forward.call, forward.step)
        self._positions[place] = self._positions.get(place, 0) + forward.tokens

    def _strike_vectors(self, projection: Projection, vectors: Vectors, forward: Forward) -> None:
        # A fault is transient: what is computed again has none, and counts no positions.
        if self.clock.is_recomputing:
            return
        here = (forward.call.index - self._first_call, forward.step)
        start = self._positions.get((_EVERY_PRODUCT, forward.call, forward.step), 0)
        tokens = vectors.count // forward.rows
        for injection in tuple(self.waiting[projection.name]):
            fault = injection.fault
            token = fault.position - start
            if (fault.call, fault.step) != here or not 0 <= token < tokens:
                continue
            if fault.row >= forward.rows:
                raise ValueError(
                    f"fault {fault} lies outside the output of {projection.name}: "
                    f"{forward.rows} rows"
                )
            is_hit = vectors.tokens == fault.row * tokens + token
            if projection.expert is not None and vectors.experts is not None:
                is_hit &= vectors.experts == projection.expert
            hits = is_hit.nonzero()
            if len(hits):
                self.waiting[projection.name].remove(injection)
                element = vectors.values[hits[0, 0], fault.neuron]
                with torch.no_grad():
                    element.copy_(injection.strike(element))

    def _strike(self, layer: str, output: Tensor, forward: Forward) -> Tensor:
        if not self.waiting[layer] or self.clock.is_recomputing:
            return output
        view = by_row(output, forward)
        place = (layer, forward.call, forward.step)
        start = self._positions.get(place, 0)
        self._positions[place] = start + view.shape[1]
        here = (forward.call.index - self._first_call, forward.step)
        for injection in tuple(self.waiting[layer]):
            fault = injection.fault
            token = fault.position - start
            if (fault.call, fault.step) == here and 0 <= token < view.shape[1]:
                if fault.row >= view.shape[0] or fault.neuron >= view.shape[2]:
                    raise ValueError(
                        f"fault {fault} lies outside the output of {layer}: "
                        f"{view.shape[0]} rows, {view.shape[2]} columns"
                    )
                self.waiting[layer].remove(injection)
                element = view[fault.row, token, fault.neuron]
                with torch.no_grad():
                    element.copy_(injection.strike(element))
        return output


@overload
def inject(model: nn.Module, fault: Fault) -> AbstractContextManager[Injection]: ...
@overload
def inject(model: nn.Module, fault: Iterable[Fault]) -> AbstractContextManager[list[Injection]]: ...
def inject(model: nn.Module, fault: Fault | Iterable[Fault]) -> Any:
    """Flip a fault's bits when its element is computed.

    Parameters
    ----------
    model:
        The model; calls are counted from here. It stays the same object, and leaving the context
        leaves it as it was.
    fault:
        One fault, or several: one for each row of a batch, say.

    Returns
    -------
    context manager
        Yields the :class:`Injection` of the fault, or a list of them; read it when the model has
        run. Each fault strikes once.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If the model has no such layer, or the layer no such neuron.
    """
    return _injecting(unwrap(model), fault)


@contextmanager
def _injecting(
    model: nn.Module, fault: Fault | Iterable[Fault]
) -> Generator[Injection | list[Injection], None, None]:
    faults = [fault] if isinstance(fault, Fault) else list(fault)
    injections = [Injection(each) for each in faults]
    known = {projection.name: projection for projection in projections(model)}
    for each in faults:
        if each.layer not in known:
            raise ValueError(
                f"the model has no projection {each.layer!r}; its first is {next(iter(known))!r}"
            )
        neurons = known[each.layer].out_features
        if each.neuron >= neurons:
            raise ValueError(
                f"{each.layer} has {neurons} neurons, so there is no neuron {each.neuron}"
            )
    injector = _Injector(model, injections)
    struck = [known[layer] for layer in injector.waiting]
    taps = attach(model, struck, Order.INJECT, injector.whole, injector.vectors)
    try:
        yield injections[0] if isinstance(fault, Fault) else injections
    finally:
        for each_tap in taps:
            each_tap.remove()
        injector.clock.dismiss(model, injector)
