"""Intervals for the mean of bounded values of any distribution, by betting on it.

Whoever bets on each value at odds that would be fair if the mean were m makes a profit of ``1 / a``
with probability ``a`` at most if it is. The means at which no such profit was made are the interval
(Waudby-Smith and Ramdas, 2024: *Estimating means of bounded random variables by betting*). It holds
for any number of values, also where all are zero and a bootstrap's interval has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

__all__ = ["log_wealth", "mean_interval"]

# Twice the logarithm of a wealth that tells something.
_TELLING = 6.0
_SMALLEST = 1e-12


def log_wealth(
    gains: Sequence[float] | NDArray[np.float64],
    counts: Sequence[int] | NDArray[np.int64],
    most: float = 1.0,
    planned: int | None = None,
) -> float:
    """Return the logarithm of what one unit of money has become.

    Parameters
    ----------
    gains:
        What a stake of one unit gains in each kind of bet, at least -1; of a fair bet the
        expectation is zero, of a losing one negative.
    counts:
        How many bets of each kind were made.
    most:
        The largest gain that there could be. It shapes the stakes; no promise depends on it.
    planned:
        How many bets there are to be at most, known before the first; None: as many as were made.
        It shapes the stakes, too: known, they depend on no bet, and the promise holds however one
        came to stop.

    Returns
    -------
    float
        ``log(1 / a)`` is reached with probability ``a`` at most if every bet is fair or losing.
    """
    stakes = _stakes(int(np.sum(counts)) if planned is None else planned, most)
    chances = 1 / np.arange(1.0, len(stakes) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.asarray(counts) * np.log1p(stakes[:, None] * np.asarray(gains))
    # No bet of a kind is no loss, even where its loss would be everything.
    wealth = np.where(np.asarray(counts) > 0, logs, 0.0).sum(axis=1)
    return float(logsumexp(wealth, b=chances / chances.sum()))


def _stakes(bets: int, most: float) -> NDArray[np.float64]:
    """Return shares of the wealth to stake: all, a half, a quarter …

    Which is best depends on a variance that nobody knows, so the wealth is spread over them, down
    to what would be best for the largest variance that fair bets can have.
    """
    halvings = math.ceil(0.5 * math.log2(max(1.0, bets * most / _TELLING)))
    return np.power(0.5, np.arange(1 + halvings), dtype=np.float64)


def mean_interval(
    values: Sequence[float] | NDArray[np.float64],
    counts: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    largest: float = 1.0,
    confidence: float = 0.95,
    planned: int | None = None,
) -> tuple[float, float]:
    """Return a two-sided interval of the mean of independent values.

    Where their means differ, it is that of the average mean.

    Parameters
    ----------
    values:
        What was seen, from 0 to `largest`.
    counts:
        How often each value was seen; None: once.
    largest:
        The largest value that could have been seen.
    confidence:
        Coverage, between 0 and 1.
    planned:
        How many values there were to be at most, where what was seen decided when to stop: the
        interval holds then, too. None: their number was fixed.

    Returns
    -------
    (float, float)
        In the unit of the values; from 0 to `largest` where nothing was seen.

    Raises
    ------
    ValueError
        If a value is negative or above `largest`.
    """
    shares = np.asarray(values, dtype=float) / largest
    seen = np.ones(len(shares), dtype=np.int64) if counts is None else np.asarray(counts)
    if len(shares) and not (shares.min() >= 0 and shares.max() <= 1 + 1e-12):
        raise ValueError(f"values should be from 0 to {largest:g}")
    shares = np.minimum(shares, 1.0)
    proof = math.log(2 / (1 - confidence))
    bets = int(seen.sum()) if planned is None else planned
    low = 1 - _upper_bound(1 - shares, seen, proof, bets)
    high = _upper_bound(shares, seen, proof, bets)
    return largest * max(0.0, low), largest * high


def _upper_bound(
    shares: NDArray[np.float64], counts: NDArray[np.int64], proof: float, bets: int
) -> float:
    """Return the mean from which on betting that it is less has made the profit."""

    def missing(mean: float) -> float:
        wealth = log_wealth((mean - shares) / (1 - mean), counts, mean / (1 - mean), bets)
        return proof - min(wealth, 1e6)

    total = int(counts.sum())
    seen = float((counts * shares).sum() / total) if total else 0.0
    high = 1 - _SMALLEST
    if seen >= high or missing(high) > 0:
        return 1.0
    # Between the means at which one more stake is tried, the profit grows with the mean.
    odds = _TELLING / bets * 4.0 ** np.arange(64)
    for place in reversed(odds / (1 + odds)):
        low = max(seen, np.nextafter(place, 1.0))
        if low >= high:
            continue
        if missing(low) > 0:
            return high if missing(high) > 0 else float(brentq(missing, low, high, xtol=_SMALLEST))
        high = min(high, float(place))
    low = max(seen, _SMALLEST)
    return high if missing(high) > 0 else float(brentq(missing, low, high, xtol=_SMALLEST))
