"""Outcomes by part of the space, and rates under other measures of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.report import (
    CampaignResult,
    as_document,
    breakdown,
    layer_kind,
    notes,
    rates_by_measure,
)
from ft2.verdict import (
    Allocation,
    Budget,
    Cell,
    Counts,
    Stratum,
    always_valid_interval,
    decide_early,
    interval,
    interval_for_new_prompts,
    strata_by_top_bit,
    weighted_interval,
)
from tests.report.test_report import result, trial

LAYERS = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "transformer.h.0.attn.c_attn"]


def fault(layer: str, step: int, bits: str) -> str:
    return f"call=0,step={step},layer={layer},row=0,position=0,neuron=1,bits={bits},encoding=fp16"


RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["masked", "sdc", "due", None]),
        st.sampled_from(LAYERS),
        st.integers(0, 3),
        st.sampled_from(["0", "14", "3:14"]),
    )
)


def records(drawn: list[tuple[str | None, str, int, str]]) -> list[dict[str, Any]]:
    return [
        trial(number, outcome, fault=fault(layer, step, bits))
        for number, (outcome, layer, step, bits) in enumerate(drawn)
    ]


@given(RECORDS)
def test_the_parts_of_each_breakdown_add_up_to_the_trials_with_an_outcome(
    drawn: list[tuple[str | None, str, int, str]],
) -> None:
    trials = records(drawn)
    known = [each["outcome"] for each in trials if each["outcome"]]
    for parts in breakdown(trials).values():
        assert sum(part["trials"] for part in parts.values()) == len(known)
        for outcome in ("masked", "sdc", "due"):
            assert sum(part[outcome] for part in parts.values()) == known.count(outcome)
        for part in parts.values():
            assert part["interval"] == [*interval(part["sdc"], part["trials"])]


def test_a_fault_counts_under_its_phase_its_kind_of_layer_and_its_highest_bit() -> None:
    trials = records([("sdc", LAYERS[0], 0, "3:14"), ("masked", LAYERS[1], 2, "0")])
    found = breakdown(trials)
    assert found["phase"]["first"]["sdc"] == 1
    assert found["phase"]["later"]["sdc"] == 0
    assert found["layer_kind"]["mlp.up_proj"]["trials"] == 2
    assert list(found["bit"]) == ["0", "14"]
    assert found["bit"]["14"]["sdc"] == 1


def test_a_trial_that_died_with_its_fault_is_in_no_part() -> None:
    found = breakdown([trial(0, "due", fault=None)])
    assert found == {"phase": {}, "layer_kind": {}, "bit": {}}


def test_kinds_are_paths_inside_the_block() -> None:
    assert layer_kind("model.layers.3.mlp.experts.7.up_proj") == "mlp.experts.up_proj"
    assert layer_kind("decoder.final") == "decoder.final"


def test_each_measure_has_a_rate_and_an_interval_that_holds_it() -> None:
    weights = {"elements": 5.0, "macs": 2.0, "time": 1.0}
    trials = [trial(0, "sdc", weights=weights)]
    trials += [
        trial(number, weights={"elements": 0.5, "macs": 0.8, "time": 1.0})
        for number in range(1, 200)
    ]
    found = rates_by_measure(trials, {"elements": 5.0, "macs": 2.0, "time": 0.9})
    for name, rate in (("elements", 4.785), ("macs", 1.241), ("time", 0.5)):
        assert found[name]["rate"] == pytest.approx(rate, abs=1e-3)
        low, high = found[name]["interval"]
        assert low <= rate <= high
    unknown = rates_by_measure(trials, None)
    assert {each["interval"] for each in unknown.values()} == {None}
    assert rates_by_measure([], {"macs": 1.0})["macs"] == {"rate": None, "interval": None}


def several_prompts(**values: Any) -> list[dict[str, Any]]:
    return [
        trial(number, params=f"p{number % 4}", fault=fault(LAYERS[0], 1, "0"), **values)
        for number in range(40)
    ]


def test_new_prompts_have_an_interval_of_their_own_beside_that_of_these() -> None:
    found = result(several_prompts())
    campaign = as_document([found], {})["campaigns"][0]
    assert campaign["interval"] == pytest.approx([0, 8.81], abs=0.01)
    assert campaign["interval_for_new_prompts"] == pytest.approx([0, 63.12], abs=0.01)
    assert "For new prompts like these, each of which counts once: 0.00\N{EN DASH}63.12 %." in (
        notes(found)
    )
    one = result([trial(number) for number in range(40)])
    assert one.interval_for_new_prompts is None


def test_the_chance_of_another_verdict_is_printed_unless_the_campaign_proves_nothing() -> None:
    near = result([trial(number, "sdc" if number < 2 else "masked") for number in range(400)])
    assert near.chance_of_another_verdict == pytest.approx(45, abs=10)
    assert any("would decide otherwise with a chance of 4" in line for line in notes(near))
    assert result([trial(0, None)]).chance_of_another_verdict is None
    dues = result([trial(number, "due") for number in range(10)])
    assert dues.chance_of_another_verdict is None


def test_after_an_early_stop_every_interval_holds_at_every_look() -> None:
    trials = several_prompts()
    counts = Counts(400, 40, 0, 0)
    found = result(
        trials,
        counts=counts,
        verdict=decide_early(counts, Budget(100)),
        stop={"after": 40, "saved": 360, "not_counted": 0},
        largest_weights={"elements": 1.0, "macs": 1.0, "time": 1.0},
    )
    campaign = as_document([found], {})["campaigns"][0]
    exact = [*always_valid_interval(0, 40)]
    assert campaign["interval"] == campaign["breakdown"]["bit"]["0"]["interval"] == exact
    # That for new prompts does as it is.
    assert campaign["interval_for_new_prompts"] == pytest.approx([0, 63.12], abs=0.01)
    low, high = weighted_interval([1.0] * 40, [False] * 40, 1.0, planned=400)
    assert campaign["measures"]["macs"] == {"rate": 0.0, "interval": [low, high]}
    # What may be looked at again and again proves less than a number that was fixed.
    assert high > weighted_interval([1.0] * 40, [False] * 40, 1.0)[1]


def test_after_an_early_stop_prompts_that_were_not_all_asked_say_nothing_of_new_ones() -> None:
    trials = several_prompts()
    counts = Counts(400, 40, 0, 0)
    asked = [{"params": each} for each in dict.fromkeys(trial["params"] for trial in trials)]
    for golden, excluded, is_told in (
        (asked, [], True),
        ([*asked, {"params": "never"}], [], False),
        ([*asked, {"params": "never"}], ["never"], True),
    ):
        found = result(
            trials,
            counts=counts,
            verdict=decide_early(counts, Budget(100)),
            stop={"after": 40, "saved": 360, "not_counted": 0},
            golden=golden,
            excluded=excluded,
        )
        assert (found.interval_for_new_prompts is not None) is is_told


TOP, OTHERS = "top-exponent-bit", "other-bits"
FIRST, UNIFORM, HOT = 40, 30, 30
PLANNED = FIRST + UNIFORM + HOT


def stratified(
    ends: list[tuple[bool, bool, int]], bits: tuple[str, str] = ("14", "3"), prompts: int = 2
) -> CampaignResult:
    """Return a campaign over strata: whether a trial is hot, an SDC, and its step."""
    numbers = [*range(FIRST + UNIFORM), *range(PLANNED, PLANNED + HOT)]
    trials = []
    for number, (drawn_hot, wrong, step) in zip(numbers, ends, strict=True):
        hot = drawn_hot or number >= PLANNED
        trials.append(
            trial(
                number,
                "sdc" if wrong else "masked",
                params=f"p{number % prompts}",
                stratum=TOP if hot else OTHERS,
                fault=fault(LAYERS[0], step, bits[0] if hot else bits[1]),
                weights={"macs": 1.0 if step else 3.0},
            )
        )
    seen = {name: [one for one in trials if one["stratum"] == name] for name in (TOP, OTHERS)}
    masses = {
        Cell("mlp.up_proj", phase, int(each.rpartition(":")[2]), top, 12 if top else -8): weight / 2
        for each, top, weight in ((bits[0], True, 0.2), (bits[1], False, 0.8))
        for phase in ("first", "later")
    }
    parted = strata_by_top_bit(masses)
    return result(
        trials,
        allocation=Allocation(FIRST, UNIFORM, (HOT, 0), parted),
        strata=[
            Stratum(name, weight, len(seen[name]), _sdcs(seen[name]), 0)
            for name, weight in zip(parted.names, parted.weights, strict=True)
        ],
        masses=masses,
        shares={f"p{number}": parted.weights for number in range(prompts)},
        largest_weights={"macs": 3.0},
    )


def _sdcs(trials: list[dict[str, Any]]) -> int:
    return sum(each["outcome"] == "sdc" for each in trials)


ENDS = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 2)),
    min_size=FIRST + UNIFORM + HOT,
    max_size=FIRST + UNIFORM + HOT,
)


@settings(deadline=None, max_examples=40)
@given(ENDS)
def test_over_strata_each_part_and_measure_has_an_interval_that_holds_its_rate(
    ends: list[tuple[bool, bool, int]],
) -> None:
    campaign = as_document([stratified(ends)], {})["campaigns"][0]
    parts = [each for found in campaign["breakdown"].values() for each in found.values()]
    for each in (*parts, campaign["measures"]["macs"]):
        low, high = each["interval"]
        assert 0 <= low <= each["rate"] <= high <= 100


def test_over_strata_the_trials_that_decided_where_to_draw_prove_nothing_of_a_part() -> None:
    # All SDCs are among the first trials: the interval is that of the others.
    ends = [(number % 5 == 0, number % 5 == 0 and number < FIRST, 1) for number in range(PLANNED)]
    later_hot = HOT + UNIFORM // 5
    found = as_document([stratified(ends)], {})["campaigns"][0]["breakdown"]
    hot, cold = found["bit"]["14"], found["bit"]["3"]
    assert (hot["sdc"], cold["sdc"]) == (8, 0)
    assert hot["interval"] == [0.0, max(hot["rate"], interval(0, later_hot)[1])]
    assert cold["interval"] == [*interval(0, UNIFORM - UNIFORM // 5)]
    # Each stratum's interval may go wrong in half of the cases, and counts by its share.
    bounds = [interval(0, some, 0.975)[1] for some in (later_hot, UNIFORM - UNIFORM // 5)]
    whole = found["phase"]["later"]["interval"]
    assert whole == pytest.approx([0.0, 0.2 * bounds[0] + 0.8 * bounds[1]])


def test_a_highest_bit_that_faults_of_both_strata_can_have_counts_each_by_its_share() -> None:
    ends = [(number % 2 == 0, number >= FIRST + UNIFORM, 1) for number in range(PLANNED)]
    several = stratified(ends, ("14:15", "3:15"))
    part = as_document([several], {})["campaigns"][0]["breakdown"]["bit"]["15"]
    assert part["trials"] == PLANNED
    hot, cold = interval(HOT, HOT + UNIFORM // 2, 0.975), interval(0, UNIFORM // 2, 0.975)
    low, high = (0.2 * hot[end] + 0.8 * cold[end] for end in range(2))
    assert part["interval"] == pytest.approx([min(low, part["rate"]), high])


def test_prompts_weigh_strata_by_their_own_shares() -> None:
    wrong = [(number % 4 < 2, number % 4 < 2, 1) for number in range(PLANNED)]
    found = stratified(wrong)
    other = replace(found, shares={"p0": (0.2, 0.8), "p1": (0.6, 0.4)})
    hot = [each for each in found.trials if each["stratum"] == TOP and each["trial"] >= FIRST]
    rates = [
        share * _sdcs(some) / len(some)
        for prompt, share in (("p0", 0.2), ("p1", 0.6))
        for some in ([each for each in hot if each["params"] == prompt],)
    ]
    assert other.interval_for_new_prompts == pytest.approx(
        interval_for_new_prompts([(rate, 1) for rate in rates])
    )


def test_a_part_without_later_trials_in_a_stratum_may_be_anything_there() -> None:
    ends = [(False, False, 0 if number < FIRST + UNIFORM else 1) for number in range(PLANNED)]
    part = as_document([stratified(ends)], {})["campaigns"][0]["breakdown"]["phase"]["first"]
    assert part["interval"][1] >= 20


def test_over_strata_new_prompts_have_an_interval_by_the_later_trials_of_each() -> None:
    ends = [(number % 4 < 2, number < FIRST, 1) for number in range(PLANNED)]
    assert stratified(ends).interval_for_new_prompts == interval_for_new_prompts([(0, 1)] * 2)
    wrong = [(number % 4 < 2, number % 2 == 0, 1) for number in range(PLANNED)]
    found = stratified(wrong).interval_for_new_prompts
    assert found == pytest.approx(interval_for_new_prompts([(1, 1), (0, 1)]))
    # A prompt without a trial in one of the strata has no rate.
    assert stratified([(True, False, 1)] * PLANNED).interval_for_new_prompts is None


def test_counting_and_reporting_need_no_torch() -> None:
    code = "import sys, ft2.report, pytest_ft2.ledger; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
