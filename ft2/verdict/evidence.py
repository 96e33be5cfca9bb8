"""Evidence on a rate that may be looked at after every trial.

Betting on each trial at odds that would be fair at a given rate: an unlimited number of looks finds
the wealth above ``1 / a`` with probability ``a`` at most (Ville's inequality), whenever one stops.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaln, xlog1py, xlogy

__all__ = ["always_valid_interval", "log_evidence_above", "log_evidence_below"]

# Jeffreys' prior: it spends little on alternatives near the rate, where no test decides soon.
_SHAPE = 0.5

Counts = int | NDArray[np.integer[Any]]


def log_evidence_below(events: Counts, trials: Counts, rate: float) -> Any:
    """Return how strongly counts speak for a true rate below `rate`.

    The likelihood ratio of the rates below, mixed over Jeffreys' prior cut off at `rate`, to
    `rate` itself. At every true rate of at least `rate` it is a supermartingale in the trials.

    Parameters
    ----------
    events, trials:
        How many of the first trials were events; numbers or arrays that broadcast.
    rate:
        The rate in question, a share from 0 to 1.

    Returns
    -------
    float or array
        The natural logarithm of the evidence; ``log(1 / a)`` proves it at level ``a``.
    """
    events, misses = np.asarray(events), np.asarray(trials) - np.asarray(events)
    if rate <= 0:
        return np.full(np.broadcast(events, misses).shape, -np.inf)[()]
    with np.errstate(divide="ignore"):
        posterior = betaln(events + _SHAPE, misses + _SHAPE) + np.log(
            betainc(events + _SHAPE, misses + _SHAPE, rate)
        )
        prior = betaln(_SHAPE, _SHAPE) + np.log(betainc(_SHAPE, _SHAPE, rate))
        return posterior - prior - xlogy(events, rate) - xlog1py(misses, -rate)


def log_evidence_above(events: Counts, trials: Counts, rate: float) -> Any:
    """Return how strongly counts speak for a true rate above `rate`; as the other direction."""
    return log_evidence_below(np.asarray(trials) - np.asarray(events), trials, 1 - rate)


def always_valid_interval(
    events: int, trials: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return a two-sided interval of a rate, in per cent, that holds at every look.

    A confidence sequence: the probability that it ever misses the true rate, in however many
    trials and looks, is ``1 - confidence`` at most.

    Parameters
    ----------
    events, trials:
        How many of the trials so far were events; 0 ≤ events ≤ trials, trials ≥ 1.
    confidence:
        Coverage, between 0 and 1.
    """
    proof = math.log(2 / (1 - confidence))
    low = 1 - _upper_bound(trials - events, trials, proof)
    return 100 * max(0.0, low), 100 * _upper_bound(events, trials, proof)


def _upper_bound(events: int, trials: int, proof: float) -> float:
    """Return the rate from which on the counts prove a rate below."""
    if events == trials:
        return 1.0
    # At the observed rate there is no evidence, and it grows with the rate from there on.
    return float(
        brentq(
            lambda rate: min(log_evidence_below(events, trials, rate) - proof, 1e6),
            max(events / trials, 1e-300),
            1 - 1e-16,
            xtol=1e-12,
        )
    )
