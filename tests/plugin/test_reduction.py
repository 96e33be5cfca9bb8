"""Tests that demand that the protection cuts SDCs."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import RIGHT, Project

REDUCTION = f"""
import pytest
from conftest import generate

RIGHT = {RIGHT}

def right(model):
    return generate(model) == RIGHT

def test_met(model, sdc_reduction):
    pairs = sdc_reduction(lambda: right(model), at_least=5, faults=100)
    assert pairs.trials == 100
    assert pairs.after < pairs.before
    assert sdc_reduction(lambda: right(model), at_least=5, faults=100) == pairs
    assert right(model)

def test_not_met(model, sdc_reduction):
    def asserts():
        assert right(model)
        return True
    sdc_reduction(asserts, at_least=100, faults=60)

def test_not_proven(model, sdc_reduction):
    sdc_reduction(lambda: right(model), at_least=10, faults=20, confidence=0.99)

def test_wrong_anyway(model, sdc_reduction):
    sdc_reduction(lambda: generate(model) == [1], at_least=10)

def test_deaf(model, sdc_reduction):
    sdc_reduction(lambda: bool(generate(model)), at_least=10)

def test_another_model(sdc_reduction):
    sdc_reduction(lambda: True, at_least=10)

def test_refused(model, sdc_reduction):
    for given, sentence in (
        ({{"at_least": 0}}, "at_least should be a number above 0"),
        ({{"at_least": 50, "faults": 0}}, "faults should be a whole number from 1, not 0"),
        ({{"at_least": 50, "confidence": 95}}, "confidence should be None or between"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sdc_reduction(lambda: right(model), **given)
"""


def test_a_protection_passes_only_where_it_cuts_sdcs_by_what_is_asked(project: Project) -> None:
    project.pytester.makepyfile(test_it=REDUCTION)
    result = project.run("-rA")
    result.assert_outcomes(passed=2, failed=5)
    result.stdout.fnmatch_lines(["PASSED test_it.py::test_met", "PASSED test_it.py::test_refused"])
    for test, sentence in {
        "test_not_met": "fail: * of 60 faults were SDCs before and * after, * and 100 % fewer *",
        "test_not_proven": "inconclusive: * with 99 % confidence neither proof nor disproof *",
        "test_wrong_anyway": "The model answers wrongly without any fault.",
        "test_deaf": "The answer counts as right when the model talks noise, *",
        "test_another_model": "What was asked did not call the model that the fixture returned*",
    }.items():
        result.stdout.fnmatch_lines([f"*_ {test} _*", sentence])


def test_a_comparison_needs_a_protection_and_no_gate(project: Project) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest

        def test_none(sdc_reduction):
            with pytest.raises(ValueError, match="there is no protection to compare with"):
                sdc_reduction(lambda: True, at_least=10)
        """,
        test_gated="""
        import pytest

        @pytest.mark.sdc_budget(1)
        def test_both(model, sdc_reduction):
            pass
        """,
    )
    project.run("test_it.py", "--ft2-protection=none").assert_outcomes(passed=1)
    result = project.run("test_gated.py", "--ft2-faults=5")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*by sdc_reduction cannot be gated too: take sdc_budget off."])
