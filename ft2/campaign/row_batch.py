"""A running batch: rows that join, are computed one token at a time, and leave."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ft2.campaign.prompt import Prompt
from ft2.campaign.returned import Returned
from ft2.campaign.row_cache import Attending, RowCache
from ft2.faults import Fault, Injection, inject
from ft2.forward import Call
from ft2.protection import Policy

__all__ = ["Joining", "Row", "RowBatch", "Spent", "likeliest", "wants_hidden_states"]


@dataclass
class Spent:
    """Where an engine's time went, in seconds, and what it computed.

    Attributes
    ----------
    prefill, decode:
        In the model, first tokens and later ones, until they were known.
    total:
        All of it; the rest is bookkeeping.
    forwards, row_steps:
        How many decode forwards ran, and how many tokens of golden runs and trials they computed.
    """

    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0
    forwards: int = 0
    row_steps: int = 0

    @property
    def bookkeeping(self) -> float:
        """What was spent outside the model."""
        return self.total - self.prefill - self.decode


@dataclass(eq=False)
class Row:
    """A row in use.

    Attributes
    ----------
    number:
        Which golden run, or which trial, it computes.
    said:
        The new tokens so far.
    own:
        How many tokens of its own the cache holds.
    fault:
        What is to strike in its next forward.
    owed:
        Added to what the batch counts as corrected in this row, to have all of the run's.
    returned:
        What it is to return beside its tokens; None if that is nothing.
    """

    number: int
    prompt: Prompt
    said: list[int]
    own: int = 0
    fault: Fault | None = None
    injection: Injection | None = None
    owed: int = 0
    returned: Returned | None = None

    @property
    def is_over(self) -> bool:
        """Whether its answer is complete."""
        return self.prompt.is_over(self.said)


@dataclass(frozen=True, eq=False)
class Joining:
    """A row that is to join a batch.

    Attributes
    ----------
    place:
        Where in the batch.
    start, stop:
        The columns of its prefix that it reads.
    request:
        Whose bounds and counts it brings, a request of the call that it comes from.
    """

    place: int
    row: Row
    start: int
    stop: int
    request: int


class RowBatch:
    """Rows that are computed together, one token each in a forward.

    Parameters
    ----------
    model, policy:
        The model, and what is attached to it.
    cache:
        The rows' keys and values.
    call:
        The call that the forwards belong to; its steps count them, from 1.
    fixed:
        Whether the shapes of a forward may not depend on the rows' progress.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        cache: RowCache,
        call: Call,
        spent: Spent,
        fixed: bool,
    ) -> None:
        self.model = model
        self.policy = policy
        self.cache = cache
        self.call = call
        self.places: list[Row | None] = [None] * cache.rows
        self._attending = Attending(model, cache)
        self._spent = spent
        self._fixed = fixed
        call.tokens_are_counted = True
        call.tokens_generated = 0

    def join(self, joining: Sequence[Joining], requests: object) -> None:
        """Let rows join, with the bounds and counts of `requests`, as the policy returned them."""
        if not joining:
            return
        places, starts, stops, theirs = torch.tensor(
            [[each.place, each.start, each.stop, each.request] for each in joining]
        ).T.to(self.cache.device)
        self.cache.join(places, starts, stops)
        self.policy.join(self.call, self.cache.rows, places, requests, theirs)
        for each in joining:
            self.places[each.place] = each.row

    @property
    def used(self) -> list[tuple[int, Row]]:
        """The rows in use, with their places."""
        return [(place, row) for place, row in enumerate(self.places) if row is not None]

    def advance(self) -> list[int]:
        """Compute a token of each row; return the places of those whose answer it completes."""
        started = time.perf_counter()
        used = self.used
        self.call.tokens_generated += 1
        width = max(row.own for _, row in used) + 1
        # A row out of use writes where no row has been: what it was may still be read.
        fed = [(0, 0, width - 1)] * len(self.places)
        for place, row in used:
            position = len(row.prompt.tokens) + len(row.said) - 1
            fed[place] = (row.said[-1], position, row.own)
        tokens, positions, lengths = torch.tensor(fed).T.to(self.cache.device)
        self.cache.begin(lengths, self.cache.columns if self._fixed else width)
        struck = [(place, row) for place, row in used if row.fault is not None]
        inputs = {"input_ids": tokens[:, None], "position_ids": positions[:, None]}
        returning = [(place, row) for place, row in used if row.returned is not None]
        shows = wants_hidden_states(row.prompt for _, row in returning)
        output = self._forward(struck, **inputs, **shows)
        logits: Tensor = output.logits
        for place, row in returning:
            assert row.returned is not None
            row.returned.add(place, row.prompt, logits[:, -1], output.hidden_states or ())
        said = likeliest(logits, [(place, row.prompt, len(row.said)) for place, row in used])
        ended = []
        for place, row in used:
            row.said.append(said[place])
            row.own += 1
            if row.is_over:
                ended.append(place)
        self._spent.forwards += 1
        self._spent.row_steps += len(used)
        self._spent.decode += time.perf_counter() - started
        return ended

    def leave(self, places: Sequence[int]) -> list[tuple[Row, int]]:
        """Take rows out; return each with how many values were corrected in its run."""
        counts = self.policy.corrected(self.call) if places else []
        left = []
        for place in places:
            row = self.places[place]
            assert row is not None
            self.places[place] = None
            if row.returned is not None:
                layers = range(len(self.cache.keys))
                row.returned.cache = [self.cache.alone(layer, place) for layer in layers]
            left.append((row, (counts[place] if counts else 0) + row.owed))
        return left

    def _forward(self, struck: Sequence[tuple[int, Row]], **inputs: Any) -> Any:
        step = self.call.tokens_generated
        faults = [
            replace(row.fault, call=0, step=step, row=place, position=0)
            for place, row in struck
            if row.fault is not None
        ]
        with ExitStack() as attached:
            injections = attached.enter_context(inject(self.model, faults)) if faults else []
            arguments = attached.enter_context(self._attending.on())
            output = self.model(**inputs, **arguments, use_cache=True)
        for (_, row), injection in zip(struck, injections, strict=True):
            row.fault, row.injection = None, injection
        return output


def wants_hidden_states(prompts: Iterable[Prompt]) -> dict[str, Any]:
    """Return what a forward is told so that it shows all that these prompts return."""
    if any("hidden_states" in prompt.returns for prompt in prompts):
        return {"output_hidden_states": True}
    return {}


def likeliest(logits: Tensor, rows: Sequence[tuple[int, Prompt, int]]) -> list[int]:
    """Return the next token of every row of a batch; this waits for the device.

    Parameters
    ----------
    logits:
        (rows, tokens, vocabulary).
    rows:
        Of each row in use its place, its prompt, and how many tokens it has said.
    """
    scores = logits[:, -1].to(torch.float32)
    early: dict[tuple[int, ...], list[int]] = {}
    for place, prompt, said in rows:
        if said < prompt.least:
            early.setdefault(prompt.ends, []).append(place)
    for ends, places in early.items():
        at = torch.tensor(places, device=scores.device)[:, None]
        scores[at, torch.tensor(ends, device=scores.device)] = -torch.inf
    tokens: list[int] = scores.argmax(-1).tolist()
    return tokens
