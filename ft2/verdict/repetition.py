"""Would another seed have decided otherwise?"""

from __future__ import annotations

from scipy.stats import betabinom, binom

from ft2.verdict.gate import Budget, exceeds

__all__ = ["chance_of_another_verdict", "chance_of_passing"]


def chance_of_another_verdict(events: int, trials: int, planned: int, budget: Budget) -> float:
    """Return the chance, in per cent, that another seed's campaign gets another verdict.

    What is not known of the true rate is averaged over: by Jeffreys' prior and the trials seen
    (the beta-binomial predictive distribution). DUEs are left out.

    Parameters
    ----------
    events, trials:
        SDCs, and the trials that showed them.
    planned:
        Trials of a campaign.
    budget:
        What the gate allows; its verdict is that of all planned trials.
    """
    most, least = _limits(planned, budget)
    full = round(events * planned / trials)
    other = betabinom(planned, events + 0.5, trials - events + 0.5)
    passes, fails = other.cdf(most), other.sf(least - 1)
    if full <= most:
        same = passes
    elif full >= least:
        same = fails
    else:
        same = 1 - passes - fails
    return 100 * min(1.0, max(0.0, 1 - float(same)))


def chance_of_passing(rate: float, planned: int, budget: Budget) -> float:
    """Return the chance, in per cent, that a campaign passes when the true rate is `rate` per cent.

    DUEs are left out.
    """
    most, _ = _limits(planned, budget)
    return 100 * float(binom.cdf(most, planned, rate / 100))


def _limits(planned: int, budget: Budget) -> tuple[int, int]:
    """Return the most SDCs that pass and the fewest that fail."""
    share = budget.sdc / 100
    if budget.confidence is None:
        most = int(planned * share)
        most += not exceeds(most + 1, planned, budget.sdc)
        most -= exceeds(most, planned, budget.sdc)
        return most, most + 1
    risk = 1 - budget.confidence
    most = int(binom.ppf(risk, planned, share))
    most -= int(binom.cdf(most, planned, share) > risk)
    least = int(binom.isf(risk, planned, share)) + 1
    least += int(binom.sf(least - 1, planned, share) > risk)
    return most, least
