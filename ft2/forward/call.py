"""The words for what a model is computing: calls, steps, and the rows and tokens of a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["Call", "Forward", "Listener"]

Kind = Literal["generate", "request", "loop"]


@dataclass(eq=False)
class Call:
    """One request, or a batch of requests that run together: prompts and what is generated.

    Attributes
    ----------
    index:
        Counts the calls of a model since something began to listen to it.
    kind:
        ``generate``: inside the ``generate`` of transformers. ``request``: inside
        :func:`ft2.request`, or a ``generate`` of the model's own. ``loop``: neither; forwards that
        share a cache are one call.
    step:
        The step being computed, -1 before the first forward. Step 0 is the first token's.
    rows_per_request:
        How many rows of the batch belong to one prompt: the number of beams.
    is_undisturbed:
        Whether nothing but transformers runs between its forwards, which leaves the model as it is.
    cached:
        How many tokens the cache holds after the last forward that began.
    ended:
        bool (rows,), the rows that have ended, or None while none is known to have.
    """

    index: int
    kind: Kind
    step: int = -1
    tokens_generated: int = 0
    tokens_are_counted: bool = False
    is_undisturbed: bool = False
    rows_per_request: int = 1
    cached: int = 0
    ended: Tensor | None = None
    attention_mask: Tensor | None = None
    result: Any = None


@dataclass(eq=False)
class Forward:
    """One forward pass through the model, as it runs.

    Attributes
    ----------
    call, step:
        What it belongs to.
    rows, tokens:
        Shape of the input, padding included.
    cached:
        Tokens that the cache held before; where steps repeat, counted on from the one before.
    real:
        bool (rows, tokens), False at padding; None when nothing is padding.
    inputs:
        What the model is given, by name; empty in steps that repeat the one before
        (:meth:`Listener.forward_repeats`).
    cache:
        The cache among these, or None.
    """

    call: Call
    step: int
    rows: int
    tokens: int
    cached: int
    real: Tensor | None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    cache: Any = None

    @property
    def is_first_token(self) -> bool:
        """Whether no token has been generated yet."""
        return self.step == 0


class Listener:
    """What can be told about a model's calls; each method does nothing unless overridden."""

    def call_started(self, call: Call) -> None:
        """A new request begins; its rows are not known before its first forward."""

    def call_finished(self, call: Call) -> None:
        """A ``generate`` or a :func:`ft2.request` ends; ``call.result`` is what it returns."""

    def forward_started(self, forward: Forward) -> None:
        """The model is about to compute `forward`."""

    def forward_repeats(self, forward: Forward) -> Callable[[], None] | None:
        """Say what to do before further steps that are like `forward` in all but their number.

        They are of the same call, in the same mode, with the same cache or none, of one token for
        each of the same rows, of which more may have ended (`Call.ended`). What is returned is
        called in place of :meth:`forward_started` and :meth:`forward_finished`, until a forward is
        another one. None, which this returns, has each announced in full.
        """
        return None

    def forward_finished(self, forward: Forward, output: Any) -> None:
        """The model has computed `forward` and returns `output`."""

    def call_failed(self, error: Exception) -> None:
        """`error` leaves a call of the model."""
