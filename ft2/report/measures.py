"""The same trials under other measures of the space of faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft2.verdict import weighted_interval, weighted_rate

__all__ = ["MEASURES", "rates_by_measure", "reweighted_rate"]

MEASURES = ("elements", "macs", "time")
"""Faults in proportion to output elements, to MACs, or to the time of a step."""


def reweighted_rate(
    trials: Sequence[Mapping[str, Any]],
    measure: str,
    sampling_weights: Mapping[str, float] | None = None,
) -> float | None:
    """Estimate the SDC rate, in per cent, under another measure of the space.

    Each trial counts with the ratio of its site's weight under `measure` to its weight under the
    declared one, over the sum of these ratios (the self-normalised importance estimate).

    Parameters
    ----------
    measure:
        One of :data:`MEASURES`.
    sampling_weights:
        What a trial of each stratum counts besides; None: as much as any other.

    Returns
    -------
    float or None
        None when no trial has such a weight.
    """
    weights, events = _weighed(trials, measure, sampling_weights)
    return weighted_rate(weights, events)


def rates_by_measure(
    trials: Sequence[Mapping[str, Any]],
    largest: Mapping[str, float] | None,
    sampling_weights: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the rate and its interval under each measure, in per cent.

    Parameters
    ----------
    largest:
        The largest weight of any site under each measure; None where no interval would hold, as
        where the number of trials depends on what they showed.
    sampling_weights:
        As in :func:`reweighted_rate`.

    Returns
    -------
    dict
        ``rate`` and ``interval``; each None where it is not known.
    """
    rates: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        weights, events = _weighed(trials, measure, sampling_weights)
        around = None
        if largest is not None and measure in largest and any(weights):
            # Times are measured in each process, so one can be a little above the largest.
            most = max(largest[measure], *weights)
            around = [*weighted_interval(weights, events, most)]
        rates[measure] = {"rate": weighted_rate(weights, events), "interval": around}
    return rates


def _weighed(
    trials: Sequence[Mapping[str, Any]],
    measure: str,
    sampling_weights: Mapping[str, float] | None,
) -> tuple[list[float], list[bool]]:
    drawn = sampling_weights or {}
    known = [trial for trial in trials if trial["outcome"] and measure in trial.get("weights", {})]
    weights = [
        float(trial["weights"][measure]) * drawn.get(trial.get("stratum", ""), 1.0)
        for trial in known
    ]
    return weights, [trial["outcome"] == "sdc" for trial in known]
