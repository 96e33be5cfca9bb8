"""How many trials were computed together, why others were not, and whether it mattered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pytest_ft2.plan import Payload

__all__ = ["Batching"]

_REASONS_SHOWN = 3


@dataclass
class Batching:
    """What the trials of one campaign report.

    Attributes
    ----------
    rows:
        How many trials ran in batches of how many rows.
    alone:
        How many ran alone, by the reason.
    watched:
        Of the batched trials that ran again alone, whether they came out alike.
    """

    rows: Counter[int] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)
    watched: dict[int, bool] = field(default_factory=dict)

    def add(self, payload: Payload) -> None:
        """Take in a trial's record."""
        if payload["batch"] > 1:
            self.rows[payload["batch"]] += 1
        if payload.get("alone"):
            self.alone[payload["alone"]] += 1
        if payload.get("alike") is not None:
            self.watched[payload["trial"]] = payload["alike"]

    @property
    def sentences(self) -> list[str]:
        """What there is to say of it."""
        batched, alone = sum(self.rows.values()), sum(self.alone.values())
        if not batched and not alone:
            return []
        said = []
        if batched:
            rows = " or ".join(map(str, sorted(self.rows)))
            said.append(f"{batched} trials were computed in batches of up to {rows} rows.")
        if alone:
            reasons = [f"{reason} ({count})" for reason, count in self.alone.most_common()]
            shown = "; ".join(reasons[:_REASONS_SHOWN])
            more = "; …" if len(reasons) > _REASONS_SHOWN else ""
            said.append(f"{alone} trials ran one at a time: {shown}{more}.")
        if self.watched:
            other = sum(not same for same in self.watched.values())
            ended = f"{other} ended differently" if other else "all ended alike"
            said.append(f"{len(self.watched)} of the batched ones ran again alone: {ended}.")
        return said
