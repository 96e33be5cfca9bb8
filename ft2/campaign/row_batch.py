"""A running batch: rows that join, are computed one token at a time, and leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ft2.campaign.likeliest import Ban, bans, likeliest
from ft2.campaign.prompt import Prompt
from ft2.campaign.returned import Returned
from ft2.campaign.row_cache import Attending, RowCache
from ft2.campaign.row_graph import RowGraph
from ft2.campaign.row_inputs import RowInputs
from ft2.faults import Fault, Injection, inject
from ft2.forward import Call
from ft2.protection import Policy

__all__ = ["Joining", "Row", "RowBatch", "Spent", "wants_hidden_states"]


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
    replayed:
        How many of the forwards were replayed from a recorded one.
    not_recorded:
        Why forwards of the last batch were not, as far as that is known.
    """

    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0
    forwards: int = 0
    row_steps: int = 0
    replayed: int = 0
    not_recorded: str | None = None

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
    graph:
        What records its forwards, or why nothing does.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        cache: RowCache,
        call: Call,
        spent: Spent,
        fixed: bool,
        graph: RowGraph | str,
    ) -> None:
        self.model = model
        self.policy = policy
        self.cache = cache
        self.call = call
        self.places: list[Row | None] = [None] * cache.rows
        self._attending = Attending(model, cache)
        self._inputs = RowInputs(cache.rows, cache.device)
        # The last prompt of each place; what may not be said, and in which rows, by these.
        self._prompts: list[Prompt | None] = [None] * cache.rows
        self._banned: list[Ban] | None = None
        self._banned_in = self._inputs.may_not_end
        self._struck: list[tuple[int, Row]] = []
        self._returning: dict[int, Row] = {}
        self._graph = None if isinstance(graph, str) else graph
        self._spent = spent
        self._fixed = fixed
        # What is done while the device computes the next forward.
        self._left_to_do: list[Callable[[], None]] = []
        spent.not_recorded = graph if isinstance(graph, str) else None
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
            place, row = each.place, each.row
            self.places[place] = row
            if self._prompts[place] is not row.prompt:
                self._prompts[place] = row.prompt
                self._banned = None
            if row.fault is not None:
                self._struck.append((place, row))
            if row.returned is not None:
                self._returning[place] = row
        self._inputs.join([(each.place, each.row.prompt, each.row.said) for each in joining])

    @property
    def used(self) -> list[tuple[int, Row]]:
        """The rows in use, with their places."""
        return [(place, row) for place, row in enumerate(self.places) if row is not None]

    @property
    def is_empty(self) -> bool:
        """Whether no row is in use."""
        return not any(self.places)

    def advance(self) -> list[int]:
        """Compute a token of each row; return the places of those whose answer it completes.

        The rows themselves are told a little later, by :meth:`finish` at the latest.
        """
        started = time.perf_counter()
        self.call.tokens_generated += 1
        width = self._inputs.send()
        self.cache.begin(self._inputs.lengths, self.cache.columns if self._fixed else width)
        struck, self._struck = self._struck, []
        output, before = self._forward(struck)
        # The device is busy now.
        self.finish()
        used = self.used
        logits: Tensor = output.logits
        for place, row in self._returning.items():
            assert row.returned is not None
            row.returned.add(place, row.prompt, logits[:, -1], output.hidden_states or ())
        tokens = likeliest(logits, self._bans(used))
        # This waits for the device.
        told = tokens.cpu() if before is None else torch.stack([tokens, before]).cpu()
        if before is not None:
            self._land(struck, told[1])
            told = told[0]
        over = self._inputs.go_on(told)
        said: list[int] = told.tolist()
        ended = [place for place in over if self._ends(place, said[place])]
        self._left_to_do.append(partial(_tell, used, said))
        self._spent.forwards += 1
        self._spent.row_steps += len(used)
        self._spent.decode += time.perf_counter() - started
        return ended

    def _ends(self, place: int, token: int) -> bool:
        row = self.places[place]
        assert row is not None
        return row.prompt.is_over([*row.said, token])

    def _bans(self, used: Sequence[tuple[int, Row]]) -> list[Ban]:
        """Return what rows may not say; it mostly stays from one step to the next."""
        early = self._inputs.may_not_end
        if self._banned is None or not torch.equal(early, self._banned_in):
            asked = [(place, row.prompt, len(row.said)) for place, row in used]
            self._banned, self._banned_in = bans(asked, self.cache.device), early
        return self._banned

    def finish(self) -> None:
        """Tell rows what they said, and injections what they struck."""
        while self._left_to_do:
            self._left_to_do.pop()()

    def leave(self, places: Sequence[int]) -> list[tuple[Row, int]]:
        """Take rows out; return each with how many values were corrected in its run."""
        counts = self.policy.corrected(self.call) if places else []
        left = []
        for place in places:
            row = self.places[place]
            assert row is not None
            self.places[place] = None
            self._returning.pop(place, None)
            if row.returned is not None:
                layers = range(len(self.cache.keys))
                row.returned.cache = [self.cache.alone(layer, place) for layer in layers]
            left.append((row, (counts[place] if counts else 0) + row.owed))
        self._inputs.leave(places)
        return left

    def _forward(self, struck: Sequence[tuple[int, Row]]) -> tuple[Any, Tensor | None]:
        """Compute a forward; return its output and, if faults are data in it, what was there."""
        inputs = {
            "input_ids": self._inputs.tokens[:, None],
            "position_ids": self._inputs.positions[:, None],
        }
        shows = wants_hidden_states(row.prompt for row in self._returning.values())
        faults = [(place, row.fault) for place, row in struck if row.fault is not None]
        graph = self._graph
        if graph is not None and not shows and all(graph.faults.takes(each) for _, each in faults):
            graph.faults.send(faults)
            replayed = graph.replayed
            output = graph.forward(inputs)
            self._spent.replayed += graph.replayed - replayed
            self._spent.not_recorded = graph.problem
            return output, graph.faults.before if faults else None
        step = self.call.tokens_generated
        here = [replace(fault, call=0, step=step, row=place, position=0) for place, fault in faults]
        with ExitStack() as attached:
            injections = attached.enter_context(inject(self.model, here)) if here else []
            arguments = attached.enter_context(self._attending.on())
            output = self.model(**inputs, **shows, **arguments, use_cache=True)
        for (_, row), injection in zip(struck, injections, strict=True):
            row.fault, row.injection = None, injection
        return output, None

    def _land(self, struck: Sequence[tuple[int, Row]], before: Tensor) -> None:
        """Give rows their injections, which hear a little later what was struck."""
        assert self._graph is not None
        injections = []
        for place, row in struck:
            assert row.fault is not None
            row.injection = Injection(row.fault)
            row.fault = None
            injections.append((place, row.injection))
        self._left_to_do.append(partial(self._graph.faults.finish, injections, before.tolist()))


def _tell(used: Sequence[tuple[int, Row]], said: Sequence[int]) -> None:
    for place, row in used:
        row.said.append(said[place])


def wants_hidden_states(prompts: Iterable[Prompt]) -> dict[str, Any]:
    """Return what a forward is told so that it shows all that these prompts return."""
    if any("hidden_states" in prompt.returns for prompt in prompts):
        return {"output_hidden_states": True}
    return {}
