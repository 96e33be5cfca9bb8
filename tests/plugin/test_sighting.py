"""When a run is attached to the model: with the first fixture of the test's own scope."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import RIGHT, Project


def test_a_module_scoped_fixture_that_calls_the_model_is_no_part_of_a_trial(
    project: Project,
) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest, random, torch
        from conftest import generate

        PROMPTS = [torch.tensor([[1, 5, 9, 11]]), torch.tensor([[1, 7, 20, 3]])]

        @pytest.fixture(scope="module", params=[0, 1])
        def prompt(request):
            random.random()
            return PROMPTS[request.param]

        @pytest.fixture(scope="module")
        def right(model, prompt):
            return generate(model, prompt)

        @pytest.mark.sdc_budget(90)
        def test_answer(model, prompt, right):
            assert generate(model, prompt) == right
        """
    )
    result = project.run("--ft2-faults=60", "--ft2-json=out.json")
    campaign = project.json()["campaigns"][0]
    assert result.ret == pytest.ExitCode.OK, campaign["reason"]
    assert [golden["calls"] for golden in campaign["golden"]] == [1, 1]
    assert campaign["sdc"] > 0


def test_a_function_scoped_fixture_that_calls_the_model_is_part_of_a_trial(
    project: Project,
) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        from conftest import generate

        @pytest.fixture
        def answer(model):
            return generate(model)

        @pytest.mark.sdc_budget(90)
        def test_answer(answer):
            assert answer == {RIGHT}
        """
    )
    project.run("--ft2-faults=60", "--ft2-json=out.json")
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass", campaign["reason"]
    assert campaign["golden"][0]["calls"] == 1
    assert campaign["sdc"] > 0
