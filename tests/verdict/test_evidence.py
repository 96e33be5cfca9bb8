"""Evidence that may be looked at after every trial."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from ft2.verdict import always_valid_interval, interval, log_evidence_above, log_evidence_below

RATES = st.floats(0.001, 0.999)
CONFIDENCES = st.floats(0.51, 0.999)


@st.composite
def counts(draw: st.DrawFn, most: int = 20_000) -> tuple[int, int]:
    trials = draw(st.integers(1, most))
    return draw(st.integers(0, trials)), trials


@given(counts(most=40), st.floats(0.02, 0.98))
def test_evidence_is_the_mean_likelihood_ratio_over_the_rates_below(
    counted: tuple[int, int], rate: float
) -> None:
    events, trials = counted

    def ratio(angle: float) -> float:
        # Jeffreys' prior is uniform in the angle whose squared sine is the rate.
        other = math.sin(angle) ** 2
        return (other / rate) ** events * ((1 - other) / (1 - rate)) ** (trials - events)

    end = math.asin(math.sqrt(rate))
    mean = quad(ratio, 0, end, limit=200)[0] / end
    assert log_evidence_below(events, trials, rate) == pytest.approx(math.log(mean), abs=1e-5)


@given(counts(most=2000), RATES, st.floats(0, 1))
def test_no_true_rate_from_the_one_in_question_on_is_expected_to_add_evidence(
    counted: tuple[int, int], rate: float, further: float
) -> None:
    events, trials = counted
    true = rate + further * (1 - rate)
    now = log_evidence_below(events, trials, rate)
    hit, missed = (log_evidence_below(events + more, trials + 1, rate) for more in (1, 0))
    if np.isfinite([now, hit, missed]).all():
        assert true * math.exp(hit - now) + (1 - true) * math.exp(missed - now) <= 1 + 1e-6


@given(counts(), RATES)
def test_above_is_below_for_the_trials_that_missed(counted: tuple[int, int], rate: float) -> None:
    events, trials = counted
    assert log_evidence_above(events, trials, rate) == log_evidence_below(
        trials - events, trials, 1 - rate
    )


@given(counts(), RATES, RATES)
def test_evidence_for_a_lower_rate_grows_with_the_rate_in_question(
    counted: tuple[int, int], one: float, other: float
) -> None:
    events, trials = counted
    low, high = sorted((max(one, events / trials), max(other, events / trials)))
    less, more = (log_evidence_below(events, trials, rate) for rate in (low, high))
    assert less <= more + 1e-6 * max(1.0, abs(more))


@given(counts())
def test_an_interval_for_every_look_holds_the_rate_and_the_exact_interval_of_one_look(
    counted: tuple[int, int],
) -> None:
    events, trials = counted
    low, high = always_valid_interval(events, trials)
    exact_low, exact_high = interval(events, trials)
    assert 0 <= low <= exact_low + 1e-9
    assert exact_high - 1e-9 <= high <= 100


@given(counts(), CONFIDENCES)
def test_intervals_are_nested_by_confidence_and_symmetric(
    counted: tuple[int, int], confidence: float
) -> None:
    events, trials = counted
    low, high = always_valid_interval(events, trials, confidence)
    wider = always_valid_interval(events, trials, 0.9999)
    assert wider[0] <= low + 1e-9
    assert high <= wider[1] + 1e-9
    other_low, other_high = always_valid_interval(trials - events, trials, confidence)
    assert (100 - other_high, 100 - other_low) == pytest.approx((low, high), abs=1e-6)


def test_the_prior_is_jeffreys() -> None:
    # One trial without an event against a half: the mean of (1 - p) / 0.5 over the prior up to it.
    share = beta(0.5, 0.5).expect(lambda p: (1 - p) / 0.5, ub=0.5) / beta(0.5, 0.5).cdf(0.5)
    assert log_evidence_below(0, 1, 0.5) == pytest.approx(math.log(share))


def test_a_budget_of_zero_is_never_proven_and_refuted_by_the_first_event() -> None:
    assert log_evidence_below(0, 10**6, 0.0) == -math.inf
    assert log_evidence_above(1, 10**6, 0.0) == math.inf
    assert log_evidence_above(0, 10**6, 0.0) <= 0
