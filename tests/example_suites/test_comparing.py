"""What is compared: protections, precisions, and the paper's own numbers."""

from __future__ import annotations

import pytest

from ft2.protection import POLICIES
from precision import Precision
from protections import FT2, ZERO, protections
from published import paper_says, rates, reduction, table_1, table_2


def test_every_registered_policy_is_compared_and_ft2_in_both_readings() -> None:
    found = protections()
    assert [*found][:7] == [
        "none",
        "ranger",
        "maximals",
        "global-clipper",
        "ft2-offline",
        FT2,
        ZERO,
    ]
    assert {each.policy for each in found.values()} == set(POLICIES)
    assert (found[ZERO].policy, found[ZERO].correction) == (FT2, "zero")
    assert [label for label, each in found.items() if each.is_profiled] == [
        "ranger",
        "maximals",
        "global-clipper",
        "ft2-offline",
    ]


def test_a_policy_of_an_experiment_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "all but v_proj", lambda settings: POLICIES["none"](settings))
    assert "all but v_proj" not in protections()


@pytest.mark.parametrize("text", ["fp16", "bf16", "fp32", "fp32:fp16", "fp32:bf16"])
def test_a_precision_is_shown_as_it_is_given(text: str) -> None:
    assert str(Precision.parse(text)) == text


def test_an_arithmetic_and_its_own_encoding_are_named_once() -> None:
    assert str(Precision.parse("fp16:fp16")) == "fp16"
    assert Precision.parse("bf16").is_half
    assert not Precision.parse("fp32:fp16").is_half


@pytest.mark.parametrize("text", ["", "fp8", "fp64", "fp16:fp32", "fp16:bf16", "half"])
def test_a_precision_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no precision"):
        Precision.parse(text)


def test_a_miniature_is_asked_about_as_the_model_that_it_stands_for() -> None:
    said = paper_says("13", model="opt-2.7b-mini", task="xtreme", faults="exp", protection="none")
    assert said == "9.79 %"
    assert paper_says("13", model="opt-2.7b", task="squad", faults="exp", protection="none") == ""


def test_the_papers_averages_are_those_of_its_text() -> None:
    assert reduction() == 92.92
    assert sorted(rates(), key=rates().__getitem__) == [
        "ft2-offline",
        "ft2",
        "maximals",
        "global-clipper",
        "ranger",
    ]
    # "an average of 2.08% for the models and datasets studied in this work" (section 1).
    rivals = [rates()[name] for name in ("ranger", "maximals", "global-clipper")]
    assert sum(rivals) / 3 == pytest.approx(2.08, abs=0.005)


def test_only_two_models_solve_word_problems() -> None:
    assert [name for name, tasks in table_2().items() if "gsm8k" in tasks] == [
        "llama2-7b",
        "qwen2-7b",
    ]
    assert table_1()["ft2"] == table_1()["critical"]
