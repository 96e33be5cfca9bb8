"""What trials on some prompts say about prompts that were not asked."""

from __future__ import annotations

from collections.abc import Sequence

from ft2.verdict.betting import mean_interval

__all__ = ["interval_for_new_prompts"]


def interval_for_new_prompts(
    counted: Sequence[tuple[float, int]], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return a two-sided interval of the rate over prompts like these, in per cent.

    Trials on one prompt go wrong together, so it is the prompts that count: each gives one value,
    its own rate. The exact interval of the pooled trials speaks of these prompts only, and is much
    narrower.

    It holds too where what was seen decided when to stop, if each prompt has had a trial by then.
    For a given mean, the wealth that was bet (:func:`ft2.verdict.betting.log_wealth`) is a sum of
    products of one term for each prompt, linear in that prompt's rate; and a prompt's rate among
    its first n trials is, given the one among n + 1, on average that one. So the wealth after fewer
    trials is on average the wealth after more: a martingale in reverse, which is ever as large as
    ``1 / a`` with probability ``a`` at most (Doob's inequality; Manole and Ramdas, 2023:
    *Martingale methods for sequential estimation of convex functionals and divergences*).

    Parameters
    ----------
    counted:
        (events, trials) of each prompt, or an estimate of its events. The prompts are taken for a
        random sample. Where what was seen decided when to stop, each needs a trial.
    confidence:
        Coverage, between 0 and 1.

    Returns
    -------
    (float, float) or None
        None where fewer than two prompts have trials.
    """
    rates = [events / trials for events, trials in counted if trials]
    if len(rates) < 2:
        return None
    low, high = mean_interval(rates, confidence=confidence)
    return 100 * low, 100 * high
