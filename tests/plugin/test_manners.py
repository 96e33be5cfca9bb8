"""What the plugin costs those who have it installed: nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pytest_ft2.options import SETTINGS
from pytest_ft2.plan import GatePlan
from tests.plugin.conftest import RIGHT, Project

HEAVY = ("torch", "transformers", "numpy", "scipy", "tabulate", "tokenizers", "safetensors")


def test_the_entry_module_imports_nothing_heavy() -> None:
    code = "import sys, json, pytest_ft2.plugin; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    loaded = json.loads(output)
    assert not set(loaded) & set(HEAVY)
    ours = {name for name in loaded if name.partition(".")[0] in ("ft2", "pytest_ft2")}
    assert ours == {"pytest_ft2", "pytest_ft2.plugin", "pytest_ft2.marks", "pytest_ft2.options"}


WATCHED = f"""
import sys

def test_nothing_heavy_is_loaded():
    assert not set(sys.modules) & {set(HEAVY)!r}
"""


def test_a_run_without_the_options_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(WATCHED)
    pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cov").assert_outcomes(passed=1)


def test_a_gated_test_alone_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        import sys

        @pytest.mark.sdc_budget(1)
        def test_nothing_heavy_is_loaded():
            assert not set(sys.modules) & {set(HEAVY)!r}
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cov")
    result.assert_outcomes(passed=1)


def test_many_planned_trials_are_few_items(project: Project) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.sdc_budget(1)
        def test_answer(model):
            pass
        """
    )
    result = project.run("--ft2-faults=100000", "--collect-only", "-q")
    ids = [line for line in result.outlines if "::" in line]
    assert len(ids) == 202
    assert ids[:2] == ["test_it.py::test_answer", "test_it.py::test_answer[faults-0-499]"]
    assert ids[-2:] == [
        "test_it.py::test_answer[faults-99500-99999]",
        "test_it.py::test_answer[gate]",
    ]


@pytest.mark.parametrize(
    ("arguments", "chunks"),
    [((), ["0-49", "50-99", "100-119"]), (("--ft2-chunk=60",), ["0-59", "60-119"])],
)
def test_chunks_cover_all_trials_once(
    project: Project, arguments: tuple[str, ...], chunks: list[str]
) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.sdc_budget(1)
        def test_answer(model):
            pass
        """
    )
    result = project.run("--ft2-faults=120", "--collect-only", "-q", *arguments)
    ids = [line.partition("[")[2] for line in result.outlines if "[" in line]
    assert ids == [*(f"faults-{chunk}]" for chunk in chunks), "gate]"]


def test_chunks_grow_with_the_plan_and_stay_enough_to_be_shared_out() -> None:
    plans = {planned: GatePlan.default_chunk(planned) for planned in (*range(0, 20_000, 7), 10**6)}
    chunks = list(plans.values())
    assert chunks == sorted(chunks)
    assert (plans[0], plans[7 * 2285], plans[7 * 2286], plans[10**6]) == (50, 450, 500, 1000)
    assert all(planned / chunk >= 32 for planned, chunk in plans.items() if chunk > 50)


@pytest.mark.parametrize("option", ["--setup-only", "--setup-plan"])
def test_options_that_run_no_body_run_no_trials(project: Project, option: str) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.sdc_budget(1)
        def test_answer(model):
            raise AssertionError
        """
    )
    result = project.run("--ft2-faults=5", option)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*gate]*")


def test_the_header_shows_only_when_campaigns_are_on(project: Project) -> None:
    project.pytester.makepyfile("def test_nothing(): pass")
    result = project.run("--ft2-faults=7", "--ft2-seed=3")
    result.stdout.fnmatch_lines(["ft2: 7 faults per gate, fault model exp, protection ft2, seed 3"])
    for arguments in ((), ("--ft2-faults=0",)):
        result = project.run(*arguments)
        result.stdout.no_fnmatch_line("ft2:*")


@pytest.mark.parametrize("faults", ["0", "5"])
def test_nothing_of_ours_is_written_into_config(pytester: pytest.Pytester, faults: str) -> None:
    config = pytester.parseconfigure(f"--ft2-faults={faults}")
    assert config.stash[SETTINGS].faults == int(faults)
    assert not [name for name in vars(config) if "ft2" in name]


def test_the_model_has_its_own_classes_again_after_the_session(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        from conftest import generate
        from transformers import LlamaForCausalLM

        BEFORE = []

        def classes(model):
            return [type(module) for module in model.modules()]

        def test_before(model):
            BEFORE.extend(classes(model))

        @pytest.mark.sdc_budget(100)
        def test_answer(model):
            assert generate(model) == {RIGHT}

        def test_after(model):
            assert type(model) is LlamaForCausalLM
            assert classes(model) == BEFORE
        """
    )
    project.run("--ft2-faults=5").assert_outcomes(passed=5)
