"""What a listener hears, on record."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ft2.forward import Call, Clock, Forward, Listener

__all__ = ["Heard", "listening"]


class Heard(Listener):
    """Notes everything that a clock announces."""

    def __init__(self) -> None:
        self.started: list[Call] = []
        self.finished: list[Call] = []
        self.forwards: list[Forward] = []
        self.errors: list[Exception] = []
        self.ended: list[list[bool] | None] = []

    @property
    def steps(self) -> list[tuple[int, int, int]]:
        """(call, step, tokens) of each forward."""
        return [(each.call.index, each.step, each.tokens) for each in self.forwards]

    @property
    def real(self) -> list[list[list[bool]] | None]:
        """Which tokens of each forward are real."""
        return [None if each.real is None else each.real.tolist() for each in self.forwards]

    def call_started(self, call: Call) -> None:
        self.started.append(call)

    def call_finished(self, call: Call) -> None:
        self.finished.append(call)

    def forward_started(self, forward: Forward) -> None:
        ended = forward.call.ended
        self.ended.append(None if ended is None else ended.tolist())

    def forward_finished(self, forward: Forward, output: Any) -> None:
        self.forwards.append(forward)

    def call_failed(self, error: Exception) -> None:
        self.errors.append(error)


@contextmanager
def listening(model: nn.Module) -> Generator[Heard, None, None]:
    """Listen to `model` inside the context."""
    heard = Heard()
    clock = Clock.listen(model, heard)
    try:
        yield heard
    finally:
        clock.dismiss(model, heard)
