"""Record a run of a model: what it computed, what it said, and how long it took."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ft2.campaign.exponents import ExponentReader
from ft2.faults import Execution, Fault, Space, Step, format_of
from ft2.forward import Call, Clock, Forward, Listener, Order, Tap, Vectors, attach, by_row, tap
from ft2.layers import Projection, projections
from ft2.layers.identity import Identity, identify

__all__ = ["Golden", "Macs", "Recorder"]

Ranges = tuple[tuple[int, int, int], ...]


@dataclass
class Macs:
    """Multiply-accumulate operations of a run, by what they were spent on."""

    projections: int = 0
    attention: int = 0
    lm_head: int = 0

    @property
    def share_outside(self) -> float:
        """The share that no fault can hit: attention's products and ``lm_head``."""
        outside = self.attention + self.lm_head
        return outside / (outside + self.projections) if outside else 0.0


@dataclass(frozen=True)
class Golden:
    """A run without a fault.

    Attributes
    ----------
    space:
        Every site of the run.
    outputs:
        What each call said: token ids, as ``generate`` returned them, or the most likely token of
        each row after each forward of a loop by hand.
    seconds:
        Time spent in each step of `space`, in order.
    macs:
        Where the work went.
    model:
        Which model it was.
    """

    space: Space
    outputs: tuple[tuple[Any, ...], ...]
    seconds: tuple[float, ...]
    macs: Macs
    model: Identity

    @property
    def calls(self) -> int:
        """How many calls of the model the run made."""
        return len(self.outputs)

    @property
    def steps(self) -> int:
        """How many steps its calls took together."""
        return len(self.space.steps)

    @property
    def digest(self) -> str:
        """A hash of the calls, their shapes, formats and words; not of times or rounding."""
        shapes = [
            (
                step.call,
                step.step,
                [(e.layer, e.first_position, e.real, e.encoding) for e in step.executions],
            )
            for step in self.space.steps
        ]
        text = json.dumps([shapes, self.outputs])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def weights(self, fault: Fault) -> dict[str, float]:
        """Weigh a fault of this run under other measures of the space.

        A trial drawn uniformly over steps and elements, counted with these weights, estimates the
        rate under a measure by output elements (``elements``), by MACs (``macs``) or by time
        (``time``). Their mean is 1.

        Raises
        ------
        ValueError
            If the run has no such site.
        """
        step, execution = self.space.find(fault)
        drawn, seconds = self._drawn
        elements = step.elements * len(drawn)
        return {
            "elements": elements / self.space.elements,
            "macs": execution.macs * elements / self.macs.projections,
            "time": drawn[step.call, step.step] / seconds * len(drawn) if seconds else 1.0,
        }

    @property
    def largest_weights(self) -> dict[str, float]:
        """The largest of :attr:`weights` that any fault of this run has, under each measure."""
        drawn, seconds = self._drawn
        steps = [step for step in self.space.steps if step.elements]
        work = max(
            step.elements * max(each.macs for each in step.executions if each.elements)
            for step in steps
        )
        return {
            "elements": max(step.elements for step in steps) * len(drawn) / self.space.elements,
            "macs": work * len(drawn) / self.macs.projections,
            "time": max(drawn.values()) / seconds * len(drawn) if seconds else 1.0,
        }

    @cached_property
    def _drawn(self) -> tuple[dict[tuple[int, int], float], float]:
        """The time spent in each step that faults are drawn from, by its call; and in all."""
        spent = {
            (step.call, step.step): seconds
            for step, seconds in zip(self.space.steps, self.seconds, strict=True)
            if step.elements
        }
        return spent, sum(spent.values())


@dataclass
class _RunningStep:
    executions: list[Execution] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0


