"""Compute trials ahead of the runs that will ask for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from ft2.campaign.asked import Asked
from ft2.campaign.batch_engine import CannotBatchError
from ft2.campaign.batch_size import returned_bytes, room_for_returned
from ft2.campaign.engines import LEAST_ROWS, Engine, Engines
from ft2.campaign.outcome import is_harness_error, is_sticky
from ft2.campaign.prompt import Continuation, Prompt
from ft2.campaign.randomness import preserved_randomness
from ft2.campaign.replies import KnownCall, Replies
from ft2.campaign.returned import GoldenReturned
from ft2.faults import Fault, Injection

__all__ = ["Ahead", "Batched", "GoldenCalls"]

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class GoldenCalls:
    """The calls of one golden run, under the trials' protection.

    Attributes
    ----------
    asked:
        What each call of ``generate`` asked, by the call's number.
    calls:
        How many calls of the model began.
    outputs:
        What each call said, as :attr:`ft2.campaign.Golden.outputs` has it.
    returned:
        What calls returned beside the tokens, by the call's number.
    """

    asked: Mapping[int, Asked]
    calls: int
    outputs: Sequence[Sequence[Any]]
    returned: Mapping[int, GoldenReturned] = field(default_factory=dict)

    @property
    def alone(self) -> str | None:
        """Why trials of it cannot be computed ahead, or None."""
        if not self.calls or sorted(self.asked) != list(range(self.calls)):
            return "it does not call the model by generate alone, or not greedily"
        for number, asked in self.asked.items():
            if asked.alone is not None:
                return asked.alone
            if number not in self.returned and any(each.returns for each in asked.prompts):
                return "it asks for more than token ids (return_dict_in_generate)"
            if not asked.is_current():
                return "the model, or its weights, are others in each run"
        if len({id(asked.model()) for asked in self.asked.values()}) > 1:
            return "it calls several models"
        return None

    @property
    def is_half(self) -> bool:
        """Whether the model computes in half precision, so that the batch is part of a trial."""
        models: list[Any] = [asked.model() for asked in self.asked.values()]
        return any(
            model is not None and model.get_input_embeddings().weight.dtype in _HALF
            for model in models
        )

    @property
    def prompts(self) -> list[Prompt]:
        """What the rows of all calls ask."""
        return [prompt for _, asked in sorted(self.asked.items()) for prompt in asked.prompts]


@dataclass(frozen=True, eq=False)
class Batched:
    """One trial that was computed ahead.

    Attributes
    ----------
    calls, call, row, continuation:
        As :class:`ft2.campaign.replies.Replies` takes them.
    batch:
        How many rows its batch had at most.
    seconds:
        Its share of the time.
    """

    calls: list[KnownCall]
    call: int
    row: int
    continuation: Continuation
    batch: int
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether no rounding shows in what the test is told: it is told token ids alone."""
        return self.continuation.returned is None

    def replies(self) -> Replies:
        """Return the answers for one run of the trial."""
        return Replies(self.calls, self.call, self.row, self.continuation)


