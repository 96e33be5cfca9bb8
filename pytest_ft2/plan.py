"""What one gate will do: its trials, its chunks and what decides it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["GatePlan", "Payload"]

Payload = dict[str, Any]
"""What a report carries: plain values, by name."""

# Large chunks fill a batch's rows; enough of them keep workers busy and let a gate stop early.
_CHUNK_UNIT = 50
_FULL_CHUNK = 500
_ENOUGH_CHUNKS = 32
_MOST_CHUNKS = 1000


@dataclass(frozen=True)
class GatePlan:
    """A gate's plan, the same in every process; all its values are plain.

    Attributes
    ----------
    key:
        The campaign's name: the test's node id, with the model's parameters where it has any.
    prefix:
        The node ids of its chunks and its gate up to where they differ.
    location:
        Where the test stands, as pytest's reports give it.
    planned:
        Number of trials; 0 in a replay that does not say.
    more:
        How many trials, numbered behind the planned ones, may run in place of some of these: each
        has a draw from a stratum that the first trials choose.
    pool:
        How many more draws of faults there are to take those from.
    chunk:
        Trials per item.
    bounds:
        The file with the protection's profiled bounds; None if it has none.
    correction:
        What it does with values out of bounds; None: as it has it.
    sampling:
        ``stratified`` where some strata get more trials than their share of the space once the
        first trials show that SDCs are there, else ``uniform``.
    stop:
        ``early`` where the first trials may decide the gate, else ``never``.
    sets:
        Ids of the parameter sets that the campaign pools; trial i belongs to set i mod their
        number. An empty id where the test has no parameters.
    """

    key: str
    prefix: str
    location: tuple[str, int | None, str]
    planned: int
    chunk: int
    sets: tuple[str, ...]
    budget: float
    confidence: float | None
    due_budget: float
    fault_model: str
    protection: str
    encoding: str | None
    golden: str
    seed: int
    trial_timeout: float | None
    replay_options: tuple[str, ...]
    bounds: str | None = None
    correction: str | None = None
    sampling: str = "uniform"
    more: int = 0
    pool: int = 0
    stop: str = "never"

    @property
    def protected(self) -> dict[str, Any]:
        """What a run of the test is told of its protection."""
        names = ("protection", "bounds", "correction")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def default_chunk(planned: int) -> int:
        """Return the trials per item: the more are planned the more, 50 at least.

        Up to 500 they leave no fewer than 32 items; beyond that they only keep the number of items
        small.
        """
        units = planned // (_ENOUGH_CHUNKS * _CHUNK_UNIT)
        growing = min(max(units * _CHUNK_UNIT, _CHUNK_UNIT), _FULL_CHUNK)
        return max(growing, -(-planned // _MOST_CHUNKS))

    @property
    def gate_id(self) -> str:
        """Node id of the gate."""
        return f"{self.prefix}gate]"

    @property
    def numbers(self) -> range:
        """The numbers of all trials that there are to be chosen from."""
        return range(self.planned + self.more)

    @property
    def draws(self) -> range:
        """The numbers of all draws of faults that there are to choose from."""
        return range(self.planned + self.pool)

    @property
    def chunks(self) -> Iterator[range]:
        """The trials of each chunk."""
        for start, stop in ((0, self.planned), (self.planned, self.planned + self.more)):
            for first in range(start, stop, self.chunk):
                yield range(first, min(first + self.chunk, stop))

    def chunk_id(self, trials: range) -> str:
        """Return the node id of the chunk that runs `trials`."""
        return f"{self.prefix}faults-{trials[0]}-{trials[-1]}]"

    def replay_line(self, draw: int) -> str:
        """Return what a shell needs to run the trial of a draw again."""
        line = f"pytest --ft2-replay={shlex.quote(f'{self.key}#{draw}')}"
        return " ".join((line, *map(shlex.quote, self.replay_options)))

    def as_plain(self) -> dict[str, Any]:
        """Return the plan as plain values, to travel on a report."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> GatePlan:
        """Return the plan that :meth:`as_plain` made `values` of."""
        tuples = {name: tuple(values[name]) for name in ("location", "sets", "replay_options")}
        return cls(**{**values, **tuples})