class Recorder(Listener):
    """Records a model's calls from its making until :meth:`stop`.

    Parameters
    ----------
    model:
        The model; it must not be recorded twice at a time.
    reader:
        Reads the values of everything that a fault can hit, from here on; None: nothing does.

    Raises
    ------
    ValueError
        If the model's layers are not known.
    """

    def __init__(self, model: nn.Module, reader: ExponentReader | None = None) -> None:
        found = projections(model)
        self._model = model
        self._reader = reader
        if reader is not None:
            reader.start()
        self._identity: Identity | None = None
        self._calls: list[Call] = []
        self._said: dict[Call, list[Any]] = {}
        self._steps: dict[tuple[Call, int], _RunningStep] = {}
        self._macs = Macs()
        self._ranges: Ranges = ()
        self._started = 0.0
        self._attention = _attention_macs_per_context_token(model)
        self._on_cuda = next(model.parameters()).is_cuda
        self._clock = Clock.listen(model, self)
        # Calls are numbered as the injector numbers them: one that computed nothing counts too.
        running = self._clock.innermost
        self._first_call = self._clock.calls if running is None else running.index
        self._taps: list[Tap] = attach(
            model, found, Order.OBSERVE, self._observe, self._observe_vectors
        )
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            self._taps.append(tap(head, Order.OBSERVE, self._observe_head(head)))

    def stop(self) -> None:
        """Stop recording, and leave the model as it was. Safe to call again."""
        for each in self._taps:
            each.remove()
        if self._taps:
            self._clock.dismiss(self._model, self)
        self._taps = []

    def golden(self) -> Golden:
        """Return what was recorded."""
        steps = [
            Step(call.index - self._first_call, step, tuple(running.executions))
            for (call, step), running in self._steps.items()
        ]
        return Golden(
            space=Space(tuple(steps)),
            outputs=tuple(tuple(self._said[call]) for call in self._calls),
            seconds=tuple(running.seconds for running in self._steps.values()),
            macs=self._macs,
            model=self._identity or identify(self._model),
        )

    def call_started(self, call: Call) -> None:
        if self._identity is None:
            # Not before: fixtures of one test may change the weights of a model that others share.
            self._identity = identify(self._model)

    def forward_started(self, forward: Forward) -> None:
        if forward.call not in self._said:
            self._calls.append(forward.call)
            self._said[forward.call] = []
        self._steps.setdefault((forward.call, forward.step), _RunningStep())
        self._ranges = _real_ranges(forward)
        for _, start, stop in self._ranges:
            contexts = (stop - start) * (2 * forward.cached + start + stop + 1) // 2
            self._macs.attention += self._attention * contexts
        self._started = self._now()

    def forward_finished(self, forward: Forward, output: Any) -> None:
        running = self._steps[forward.call, forward.step]
        running.seconds += self._now() - self._started
        running.tokens += forward.tokens

    def call_finished(self, call: Call) -> None:
        said = getattr(call.result, "sequences", call.result)
        if call in self._said and isinstance(said, Tensor):
            self._said[call].extend(said.tolist())

    def _observe(self, projection: Projection) -> Callable[[Tensor], Tensor]:
        @torch.compiler.disable
        def observe(output: Tensor) -> Tensor:
            if self._clock.is_recomputing:
                return output
            forward = self._clock.forward
            view = by_row(output, forward)
            tokens = view.shape[1]
            skipped = forward.tokens - tokens
            running = self._steps[forward.call, forward.step]
            first = running.positions.get(projection.name, 0)
            running.positions[projection.name] = first + tokens
            execution = Execution(
                layer=projection.name,
                columns=projection.out_features,
                macs=projection.in_features,
                encoding=format_of(output.dtype).name,
                first_position=first,
                tokens=tokens,
                real=tuple(
                    (row, max(start - skipped, 0), stop - skipped)
                    for row, start, stop in self._ranges
                    if stop > skipped
                ),
            )
            running.executions.append(execution)
            self._macs.projections += execution.elements * execution.macs
            if self._reader is not None and execution.real:
                parts = [view[row, start:stop] for row, start, stop in execution.real]
                self._read(execution, torch.cat(parts))
            return output

        return observe

    def _observe_vectors(self, group: list[Projection]) -> Callable[[Vectors], Tensor]:
        def observe(vectors: Vectors) -> Tensor:
            if self._clock.is_recomputing:
                return vectors.values
            forward = self._clock.forward
            running = self._steps[forward.call, forward.step]
            tokens = vectors.count // forward.rows
            skipped = forward.tokens - tokens
            numbers = vectors.tokens.tolist()
            experts = [None] * len(numbers)
            if vectors.experts is not None:
                experts = vectors.experts.tolist()
            for projection in group:
                # A token's first vector, where it has several: it is the one that a fault strikes.
                held: dict[int, int] = {}
                for at, (number, expert) in enumerate(zip(numbers, experts, strict=True)):
                    if expert == projection.expert:
                        held.setdefault(number, at)
                real = _ranges_of(held, self._ranges, tokens, skipped)
                if real:
                    execution = Execution(
                        layer=projection.name,
                        columns=projection.out_features,
                        macs=projection.in_features,
                        encoding=format_of(vectors.values.dtype).name,
                        first_position=running.tokens,
                        tokens=tokens,
                        real=real,
                    )
                    running.executions.append(execution)
                    self._macs.projections += execution.elements * execution.macs
                    if self._reader is not None:
                        chosen = [
                            held[row * tokens + token]
                            for row, start, stop in real
                            for token in range(start, stop)
                        ]
                        places = torch.tensor(chosen, device=vectors.values.device)
                        self._read(execution, vectors.values[places])
            return vectors.values

        return observe

    def _read(self, execution: Execution, values: Tensor) -> None:
        """Show the reader the values of an execution's real tokens, in their order."""
        assert self._reader is not None
        forward = self._clock.forward
        call = forward.call.index - self._first_call
        self._reader.read(call, forward.step, execution, values)

    def _observe_head(self, head: nn.Module) -> Callable[[Tensor], Tensor]:
        features = int(getattr(head, "in_features", 0))

        @torch.compiler.disable
        def observe(output: Tensor) -> Tensor:
            if self._clock.is_recomputing:
                return output
            self._macs.lm_head += output.numel() * features
            self._hear(output)
            return output

        return observe

    def _hear(self, logits: Tensor) -> None:
        """Note what a loop by hand is told, also where it asks the head itself."""
        forward = self._clock.current
        call = forward.call if forward is not None else next(reversed(self._calls), None)
        if call is not None and call.kind != "generate":
            last = logits if logits.dim() == 2 else logits[:, -1]
            self._said[call].append(last.argmax(-1).tolist())

    def _now(self) -> float:
        if self._on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _real_ranges(forward: Forward) -> Ranges:
    ended = forward.call.ended
    over = ended.tolist() if ended is not None and ended.shape[0] == forward.rows else None
    mask = None if forward.real is None else forward.real.tolist()
    ranges: list[tuple[int, int, int]] = []
    for row in range(forward.rows):
        if over is not None and over[row]:
            continue
        if mask is None:
            ranges.append((row, 0, forward.tokens))
            continue
        start = None
        for token, real in enumerate([*mask[row], False]):
            if real and start is None:
                start = token
            elif not real and start is not None:
                ranges.append((row, start, token))
                start = None
    return tuple(ranges)


