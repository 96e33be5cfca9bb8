"""The engines of a campaign, and the golden runs that they decoded, as long as memory lasts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ft2.campaign.batch_engine import BatchEngine
from ft2.campaign.batch_size import fitting_rows, fixed_rows, golden_bytes, room_for_golden
from ft2.campaign.prompt import Continuation, GoldenRow, Prompt
from ft2.faults import Fault

__all__ = ["LEAST_ROWS", "Engine", "Engines"]

LEAST_ROWS = 8
_ROWS_PER_PROMPT = 2


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine whose golden runs are decoded.

    Attributes
    ----------
    prompts:
        The engine's number of each prompt.
    rows:
        Of its batches, at most.
    size:
        Bytes that its golden runs take.
    """

    engine: BatchEngine
    model: Any
    prompts: dict[Prompt, int]
    rows: int
    size: int

    def golden(self, prompt: Prompt) -> GoldenRow:
        """Return a prompt's golden run."""
        return self.engine.golden[self.prompts[prompt]]


class Engines:
    """Makes a campaign's engines, so that each golden run is decoded once.

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
    rows_tried:
        Of the engine that was made or ran last.
    """

    def __init__(
        self,
        policy: str,
        bounds: str | None,
        correction: Literal["clip", "zero"] | None,
        rows: int | None,
        sharers: int,
    ) -> None:
        self.rows_tried = 0
        self._protected: dict[str, Any] = {
            "policy": policy,
            "bounds": bounds,
            "correction": correction,
        }
        self._rows, self._sharers = rows, sharers
        # Those that were used last stand last.
        self._kept: list[Engine] = []
        _ALL.add(self)

    def holding(
        self, model: Any, prompts: Sequence[Prompt], fixed: bool, limit: int | None
    ) -> dict[Prompt, Engine]:
        """Return the engine of each prompt, after decoding the golden runs that none has yet.

        Parameters
        ----------
        fixed:
            Whether batches have a shape that depends on nothing else: then each is of one prompt.
        limit:
            Rows of a batch at most, None if that is not known.
        """
        # Nothing is asked of another model any more, and it would not fit beside this one.
        self._kept = [each for each in self._kept if each.model is model]
        fits = [each for each in self._kept if limit is None or each.rows <= limit]
        found = {prompt: each for each in fits for prompt in each.prompts}
        missing = [prompt for prompt in prompts if prompt not in found]
        while missing:
            rows = self._rows_for(model, missing, fixed, limit)
            count = 1 if fixed else max(rows // _ROWS_PER_PROMPT, 1)
            made = self._make(model, missing[:count], rows, fixed)
            found |= dict.fromkeys(made.prompts, made)
            missing = missing[count:]
        used = {id(found[prompt]): found[prompt] for prompt in prompts}
        self._kept = [each for each in self._kept if id(each) not in used] + list(used.values())
        self._make_room(model, len(used))
        return {prompt: found[prompt] for prompt in prompts}

    def forget(self) -> None:
        """Give up the golden runs that are kept, and the model."""
        self._kept = []

    def run(
        self, engine: Engine, trials: Sequence[tuple[int, Fault]], done: Callable[[], object]
    ) -> list[Continuation | None]:
        """Compute trials, as :meth:`ft2.campaign.batch_engine.BatchEngine.run` does."""
        self.rows_tried = engine.rows
        return engine.engine.run(trials, done)

    @staticmethod
    def are_kept() -> bool:
        """Whether any campaign of this process keeps golden runs."""
        return any(each._kept for each in _ALL)

    @staticmethod
    def free_memory() -> None:
        """Give up what all campaigns of this process keep."""
        for each in _ALL:
            each.forget()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _make(self, model: Any, prompts: Sequence[Prompt], rows: int, fixed: bool) -> Engine:
        self.rows_tried = rows
        engine = BatchEngine(model, prompts, rows=rows, fixed=fixed, **self._protected)
        engine.prepare()
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        return Engine(engine, model, numbers, rows, golden_bytes(model, prompts))

    def _rows_for(
        self, model: Any, prompts: Sequence[Prompt], fixed: bool, limit: int | None
    ) -> int:
        if self._rows is not None:
            rows = self._rows
        elif fixed:
            rows = fixed_rows(model, prompts[0])
        else:
            rows = fitting_rows(model, prompts, self._sharers)
        rows = min(rows, limit or rows)
        return max(rows, LEAST_ROWS) if fixed else rows

    def _make_room(self, model: Any, used: int) -> None:
        """Give up golden runs that are not used now, those first that were used long ago."""
        kept = sum(each.size for each in self._kept)
        room = room_for_golden(model, self._sharers, kept)
        while kept > room and len(self._kept) > used:
            kept -= self._kept.pop(0).size


# They share one memory.
_ALL: weakref.WeakSet[Engines] = weakref.WeakSet()
