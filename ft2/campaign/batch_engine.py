"""Compute many trials as rows of one batch, from the golden runs' keys and values.

Before its fault a trial is its golden run. So the golden runs are decoded once, and what a trial
needs to go on from any of their steps is kept. Then each trial joins a running batch at its fault's
step, with a row of its own: fault, bounds and corrections are that row's alone. The rows of a batch
are at different steps, and one that ends makes room for the next trial.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from heapq import heappop, heappush
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ft2.campaign.likeliest import bans, likeliest
from ft2.campaign.prompt import Continuation, GoldenRow, Prompt
from ft2.campaign.returned import Returned
from ft2.campaign.row_batch import (
    Joining,
    Row,
    RowBatch,
    Spent,
    wants_hidden_states,
)
from ft2.campaign.row_cache import Prefixes, RowCache, chooses_attention
from ft2.campaign.row_graph import RowGraph, row_graph
from ft2.faults import Fault, Injection, inject
from ft2.forward import Clock, Listener, cache_argument
from ft2.protection import Policy, Profile, protect

__all__ = ["BatchEngine", "CannotBatchError"]

# Trials of the first token read a prompt of their own; they have one row in so many.
_ONE_PRIVATE_IN = 8
_LEAST_GAIN = 2


class CannotBatchError(ValueError):
    """A model, or what it is asked, cannot be computed in rows; the message says why."""


@dataclass(frozen=True, eq=False)
class _FirstTokens:
    """What one prefill computed.

    Attributes
    ----------
    numbers:
        Of each row.
    width:
        Tokens of each prompt.
    said, counts:
        Each row's token, and how many of its values were corrected.
    last, hidden_states:
        The logits that the tokens were taken from, and, if they are asked for, each layer's states.
    requests:
        What the policy knows of the rows.
    """

    numbers: list[int]
    width: int
    said: list[int]
    counts: list[int]
    prefixes: Prefixes
    last: Tensor
    hidden_states: Sequence[Tensor]
    requests: object
    injections: list[Injection]

    def put(
        self, there: Prefixes, places: list[int], stop: int, rows: list[int] | None = None
    ) -> None:
        """Copy the prompts of `rows`, all unless given, to places `there` that end at `stop`."""
        device = there.keys[0].device
        theirs = torch.tensor(rows or range(len(places)), device=device)
        there.put(torch.tensor(places, device=device), self.prefixes, theirs, stop - self.width)


class BatchEngine(Listener):
    """Computes the golden runs of some prompts, and trials that depart from them.

    Parameters
    ----------
    model:
        A causal language model in eval mode, on one device. Faults and policy are attached to it
        during the calls only.
    policy, scale, bounds, correction:
        As in :func:`ft2.protect`.
    rows:
        Rows of a batch: at most so many, or exactly so many if `fixed`.
    fixed:
        Compute every forward in a shape that depends on the prompt and on `rows` alone, one prompt
        at a time: in fp16 and bf16 a row's arithmetic depends on its batch's shape.
    replays:
        Whether a forward is recorded and replayed, where that can be.

    Attributes
    ----------
    spent:
        Where the time went.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        policy: str = "none",
        scale: float | None = None,
        rows: int = 256,
        fixed: bool = False,
        bounds: Profile | str | None = None,
        correction: Literal["clip", "zero"] | None = None,
        replays: bool = True,
    ) -> None:
        if fixed and (len(prompts) > 1 or rows < _ONE_PRIVATE_IN):
            raise ValueError(
                f"a batch of fixed shape holds one prompt, and at least {_ONE_PRIVATE_IN} rows"
            )
        self.spent = Spent()
        self._model = model
        self._prompts = list(prompts)
        self._policy_name, self._replays = policy, replays
        self._protect = partial(protect, model, policy, scale, bounds=bounds, correction=correction)
        self._rows, self._fixed = rows, fixed
        self._device = model.get_input_embeddings().weight.device
        self._widest = max(len(prompt.tokens) for prompt in prompts)
        self._own = max(prompt.most for prompt in prompts)
        self._clock: Clock
        self._policy: Policy
        self._prefixes: Prefixes
        self._golden: dict[int, GoldenRow] = {}
        # Where the golden runs' bounds and counts are found again: those of a call, from a request.
        self._requests: object = None
        self._request_of_first = 0
        self._counts: list[int] = []

    @property
    def golden(self) -> list[GoldenRow]:
        """The golden runs, in the order of the prompts."""
        return [self._golden[number] for number in range(len(self._golden))]

    def prepare(self) -> list[GoldenRow]:
        """Decode the golden runs, and keep what trials need of them.

        Raises
        ------
        CannotBatchError
            If the model's cache or attention is of a kind that rows cannot share.
        """
        _check_model(self._model, self._widest + self._own)
        count = len(self._prompts)
        with self._attached():
            first = self._prefill(list(enumerate(self._prompts)), [])
            self._prefixes = first[0].prefixes.blank(count, self._widest + self._own)
            rows: dict[int, Row] = {}
            for each in first:
                each.put(self._prefixes, each.numbers, self._widest)
                for at, number in enumerate(each.numbers):
                    rows[number] = Row(number, self._prompts[number], [each.said[at]])
                    golden = GoldenRow(self._prompts[number], rows[number].said, [each.counts[at]])
                    self._golden[number] = golden
            shared = self._shared_rows if self._fixed else 0
            private = self._private_rows if self._fixed else count
            with self._batch([0], shared, private) as batch:
                for each in first:
                    each.put(batch.cache.groups[-1], each.numbers, self._widest)
                    batch.join(
                        [
                            Joining(
                                shared + number,
                                rows[number],
                                self._widest - each.width,
                                self._widest,
                                at,
                            )
                            for at, number in enumerate(each.numbers)
                            if not rows[number].is_over
                        ],
                        each.requests,
                    )
                self._decode_golden(batch)
                self._requests = self._policy.requests_of(batch.call)
                self._counts = self._policy.corrected(batch.call) or [0] * batch.cache.rows
                self._request_of_first = shared
                self._prefixes.extend(self._widest, batch.cache, slice(shared, shared + count))
        return self.golden

    def run(
        self,
        trials: Sequence[tuple[int, Fault]],
        done: Callable[[], object] = lambda: None,
    ) -> list[Continuation | None]:
        """Compute trials.

        Parameters
        ----------
        trials:
            Of each the number of its prompt, and its fault, whose position counts from the prompt's
            first token; its call and row do not matter.
        done:
            Called as each ends.

        Returns
        -------
        list
            What became of each; None where its golden run ends before the fault's step.

        Raises
        ------
        CannotBatchError
            If a fault strikes a layer that a forward runs several times.
        """
        found: list[Continuation | None] = [None] * len(trials)

        def end(row: Row, corrected: int) -> None:
            assert row.injection is not None
            found[row.number] = Continuation(row.said, row.injection, corrected, row.returned)
            done()

        by_prompt: dict[int, list[int]] = {}
        for number, (prompt, fault) in enumerate(trials):
            if fault.position >= (1 if fault.step else len(self._prompts[prompt].tokens)):
                raise CannotBatchError(f"{fault.layer} runs several times in a forward")
            if fault.step < len(self._golden[prompt].said):
                by_prompt.setdefault(prompt, []).append(number)
        prompts = sorted(by_prompt)
        together = max(self._rows // _LEAST_GAIN, 1)
        with self._attached():
            for start in range(0, len(prompts), together):
                chosen = prompts[start : start + together]
                first = [n for p in chosen for n in by_prompt[p] if trials[n][1].step == 0]
                later = {p: [n for n in by_prompt[p] if trials[n][1].step > 0] for p in chosen}
                self._run_pass(trials, first, later, end)
        return found

    def _run_pass(
        self,
        trials: Sequence[tuple[int, Fault]],
        first: list[int],
        later: dict[int, list[int]],
        end: Callable[[Row, int], None],
    ) -> None:
        """Compute trials of the first token and, by prompt, of the later ones."""
        prompts = [prompt for prompt, numbers in later.items() if numbers]
        if self._fixed:
            shared, private = self._shared_rows, self._private_rows
            prompts = [0]
        else:
            private = min(len(first), self._private_rows if prompts else self._rows)
            most = max((len(later[prompt]) for prompt in prompts), default=0)
            room = (self._rows - private) // max(len(prompts), 1)
            shared = min(most, max(room, 1))
        waiting_first = deque(first)
        # The longest first, so that all end together.
        waiting = {
            prompt: deque(sorted(later[prompt], key=lambda number: trials[number][1].step))
            for prompt in prompts
        }
        first_private = shared * len(prompts)
        # Where rows may join, by group; the private ones are those of the last.
        free = [list(range(at * shared, (at + 1) * shared)) for at in range(len(prompts))]
        free_private = list(range(first_private, first_private + private))
        with self._batch(prompts, shared, private) as batch:
            while True:
                joining = []
                for prompt, places in zip(prompts, free, strict=True):
                    while places and waiting[prompt]:
                        number = waiting[prompt].popleft()
                        joining.append(self._later(heappop(places), number, *trials[number]))
                batch.join(joining, self._requests)
                # A prefill is worth its launches only for several rows.
                if waiting_first and (2 * len(free_private) >= private or batch.is_empty):
                    count = min(len(free_private), len(waiting_first))
                    numbers = [waiting_first.popleft() for _ in range(count)]
                    self._join_first(batch, first_private, free_private, numbers, trials, end)
                if batch.is_empty:
                    if waiting_first:
                        continue
                    break
                ended = batch.advance()
                for place in ended:
                    is_private = place >= first_private
                    heappush(free_private if is_private else free[place // shared], place)
                for row, corrected in batch.leave(ended):
                    end(row, corrected)

    def _later(self, place: int, number: int, prompt: int, fault: Fault) -> Joining:
        golden = self._golden[prompt]
        step = fault.step
        request = self._request_of_first + prompt
        owed = golden.corrected[step - 1] - self._counts[request]
        row = Row(number, golden.prompt, golden.said[:step], fault=fault, owed=owed)
        row.returned = _returned(golden.prompt, step)
        start = self._widest - len(golden.prompt.tokens)
        return Joining(place, row, start, self._widest + step - 1, request)

    def _join_first(
        self,
        batch: RowBatch,
        start: int,
        free: list[int],
        numbers: Sequence[int],
        trials: Sequence[tuple[int, Fault]],
        end: Callable[[Row, int], None],
    ) -> None:
        """Compute the first token of trials, each with its fault; let them go on in free places."""
        asked = [(number, self._prompts[trials[number][0]]) for number in numbers]
        for each in self._prefill(asked, [trials[number][1] for number in numbers]):
            joining = []
            for at, number in enumerate(each.numbers):
                prompt = self._prompts[trials[number][0]]
                row = Row(number, prompt, [each.said[at]], injection=each.injections[at])
                row.returned = _returned(prompt, 0)
                if row.returned is not None:
                    row.returned.add(at, prompt, each.last, each.hidden_states)
                if row.is_over:
                    if row.returned is not None:
                        row.returned.cache = each.prefixes.copies(at)
                    end(row, each.counts[at])
                    continue
                begin = self._widest - each.width
                joining.append(Joining(heappop(free), row, begin, self._widest, at))
            if joining:
                prefixes = [joined.place - start for joined in joining]
                requests = [joined.request for joined in joining]
                each.put(batch.cache.groups[-1], prefixes, self._widest, requests)
                batch.join(joining, each.requests)

    def _decode_golden(self, batch: RowBatch) -> None:
        while batch.used:
            used = batch.used
            ended = batch.advance()
            counts = self._policy.corrected(batch.call)
            for place, row in used:
                self._golden[row.number].corrected.append(counts[place] if counts else 0)
            batch.leave(ended)

    def _prefill(
        self, asked: Sequence[tuple[int, Prompt]], faults: Sequence[Fault]
    ) -> list[_FirstTokens]:
        """Compute the first tokens of numbered prompts, each with its fault if there are any.

        Prompts of one length are computed together: padding is no part of what a trial computes.
        """
        by_length: dict[int, list[int]] = {}
        for at, (_, prompt) in enumerate(asked):
            by_length.setdefault(len(prompt.tokens), []).append(at)
        started = time.perf_counter()
        found = [
            self._prefill_alike([asked[at] for at in group], [faults[at] for at in group if faults])
            for group in by_length.values()
        ]
        self.spent.prefill += time.perf_counter() - started
        return found

    def _prefill_alike(
        self, asked: Sequence[tuple[int, Prompt]], faults: Sequence[Fault]
    ) -> _FirstTokens:
        prompts = [prompt for _, prompt in asked]
        if self._fixed:
            prompts += prompts[:1] * (self._private_rows - len(prompts))
        ids = torch.tensor([prompt.tokens for prompt in prompts], device=self._device)
        struck = [replace(fault, call=0, step=0, row=row) for row, fault in enumerate(faults)]
        cache = DynamicCache(config=self._model.config)
        with self._clock.calling("generate") as call, ExitStack() as attached:
            call.tokens_are_counted = True
            injections = attached.enter_context(inject(self._model, struck)) if struck else []
            output = self._model(
                input_ids=ids,
                position_ids=torch.arange(ids.shape[1], device=self._device).expand(ids.shape),
                use_cache=True,
                **{cache_argument(self._model): cache},
                **self._only_last_logits,
                **(wants_hidden_states(prompts) if struck else {}),
            )
        logits = output.logits
        last = logits[:, -1].clone()
        banned = bans([(row, each, 0) for row, each in enumerate(prompts)], self._device)
        layers: list[Any] = list(cache.layers)
        if any(each.keys is None for each in layers):
            raise CannotBatchError("the model leaves its cache empty")
        return _FirstTokens(
            numbers=[number for number, _ in asked],
            width=ids.shape[1],
            said=likeliest(logits, banned).tolist(),
            counts=self._policy.corrected(call) or [0] * len(prompts),
            last=last,
            hidden_states=output.hidden_states or (),
            prefixes=Prefixes([each.keys for each in layers], [each.values for each in layers], 1),
            requests=self._policy.requests_of(call),
            injections=injections,
        )

    @contextmanager
    def _attached(self) -> Generator[None, None, None]:
        started = time.perf_counter()
        with ExitStack() as attached:
            self._clock = Clock.listen(self._model, self)
            attached.callback(self._clock.dismiss, self._model, self)
            protection = attached.enter_context(self._protect())
            self._policy = protection.policy
            attached.enter_context(torch.no_grad())
            if self._device.type == "cuda":
                # Kernels of Triton are launched where the process is, not where their data are.
                attached.enter_context(torch.cuda.device(self._device))
            try:
                yield
            except NotImplementedError as error:
                raise CannotBatchError(str(error)) from error
        self.spent.total += time.perf_counter() - started

    @contextmanager
    def _batch(
        self, prompts: list[int], shared: int, private: int
    ) -> Generator[RowBatch, None, None]:
        """Make a batch: `shared` rows for each golden run, and `private` ones with own prompts."""
        groups = []
        if shared:
            groups.append(self._prefixes.take(prompts, shared))
        if private:
            groups.append(self._prefixes.blank(private, self._prefixes.columns))
        copied = not chooses_attention(self._model)
        cache = RowCache(groups, max(self._own - 1, 1), copied)
        with self._clock.calling("generate") as call:
            graph = "not asked for" if not self._replays else self._graph(cache)
            batch = RowBatch(self._model, self._policy, cache, call, self.spent, self._fixed, graph)
            yield batch
            batch.finish()

    def _graph(self, cache: RowCache) -> RowGraph | str:
        return row_graph(self._model, self._policy_name, self._clock, cache)

    @property
    def _private_rows(self) -> int:
        return max(self._rows // _ONE_PRIVATE_IN, 1)

    @property
    def _shared_rows(self) -> int:
        return self._rows - self._private_rows

    @cached_property
    def _only_last_logits(self) -> dict[str, Any]:
        return {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}


def _returned(prompt: Prompt, step: int) -> Returned | None:
    return Returned(step) if prompt.returns else None


def _check_model(model: Any, tokens: int) -> None:
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        raise CannotBatchError("the model cannot be told the positions of its tokens")
    if any(map(_is_window, model.buffers())):
        raise CannotBatchError("the model sees as far as its cache's columns tell, not positions")
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicLayer:
            continue
        if type(layer) is DynamicSlidingWindowLayer and tokens < layer.sliding_window:
            continue
        raise CannotBatchError(
            f"the model keeps a {type(layer).__name__} in its cache, not all keys and values"
        )


def _is_window(buffer: Tensor) -> bool:
    """Whether it tells of each token, by its column, which it sees, and not all before it."""
    tells = buffer.dtype in (torch.bool, torch.uint8) and buffer.dim() >= 2
    return tells and buffer.shape[-2] == buffer.shape[-1] and not bool(buffer[..., -1, :].all())