def _ranges_of(held: Container[int], real: Ranges, tokens: int, skipped: int) -> Ranges:
    """Join those tokens of `real` ranges that are in `held`, numbered row after row."""
    ranges: list[tuple[int, int, int]] = []
    for row, start, stop in real:
        for token in range(max(start - skipped, 0), stop - skipped):
            if row * tokens + token not in held:
                continue
            if ranges and ranges[-1][0] == row and ranges[-1][2] == token:
                ranges[-1] = (row, ranges[-1][1], token + 1)
            else:
                ranges.append((row, token, token + 1))
    return tuple(ranges)


def _attention_macs_per_context_token(model: nn.Module) -> int:
    """MACs of all attention layers for one query and one key: its score and its weighted value."""
    config = getattr(model, "config", None)
    get = getattr(config, "get_text_config", None)
    config = get() if get is not None else config
    # Some models have heads of several sizes, and a configuration for each layer.
    layers = getattr(config, "per_layer_config", None)
    if layers is None:
        layers = [config] * (getattr(config, "num_hidden_layers", 0) or 0)
    return sum(2 * _attention_width(layer) for layer in layers)


def _attention_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 0) or 0
    hidden = getattr(config, "hidden_size", 0) or 0
    return heads * (getattr(config, "head_dim", None) or (hidden // heads if heads else 0))
