"""Tell which call and which step a model is computing, in ``generate`` and in loops by hand.

In the ``generate`` of transformers the steps are counted by the stopping criteria, which are asked
once for every new token, however many forwards the prefill took. Elsewhere the cache tells: an
empty one starts a call, further forwards of several tokens continue its first token, all else is a
step. A ``generate`` of the model's own is one call, in which the cache tells no more than that.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._dynamo.decorators import skip
from torch.nn import functional

from ft2.forward.announcing import announcers, disguises
from ft2.forward.cache_names import cache_in, cache_made_by, is_cache
from ft2.forward.call import Call, Forward, Kind, Listener
from ft2.forward.compiled_step import CompiledStep
from ft2.forward.disguise import Disguise, own_class, show_class
from ft2.forward.inputs import (
    first_parameter,
    length_of,
    named,
    tells_length,
    tells_padding,
    tokens_in,
)
from ft2.forward.lane import Lane
from ft2.forward.repetition import Repetition
from ft2.forward.review import Reviewer
from ft2.layers import unwrap

__all__ = ["Clock", "Silent", "clocked_models", "request", "unheard"]


class _Thread(threading.local):
    """What is true of the thread that asks.

    Attributes
    ----------
    is_computing:
        Whether it computes a forward that was announced.
    """

    # Not the class's: compiled code would take that for this thread's.
    def __init__(self) -> None:
        self.is_computing = False


class Clock:
    """Announces the calls and forwards of one model to its listeners.

    There is one clock a model, worn by the model (and its decoder stack, for callers that go past
    the head) while anything listens. Use :meth:`listen`.

    Attributes
    ----------
    current:
        The forward being computed, if any.
    is_computing, is_recomputing:
        Whether a forward is being computed, and whether that is one that was rejected before.
    calls:
        How many calls began since anything listens.
    lanes:
        What is told when a forward is computed, and when it ends.
    reviewer:
        What may reject forwards, if anything.
    thread:
        The same of this thread. Compiled code that got past the model's own call must not take
        another thread's forward for its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.current: Forward | None = None
        self.is_computing = False
        self.is_recomputing = False
        self.calls = 0
        self.lanes: list[Lane] = []
        self.reviewer: Reviewer | None = None
        self._listeners: list[Listener] = []
        self._repetition: Repetition | None = None
        self._lock = threading.RLock()
        self._stacks = threading.local()
        self.thread = _Thread()
        self._loops: list[tuple[weakref.ref[Any], Call]] = []
        self._fed: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._disguises = disguises(self, model)
        # Compiled code is kept, and counted, by the code that it was made of.
        self._compute = FunctionType(_compute.__code__.replace(), _compute.__globals__)

    @classmethod
    def listen(cls, model: nn.Module, listener: Listener) -> Clock:
        """Announce the model's calls to `listener` until :meth:`dismiss`."""
        clock = _CLOCKS.get(model)
        if clock is None:
            clock = _CLOCKS[model] = cls(model)
        if not clock._listeners:
            clock.calls = 0
            clock._loops.clear()
            # Sharding and parametrizing exchange a module's class too.
            if [type(module) for module in announcers(model)] != clock._classes:
                clock._disguises = disguises(clock, model)
            for module, disguise in _worn(clock, model):
                disguise.put_on(module)
        clock._listeners.append(listener)
        clock._repetition = None
        return clock

    def dismiss(self, model: nn.Module, listener: Listener) -> None:
        """Stop announcing to `listener`; the last one leaves the model as it was."""
        self._listeners.remove(listener)
        self._repetition = None
        if not self._listeners:
            for module, disguise in _worn(self, model):
                disguise.take_off(module)

    @property
    def _classes(self) -> list[type]:
        return [disguise.original for disguise in self._disguises]

    @property
    def forward(self) -> Forward:
        """The forward being computed.

        Raises
        ------
        RuntimeError
            If a layer runs outside any forward that the clock has seen begin.
        """
        if self.current is None:
            raise RuntimeError(
                "a layer of the model ran outside a call that ft2 can see: call the model itself, "
                "model(...) or model.generate(...), rather than model.forward(...) or a compiled "
                "copy made of it before ft2 was attached"
            )
        return self.current

    @contextmanager
    def calling(self, kind: Kind) -> Generator[Call, None, None]:
        """Announce one call that lasts as long as the context."""
        call = self._new_call(kind)
        stack = self._stack()
        stack.append(call)
        try:
            yield call
        finally:
            stack.pop()
            self._repetition = None
        for listener in tuple(self._listeners):
            listener.call_finished(call)

    @skip
    def run(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a forward of `module`, announced unless it is part of one already announced."""
        with self._lock:
            if self.is_computing:
                return call(module, *args, **kwargs)
            # The clock is bookkeeping in Python: it stays out of compiled graphs, the forward does
            # not. ``torch.compiler.disable`` would do the same for each function, at some length.
            compiler = set_eval_frame(None)
            known = self._repetition
            try:
                if known is not None and self._suits(is_compiled := _is_compiled(compiler, module)):
                    forward = known.take(self.innermost, args, kwargs, is_compiled)
                    if forward is not None:
                        self.current, self.is_computing = forward, True
                        return self._repeated(known, compiler, module, call, args, kwargs)
                # Listeners may hold memory for a next step that does not come.
                known = None
                return self._announced(compiler, module, call, args, kwargs)
            finally:
                set_eval_frame(compiler)

    def _suits(self, is_compiled: bool) -> bool:
        return not is_compiled or all(lane.wardrobe.suits_compiled() for lane in self.lanes)

    def _announced(
        self, compiler: Any, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        self._repetition = None
        is_compiled = _is_compiled(compiler, module)
        for lane in self.lanes:
            lane.wardrobe.wear(is_compiled)
        forward = self._begin(module, args, kwargs)
        arguments = (self, module, call, args, kwargs)
        try:
            output = self._computed(compiler, self._compute, arguments)
            output = self._reviewed(forward, output, compiler, arguments)
        except BaseException as error:
            self._broken(error)
            raise
        self._finished(forward, output)
        if forward.cache not in self._fed:
            first = first_parameter(module)
            self._repetition = Repetition.after(forward, first, is_compiled, self._listeners)
        return output

    def _repeated(
        self,
        known: Repetition,
        compiler: Any,
        module: nn.Module,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        arguments = (self, module, call, args, kwargs)
        try:
            known.prepare()
            if not known.is_compiled:
                output = self._computed(compiler, self._compute, arguments)
            else:
                output = self._computed_by_known_code(known, compiler, arguments)
                # While the device computes.
                for lane in self.lanes:
                    lane.wardrobe.look()
            output = self._reviewed(known.forward, output, compiler, arguments)
        except BaseException as error:
            self._repetition = None
            known.abandon()
            self._broken(error)
            raise
        finally:
            known.end()
        self._end()
        return output

    def _reviewed(
        self, forward: Forward, output: Any, compiler: Any, arguments: tuple[Any, ...]
    ) -> Any:
        reviewer = self.reviewer
        if reviewer is None:
            return output
        while self._rejects(reviewer, forward, output):
            output = self._computed(compiler, self._compute, arguments)
        return reviewer.accepted(forward, output)

    def _computed(
        self, compiler: Any, compute: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Any:
        self.thread.is_computing = True
        set_eval_frame(compiler)
        try:
            return compute(*arguments)
        finally:
            set_eval_frame(None)
            self.thread.is_computing = False

    def _computed_by_known_code(
        self, known: Repetition, compiler: Any, arguments: tuple[Any, ...]
    ) -> Any:
        step, known.compiled = known.compiled, None
        # Otherwise the model can have become another one by the next step.
        if not known.forward.call.is_undisturbed:
            return self._computed(compiler, self._compute, arguments)
        if step is not None and step.takes(compiler, arguments):
            output = self._computed(None, step, (arguments,))
        else:
            output = self._computed(compiler, self._compute, arguments)
            step = CompiledStep.after(compiler, self._compute, arguments)
        # While the device computes; for compiled code nothing has ended yet.
        if step is not None and self._computed(None, step.is_valid, (arguments,)):
            known.compiled = step
        return output

    def token_generated(self, call: Call, ended: Tensor) -> None:
        """Count a step of `call`; `ended` is bool (rows,), the rows that are complete now."""
        # Assisted decoding asks the criteria about its candidates too, before any forward.
        if call.step < call.tokens_generated:
            return
        call.tokens_generated += 1
        # In a beam search these are candidates, not the rows of the batch.
        if call.rows_per_request == 1:
            if call.ended is not None and len(ended) > 1:
                ended = call.ended | ended
            call.ended = ended

    @property
    def innermost(self) -> Call | None:
        """The ``generate`` or request that runs now, in this thread."""
        try:
            return self._stacks.calls[-1]
        except (AttributeError, IndexError):
            return None

    def _stack(self) -> list[Call]:
        if not hasattr(self._stacks, "calls"):
            self._stacks.calls = []
        return self._stacks.calls

    def _new_call(self, kind: Kind) -> Call:
        with self._lock:
            call = Call(index=self.calls, kind=kind)
            self.calls += 1
        for listener in tuple(self._listeners):
            listener.call_started(call)
        return call

    def _finished(self, forward: Forward, output: Any) -> None:
        self._end()
        made = cache_made_by(output)
        cache = forward.cache if made is None else made
        if is_cache(cache):
            if tells_length(cache):
                self._fed.pop(cache, None)
            else:
                self._fed[cache] = forward.cached + forward.tokens
            if forward.call.kind == "loop":
                self._remember(cache, forward.call)
        for listener in tuple(self._listeners):
            listener.forward_finished(forward, output)

    @torch.compiler.disable
    def failed(self, error: Exception) -> None:
        """Tell the listeners of an error that leaves a call of the model."""
        for listener in tuple(self._listeners):
            listener.call_failed(error)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> Forward:
        inputs = named(module, args, kwargs)
        forward = self._forward(inputs, tokens_in(inputs, first_parameter(module)))
        self.current, self.is_computing = forward, True
        try:
            for listener in tuple(self._listeners):
                listener.forward_started(forward)
        except BaseException as error:
            self._broken(error)
            raise
        return forward

    def _rejects(self, reviewer: Reviewer, forward: Forward, output: Any) -> bool:
        self.is_recomputing = reviewer.rejects(forward, output)
        return self.is_recomputing

    def _broken(self, error: BaseException) -> None:
        self._end()
        if isinstance(error, Exception):
            self.failed(error)

    def _end(self) -> None:
        self.current, self.is_computing, self.is_recomputing = None, False, False
        for lane in self.lanes:
            lane.end()

    def _forward(self, inputs: dict[str, Any], tokens_in: Tensor) -> Forward:
        rows, tokens, *_ = tokens_in.shape
        call = self.innermost
        cache = cache_in(inputs)
        cached = self._cached_tokens(cache, call, tokens)
        if call is None:
            call = self._loop(cache, cached)
            if call.step > 0 and tokens > 1 and is_cache(cache) and cache in self._fed:
                # One that tells no length was emptied, since a step has one token.
                call, cached = self._new_call("loop"), 0
        if call.tokens_are_counted:
            step = call.tokens_generated
        elif call.step < 0 or (call.step == 0 and cached > 0 and tokens > 1):
            step = 0
        else:
            step = call.step + 1
        call.step = step
        call.cached = cached + tokens
        real = None
        # A single new token is never padding: nobody pads what is being generated.
        if tokens > 1 or step == 0:
            mask = inputs.get("attention_mask")
            if not tells_padding(mask, rows):
                mask = call.attention_mask
            if tells_padding(mask, rows):
                # Some models put a token of their own behind those that they are given.
                mask = functional.pad(mask.bool(), (0, max(0, tokens - mask.shape[1])), value=True)
                start = cached if mask.shape[1] > cached + tokens else mask.shape[1] - tokens
                real = mask[:, start : start + tokens]
                # Of most batches nothing is padded, and much is spared where that is known.
                if _masks_nothing(real):
                    real = None
        return Forward(call, step, rows, tokens, cached, real, inputs, cache)

    def _cached_tokens(self, cache: Any, call: Call | None, tokens: int) -> int:
        cached = length_of(cache)
        if cached is None or (not isinstance(cached, Tensor) and cached == 0):
            return self._fed.get(cache, 0) if is_cache(cache) else 0
        # A static cache counts on the device: reading it would wait.
        if isinstance(cached, Tensor) and call is not None and call.step >= 0:
            return call.cached
        return int(cached)

    def _loop(self, cache: Any, cached: int) -> Call:
        if cached > 0:
            for reference, call in self._loops:
                if reference() is cache:
                    return call
        return self._new_call("loop")

    def _remember(self, cache: Any, call: Call) -> None:
        self._loops = [
            (reference, known)
            for reference, known in self._loops
            if reference() is not None and reference() is not cache
        ]
        if cache is not None:
            self._loops.append((weakref.ref(cache), call))


_CLOCKS: WeakKeyDictionary[nn.Module, Clock] = WeakKeyDictionary()


class Silent(Listener):
    """Keeps a clock running for a request that nothing else listens to."""

    def forward_repeats(self, forward: Forward) -> Callable[[], None]:
        return _nothing


@contextmanager
def request(model: nn.Module) -> Generator[None, None, None]:
    """Say that all forwards inside are one request, for decode loops written by hand.

    A loop that passes the cache along needs no such word. One that runs the whole text through
    the model for every token does: without it, each forward is a request of its own, which never
    leaves its first token.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    model = unwrap(model)
    silent = Silent()
    clock = Clock.listen(model, silent)
    try:
        with clock.calling("request"):
            yield
    finally:
        clock.dismiss(model, silent)


def _nothing() -> None:
    pass


def _worn(clock: Clock, model: nn.Module) -> list[tuple[nn.Module, Disguise]]:
    return list(zip(announcers(model), clock._disguises, strict=True))


def clocked_models() -> list[nn.Module]:
    """Return the models whose calls something listens to."""
    return [model for model, clock in _CLOCKS.items() if clock._listeners]


@contextmanager
def unheard(model: nn.Module) -> Generator[None, None, None]:
    """Have a model compute as if nothing was attached to it, as long as the context."""
    worn = {module: type(module) for module in model.modules()}
    for module, kind in worn.items():
        _exchange_class(module, own_class(kind))
    try:
        yield
    finally:
        for module, kind in worn.items():
            # Another class was given to it meanwhile.
            if type(module) is own_class(kind):
                _exchange_class(module, kind)


def _exchange_class(module: nn.Module, kind: type) -> None:
    if type(module) is not kind:
        object.__setattr__(module, "__class__", kind)
        show_class(module)


def _compute(clock: Clock, module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
    output = call(module, *args, **kwargs)
    for lane in clock.lanes:
        lane.finish()
    return output


def _masks_nothing(real: Tensor) -> bool:
    # For a graph that is being captured nothing can be waited for.
    if real.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(real.all())


def _is_compiled(compiler: Any, module: nn.Module) -> bool:
    # One that was compiled in place turns to the compiler itself.
    return compiler is not None or vars(module).get("_compiled_call_impl") is not None