@dataclass(eq=False)
class Ahead:
    """Computes the trials of a campaign, some at a time; golden runs are decoded once.

    Parameters
    ----------
    policy, bounds, correction:
        The trials' protection, as in :func:`ft2.protect`.
    rows:
        Rows of a batch; None: what fits into the memory.
    sharers:
        How many processes share the machine's memory.

    Attributes
    ----------
    problem:
        A sentence, if memory ran out where the batch is a part of the trial.
    """

    policy: str
    bounds: str | None = None
    correction: Literal["clip", "zero"] | None = None
    rows: int | None = None
    sharers: int = 1
    problem: str | None = None

    @cached_property
    def _engines(self) -> Engines:
        return Engines(self.policy, self.bounds, self.correction, self.rows, self.sharers)

    def compute(
        self,
        goldens: Mapping[int, GoldenCalls],
        trials: Sequence[tuple[int, int, Fault]],
        done: Callable[[], object] = lambda: None,
    ) -> dict[int, Batched | str]:
        """Compute trials, each given by its number, its golden run's number and its fault.

        As each ends, `done` is called.

        Returns
        -------
        dict
            Of each trial what became of it, or why it must run alone.

        Raises
        ------
        RuntimeError
            If the device is lost.
        """
        found: dict[int, Batched | str] = {}
        together: dict[tuple[int, bool, int], list[tuple[int, int, Fault]]] = {}
        alone = {golden: goldens[golden].alone for golden in {golden for _, golden, _ in trials}}
        for trial in trials:
            number, golden, _ = trial
            reason = alone[golden]
            if reason is not None:
                found[number] = reason
                continue
            is_half = goldens[golden].is_half
            # In half precision the batch is part of the trial: each golden run has its own.
            key = (id(goldens[golden].asked[0].model()), is_half, golden if is_half else -1)
            together.setdefault(key, []).append(trial)
        for (_, is_half, _), group in together.items():
            found |= self._with_less_memory(goldens, group, is_half, done)
        return found

    def forget(self) -> None:
        """Give up the golden runs that are kept, and their model."""
        self._engines.forget()

    def _with_less_memory(
        self,
        goldens: Mapping[int, GoldenCalls],
        group: Sequence[tuple[int, int, Fault]],
        is_half: bool,
        done: Callable[[], object],
    ) -> dict[int, Batched | str]:
        """Compute trials of one model, in smaller batches when memory runs out."""
        numbers = [number for number, _, _ in group]
        limit: int | None = None
        while True:
            others_kept = Engines.are_kept()
            try:
                with preserved_randomness():
                    return self._compute(goldens, group, is_half, limit, done)
            except CannotBatchError as error:
                return dict.fromkeys(numbers, str(error))
            except Exception as error:
                if is_sticky(error):
                    raise
                if not is_harness_error(error):
                    self.forget()
                    return dict.fromkeys(numbers, f"its batch raised {type(error).__name__}")
            # Outside of the handler, where the error holds no tensors any more.
            rows = self._engines.rows_tried
            Engines.free_memory()
            if others_kept:
                # Perhaps they were in the way, and not the batch.
                continue
            can_be_halved = rows // 2 >= LEAST_ROWS
            if is_half:
                self.problem = (
                    f"Memory ran out for batches of {rows} rows, and in half precision the batch "
                    f"is a part of the trial: use --ft2-batch={rows // 2 if can_be_halved else 1}."
                )
            if is_half or not can_be_halved:
                return dict.fromkeys(numbers, "memory ran out for a batch")
            limit = rows // 2

    def _compute(
        self,
        goldens: Mapping[int, GoldenCalls],
        group: Sequence[tuple[int, int, Fault]],
        is_half: bool,
        limit: int | None,
        done: Callable[[], object],
    ) -> dict[int, Batched | str]:
        started = time.perf_counter()
        sets = sorted({golden for _, golden, _ in group})
        model: Any = goldens[sets[0]].asked[0].model()
        assert model is not None
        prompts = {prompt: None for golden in sets for prompt in goldens[golden].prompts}
        found: dict[int, Batched | str] = {}
        place = self._engines.holding(model, list(prompts), is_half, limit)
        engines = list(dict.fromkeys(place.values()))
        known = {golden: _known_calls(goldens[golden], place) for golden in sets}
        asked: dict[int, list[tuple[int, int, Fault]]] = {}
        kept = sum(_kept_bytes(model, goldens[golden], fault) for _, golden, fault in group)
        too_much = kept > room_for_returned(model, self.sharers)
        for number, golden, fault in group:
            calls = known[golden]
            if isinstance(calls, str):
                found[number] = calls
                continue
            if too_much and _kept_bytes(model, goldens[golden], fault):
                found[number] = "what all its trials return does not fit into the memory"
                continue
            prompt = calls[fault.call].asked.prompts[fault.row]
            if fault.step == 0:
                padding = calls[fault.call].asked.paddings[fault.row]
                fault = replace(fault, position=fault.position - padding)
            asked.setdefault(id(place[prompt]), []).append(
                (number, place[prompt].prompts[prompt], fault)
            )
        by_number = {number: (golden, fault) for number, golden, fault in group}
        told: list[tuple[int, Continuation | None, int]] = []
        for engine in engines:
            mine = asked.get(id(engine), [])
            if mine:
                chosen = [(prompt, fault) for _, prompt, fault in mine]
                said = self._engines.run(engine, chosen, done)
                told += [
                    (number, each, engine.rows)
                    for (number, _, _), each in zip(mine, said, strict=True)
                ]
        seconds = (time.perf_counter() - started) / max(len(told), 1)
        for number, continuation, rows in told:
            golden, fault = by_number[number]
            calls = known[golden]
            assert not isinstance(calls, str)
            if continuation is None:
                found[number] = "the protected run ends before the fault's step"
            elif not continuation.injection.landed:
                found[number] = "its fault did not land in the batch"
            elif any(calls[fault.call].asked.paddings) and _may_overflow(
                continuation.injection, model.get_input_embeddings().weight.dtype
            ):
                found[number] = "padding is masked, and what overflows ends otherwise under a mask"
            else:
                found[number] = Batched(calls, fault.call, fault.row, continuation, rows, seconds)
        return found


def _may_overflow(injection: Injection, dtype: torch.dtype) -> bool:
    """Whether what a fault leaves is no number, or overflows where it is squared twice."""
    after = injection.after
    if after is None or not math.isfinite(after) or not dtype.is_floating_point:
        return True
    # Norms compute in fp32, which leaves fp16 one square.
    power = 0.5 if dtype is torch.float16 else 0.25
    return abs(after) > float(torch.finfo(dtype).max) ** power


def _kept_bytes(model: Any, golden: GoldenCalls, fault: Fault) -> int:
    prompt = golden.asked[fault.call].prompts[fault.row]
    return returned_bytes(model, prompt) if prompt.returns else 0


def _known_calls(golden: GoldenCalls, place: Mapping[Prompt, Engine]) -> list[KnownCall] | str:
    """Return what each call is told, or a sentence if batches tell it something else."""
    calls = []
    for number in range(golden.calls):
        asked = golden.asked[number]
        rows = [place[prompt].golden(prompt) for prompt in asked.prompts]
        said = [row.said for row in rows]
        if asked.sequences(said).tolist() != [list(row) for row in golden.outputs[number]]:
            return "without any fault a batch says something else"
        corrected = [row.corrected[-1] for row in rows]
        calls.append(KnownCall(asked, said, corrected, golden.returned.get(number)))
    return calls
