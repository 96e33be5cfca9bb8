"""The rate under another measure of the space, from the same trials."""

from __future__ import annotations

from collections.abc import Sequence

from ft2.verdict.betting import mean_interval

__all__ = ["weighted_interval", "weighted_rate"]


def weighted_rate(weights: Sequence[float], events: Sequence[bool]) -> float | None:
    """Estimate the rate, in per cent, under the measure that `weights` are densities of.

    The self-normalised importance estimate: of the weights of all trials, the share of those that
    were events.

    Parameters
    ----------
    weights:
        For each trial its site's weight under the other measure, over that under the measure it
        was drawn from.
    events:
        For each trial whether it was an event.

    Returns
    -------
    float or None
        None where the weights are zero or there are none.
    """
    total = sum(weights)
    if not total:
        return None
    return 100 * sum(w for w, event in zip(weights, events, strict=True) if event) / total


def weighted_interval(
    weights: Sequence[float],
    events: Sequence[bool],
    largest: float,
    confidence: float = 0.95,
    planned: int | None = None,
) -> tuple[float, float]:
    """Return a two-sided interval of the rate under another measure, in per cent.

    Parameters
    ----------
    weights, events:
        As in :func:`weighted_rate`; over the whole space the weights' mean is 1.
    largest:
        The largest weight of any site, hit or not.
    confidence:
        Coverage, between 0 and 1.
    planned:
        As in :func:`ft2.verdict.mean_interval`.

    Raises
    ------
    ValueError
        If a weight is above `largest`.
    """
    hit = [weight for weight, event in zip(weights, events, strict=True) if event]
    others = len(weights) - len(hit)
    low, high = mean_interval(
        [0.0, *hit],
        [others, *[1] * len(hit)],
        largest=largest,
        confidence=confidence,
        planned=planned,
    )
    return min(100.0, 100 * low), min(100.0, 100 * high)
