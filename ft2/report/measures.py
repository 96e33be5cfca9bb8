"""The same trials under other measures of the space of faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft2.report.drawn import Drawn, FixedTrials
from ft2.verdict import weighted_rate

__all__ = ["MEASURES", "rates_by_measure", "reweighted_rate"]

MEASURES = ("elements", "macs", "time")
"""Faults in proportion to output elements, to MACs, or to the time of a step."""


def reweighted_rate(
    trials: Sequence[Mapping[str, Any]],
    measure: str,
    sampling_weights: Mapping[int, float] | None = None,
) -> float | None:
    """Estimate the SDC rate, in per cent, under another measure of the space.

    Each trial counts with the ratio of its site's weight under `measure` to its weight under the
    declared one, over the sum of these ratios (the self-normalised importance estimate).

    Parameters
    ----------
    measure:
        One of :data:`MEASURES`.
    sampling_weights:
        What trials count besides, by their numbers; others, and all if None, count 1.

    Returns
    -------
    float or None
        None when no trial has such a weight.
    """
    drawn = sampling_weights or {}
    known, weights = _known(trials, measure)
    return weighted_rate(
        [
            weight * drawn.get(trial["trial"], 1.0)
            for trial, weight in zip(known, weights, strict=True)
        ],
        [trial["outcome"] == "sdc" for trial in known],
    )


def rates_by_measure(
    trials: Sequence[Mapping[str, Any]],
    largest: Mapping[str, float] | None,
    drawn: Drawn | None = None,
    sampling_weights: Mapping[int, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the rate and its interval under each measure, in per cent.

    Parameters
    ----------
    largest:
        The largest weight of any site under each measure; None where no interval would hold, as
        where trials are missing.
    drawn:
        Makes the intervals; None: those of uniform trials, as many as were planned.
    sampling_weights:
        As in :func:`reweighted_rate`.

    Returns
    -------
    dict
        ``rate`` and ``interval``; each None where it is not known.
    """
    rates: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        rate = reweighted_rate(trials, measure, sampling_weights)
        around = None
        known, weights = _known(trials, measure)
        if largest is not None and measure in largest and rate is not None:
            # Times are measured in each process, so one can be a little above the largest.
            most = max(largest[measure], *weights)
            low, high = (drawn or FixedTrials()).of_measure(known, weights, most)
            # The rate is that of all trials, the interval perhaps that of some.
            around = [min(low, rate), max(high, rate)]
        rates[measure] = {"rate": rate, "interval": around}
    return rates


def _known(
    trials: Sequence[Mapping[str, Any]], measure: str
) -> tuple[list[Mapping[str, Any]], list[float]]:
    """Return the trials whose weight and outcome are known, and their weights."""
    known = [trial for trial in trials if trial["outcome"] and measure in trial.get("weights", {})]
    return known, [float(trial["weights"][measure]) for trial in known]
