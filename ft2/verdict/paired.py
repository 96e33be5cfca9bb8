"""The same faults met twice: under two protections, or two versions of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq
from scipy.stats import binomtest

from ft2.verdict.betting import log_wealth, mean_interval

__all__ = ["Pairs", "ReductionVerdict", "compare", "decide_reduction"]


@dataclass(frozen=True)
class Pairs:
    """Faults by what they did before a change (a protection, a commit) and after it.

    Attributes
    ----------
    both, only_before, only_after, neither:
        How many faults were SDCs in both campaigns, in one of them, or in none.
    """

    both: int
    only_before: int
    only_after: int
    neither: int

    @classmethod
    def of(cls, outcomes: Iterable[tuple[bool, bool]]) -> Pairs:
        """Count pairs: whether each fault was an SDC before, and after."""
        seen = list(outcomes)
        return cls(
            seen.count((True, True)),
            seen.count((True, False)),
            seen.count((False, True)),
            seen.count((False, False)),
        )

    @property
    def trials(self) -> int:
        """The number of faults."""
        return self.both + self.only_before + self.only_after + self.neither

    @property
    def before(self) -> int:
        """SDCs before the change."""
        return self.both + self.only_before

    @property
    def after(self) -> int:
        """SDCs after the change."""
        return self.both + self.only_after

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided, of the two rates being the same."""
        changed = self.only_before + self.only_after
        return float(binomtest(self.only_after, changed).pvalue) if changed else 1.0

    @property
    def difference(self) -> float:
        """The rate after the change less the rate before it, in percentage points."""
        return 100 * (self.after - self.before) / self.trials

    def difference_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a two-sided paired interval of :attr:`difference`, in percentage points.

        By betting on each fault's difference, -1, 0 or 1: valid for any number of faults.
        """
        same = self.both + self.neither
        low, high = mean_interval(
            [0.0, 0.5, 1.0], [self.only_before, same, self.only_after], confidence=confidence
        )
        return 200 * low - 100, 200 * high - 100

    @property
    def reduction(self) -> float | None:
        """By how many per cent of those before the SDCs became fewer; None where there were none.

        Negative where they became more.
        """
        if self.before == 0:
            return None
        return 100 * (self.before - self.after) / self.before

    def reduction_proven(self, confidence: float) -> float:
        """Return the largest reduction that is proven, in per cent; ``-inf`` where none is.

        The one-sided lower bound of :attr:`reduction`.
        """
        proof = -math.log1p(-confidence)
        least = -1e6
        if self._evidence_of_more(least) < proof:
            return -math.inf
        if self._evidence_of_more(1.0) >= proof:
            return 100.0
        found = brentq(lambda share: self._evidence_of_more(share) - proof, least, 1.0, xtol=1e-9)
        return 100 * float(found)

    def reduction_possible(self, confidence: float) -> float:
        """Return the least reduction that is refuted, in per cent; 100 where none is.

        The one-sided upper bound of :attr:`reduction`.
        """
        proof = -math.log1p(-confidence)
        most = 1 - 1e-12
        if self._evidence_of_less(most) < proof:
            return 100.0
        least = -1e6
        if self._evidence_of_less(least) >= proof:
            return -math.inf
        found = brentq(lambda share: self._evidence_of_less(share) - proof, least, most, xtol=1e-9)
        return 100 * float(found)

    def _evidence_of_more(self, share: float) -> float:
        # A bet, one unit at most to lose, that SDCs after are fewer than (1 - share) of those
        # before: what it gains on a fault grows with that number before less the number after.
        return log_wealth([-share, 1 - share, -1.0, 0.0], self._counts)

    def _evidence_of_less(self, share: float) -> float:
        # The same bet from the other side, in units of what it can lose.
        gains = [share / (1 - share), -1.0, 1 / (1 - share), 0.0]
        return min(log_wealth(gains, self._counts), 1e6)

    @property
    def _counts(self) -> list[int]:
        return [self.both, self.only_before, self.only_after, self.neither]


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Pairs:
    """Pair the trials of two campaigns that met the same faults.

    Parameters
    ----------
    before, after:
        Records of all trials before a change (a protection, a commit) and after it, as
        :meth:`ft2.Campaign.run` returns them, or as the JSON document has them. They were drawn
        uniformly, and as many as were planned: the intervals hold for no campaign that stopped
        early.

    Raises
    ------
    ValueError
        If a campaign has no trials, one without an outcome, one drawn by strata, or another fault
        than the other.

    Examples
    --------
    >>> fault = "call=0,step=1,layer=up_proj,row=0,position=0,neuron=7,bits=14"
    >>> bare = [{"trial": 0, "fault": fault, "outcome": "sdc"}]
    >>> protected = [{"trial": 0, "fault": fault, "outcome": "masked"}]
    >>> compare(bare, protected).difference
    -100.0
    """
    first = {record["trial"]: record for record in before}
    second = {record["trial"]: record for record in after}
    if not first or first.keys() != second.keys():
        raise ValueError(
            f"a comparison needs the same trials in both campaigns, not {len(first)} and "
            f"{len(second)} of them that differ: give both the same number of faults, at least one"
        )
    for trial, record in first.items():
        if record["fault"] != second[trial]["fault"] or record["fault"] is None:
            raise ValueError(
                f"trial {trial} met {record['fault']} before and {second[trial]['fault']} after: "
                "give both campaigns the same model, prompts, seed, fault model and encoding"
            )
        if record.get("stratum") is not None:
            raise ValueError(
                f"trial {trial} was drawn by strata, which weigh differently: compare campaigns "
                "with uniform sampling"
            )
        if record["outcome"] is None or second[trial]["outcome"] is None:
            raise ValueError(f"trial {trial} has no outcome, so there is nothing to compare")
    return Pairs.of(
        (record["outcome"] == "sdc", second[trial]["outcome"] == "sdc")
        for trial, record in first.items()
    )


@dataclass(frozen=True)
class ReductionVerdict:
    """Whether a change cut the SDCs by as much as was asked.

    Attributes
    ----------
    name:
        ``pass``, ``fail`` or ``inconclusive``.
    reason:
        Sentences that say why, and what to do.
    """

    name: str
    reason: str


def decide_reduction(
    pairs: Pairs, at_least: float, confidence: float | None = None
) -> ReductionVerdict:
    """Decide whether a change cut the SDCs by `at_least` per cent.

    Parameters
    ----------
    pairs:
        The faults, met before and after the change.
    at_least:
        The reduction asked for, in per cent of the SDCs before; above 0, at most 100.
    confidence:
        None compares the observed reduction. A number between 0.5 and 1 demands that the one-sided
        bound of that confidence decides.

    Raises
    ------
    ValueError
        If `at_least` or `confidence` is out of range.
    """
    if not 0 < at_least <= 100:
        raise ValueError(f"at_least should be a number above 0 and at most 100, not {at_least!r}")
    if confidence is not None and not 0.5 < confidence < 1:
        raise ValueError(f"confidence should be None or between 0.5 and 1, not {confidence!r}")
    reduction = pairs.reduction
    if reduction is None:
        return ReductionVerdict(
            "inconclusive",
            f"None of {pairs.trials} faults was an SDC before, so there was nothing to cut: inject "
            "more faults, or likelier ones (fault model exp).",
        )
    seen = (
        f"{pairs.before} of {pairs.trials} faults were SDCs before and {pairs.after} after, "
        f"{abs(reduction):.3g} % {'fewer' if reduction >= 0 else 'more'}"
    )
    if confidence is None:
        if reduction >= at_least:
            return ReductionVerdict("pass", f"{seen}: at least {at_least:g} % was asked.")
        return ReductionVerdict("fail", f"{seen}, and {at_least:g} % fewer was asked.")
    sure = f"with {100 * confidence:g} % confidence"
    proven = pairs.reduction_proven(confidence)
    if proven >= at_least:
        return ReductionVerdict(
            "pass", f"{seen}; {sure} at least {proven:.3g} % fewer: {at_least:g} % was asked."
        )
    possible = pairs.reduction_possible(confidence)
    if possible < at_least:
        return ReductionVerdict(
            "fail", f"{seen}; {sure} less than the {at_least:g} % fewer that was asked."
        )
    return ReductionVerdict(
        "inconclusive",
        f"{seen}; {sure} neither proof nor disproof of the {at_least:g} % fewer that was asked: "
        "inject more faults.",
    )
