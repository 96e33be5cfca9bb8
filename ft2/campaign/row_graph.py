"""A batch's forward as a CUDA graph: recorded once, then launched as a whole.

With one token a row a forward is a thousand launches, and a GPU is done with most of them before
the host has said the next. Here all that differs from one forward to the next is data at fixed
addresses: tokens, positions, lengths, which columns of its prefix a row sees, its bounds, and its
fault. Whoever listens to the model's clock hears of a replayed forward as of any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ft2.campaign.row_cache import Attending, RowCache
from ft2.campaign.row_faults import RowFaults, strike_for
from ft2.forward import Clock

__all__ = ["RowGraph", "recorder_for", "row_graph"]

# Takes what computes a forward; returns what replays it, and what it computes.
Record = Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]]

# Their corrections are operations on the device alone, on what stays where it is.
_POLICIES = frozenset(("none", "ft2"))


class NotRecordedError(Exception):
    """A forward could not be recorded; the model and the device are as before."""


def recorder_for(device: torch.device) -> Record | None:
    """Return what records forwards on a device; None if there is nothing."""
    return functools.partial(_record, device) if device.type == "cuda" else None


class RowGraph:
    """Computes a batch's forwards, from the second on by replaying what was recorded.

    Parameters
    ----------
    model, clock:
        The model, and what announces its forwards.
    cache:
        The batch's keys and values.
    faults:
        Those that strike in the next forward.
    record:
        What records a forward.

    Attributes
    ----------
    faults:
        As given.
    problem:
        Why no forward could be recorded; None if one was, or may be.
    replayed:
        How many forwards were replayed.
    """

    def __init__(
        self, model: Any, clock: Clock, cache: RowCache, faults: RowFaults, record: Record
    ) -> None:
        self.faults = faults
        self.problem: str | None = None
        self.replayed = 0
        self._model = model
        self._clock = clock
        self._attending = Attending(model, cache)
        self._record = record
        self._inputs: dict[str, Tensor] = {}
        self._has_computed = False
        self._replay: Callable[[], object] | None = None
        self._output: Any = None

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        """Compute a forward; what it returns is overwritten by the next.

        Parameters
        ----------
        inputs:
            Of the model; always the same tensors.
        """
        self._inputs = inputs
        return self._clock.run(self._model, self._run, (), inputs)

    def _run(self, model: Any, **inputs: Tensor) -> Any:
        # The first forward loads kernels, which none may do while it is recorded.
        if self._has_computed and self._replay is None and self.problem is None:
            try:
                self._replay, self._output = self._record(self._compute)
            except NotRecordedError as error:
                self.problem = str(error)
        if self._replay is None:
            self._has_computed = True
            return self._compute()
        self._replay()
        self.replayed += 1
        return self._output

    def _compute(self) -> Any:
        with self.faults.attached(), self._attending.on() as arguments:
            return self._model(**self._inputs, **arguments, use_cache=True)


def row_graph(model: Any, policy: str, clock: Clock, cache: RowCache) -> RowGraph | str:
    """Return what records a batch's forward, or a sentence that says why nothing does."""
    record, strike = recorder_for(cache.device), strike_for(cache.device)
    if record is None or strike is None:
        return f"nothing records forwards on {cache.device.type}"
    if cache.device.type == "cuda" and not cache.attends_in_kernels:
        return "without kernels for its attention, shapes change"
    if policy not in _POLICIES or clock.reviewer is not None:
        return f"what {policy} does to a forward is not known to be data alone"
    if any(each._forward_hooks or each._forward_pre_hooks for each in model.modules()):
        return "the model has hooks, which would not hear of a replayed forward"
    if {each.device for each in model.parameters()} != {cache.device}:
        return "the model is on several devices"
    faults = RowFaults(model, cache.rows, strike)
    return faults.unsuited or RowGraph(model, clock, cache, faults, record)


# Libraries keep memory for each stream that they have worked on.
@functools.cache
def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


def _record(device: torch.device, compute: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        try:
            # What other threads do meanwhile is none of its business.
            with torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local"):
                output = compute()
        except Exception as error:
            # A recording that fails is not ended properly: it keeps the stream and random numbers.
            torch.cuda.set_stream(stream)
            generator: Any = torch.cuda.default_generators[stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())
            raise NotRecordedError(f"{type(error).__name__}: {error}") from error
    return graph.replay, output
