"""Options, their ini twins and the marker: what they accept, and which of them wins."""

from __future__ import annotations

import inspect
from enum import Enum, IntEnum
from pathlib import Path

import pytest

from ft2.faults import FAULT_MODELS, FORMATS
from ft2.protection.correction import CORRECTIONS
from ft2.protection.policies import POLICIES
from pytest_ft2 import options
from pytest_ft2.marks import SIGNATURE, _signature, read_mark
from tests.plugin.conftest import RIGHT, Project

FLAGS = [
    "faults",
    "fault-model",
    "protection",
    "bounds",
    "correction",
    "seed",
    "sampling",
    "chunk",
    "encoding",
    "trial-timeout",
    "json",
    "replay",
    "model",
    "device",
    "dtype",
]

BAD = [
    ("faults", "many", "should be a whole number from 0 to 10000000"),
    ("faults", "-1", "should be a whole number from 0 to 10000000"),
    ("faults", "1.5", "should be a whole number from 0 to 10000000"),
    ("faults", "10000001", "should be a whole number from 0 to 10000000"),
    ("fault-model", "3-bit", "should be one of 1-bit, 2-bit, exp"),
    ("protection", "magic", f"should be one of {', '.join(options.PROTECTIONS)}"),
    ("bounds", "no/such/file.json", "should be a file that is there"),
    ("correction", "round", "should be one of clip, zero"),
    ("seed", "x", "should be a whole number from 0 to 18446744073709551599"),
    ("seed", str(2**64), "should be a whole number from 0 to 18446744073709551599"),
    ("sampling", "wise", "should be one of uniform, stratified"),
    ("chunk", "0", "should be a whole number from 1"),
    ("encoding", "fp7", "should be one of fp16, bf16, fp32, fp64, fp8-e4m3, fp8-e5m2"),
    ("trial-timeout", "0", "should be a number of seconds above 0, up to 1000000"),
    ("trial-timeout", "1e300", "should be a number of seconds above 0, up to 1000000"),
    ("trial-timeout", "inf", "should be a number of seconds above 0, up to 1000000"),
    ("trial-timeout", "soon", "should be a number of seconds above 0, up to 1000000"),
    ("json", "no/such/folder/out.json", "should be a file in a directory that exists"),
    ("json", ".", "should be a file in a directory that exists"),
    ("replay", "test_it.py", "should read TEST#TRIAL, such as test_qa.py::test_capital#137"),
    ("replay", "a.py::b#x", "should read TEST#TRIAL, such as test_qa.py::test_capital#137"),
    ("model", " ", "should not be empty"),
    ("device", " ", "should not be empty"),
    ("dtype", "int4", "should be one of float32, float16, bfloat16, auto"),
]

PLAIN = """
def test_nothing():
    pass
"""

GATED = f"""
import pytest
from conftest import generate

@pytest.mark.sdc_budget(100)
def test_answer(model):
    assert generate(model) == {RIGHT}
"""


@pytest.fixture
def bare(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project without a model."""
    pytester.makepyfile(test_it=PLAIN)
    return pytester


@pytest.mark.parametrize(("flag", "value", "sentence"), BAD)
def test_a_bad_value_is_refused_with_one_sentence(
    bare: pytest.Pytester, flag: str, value: str, sentence: str
) -> None:
    result = bare.runpytest_inprocess(f"--ft2-{flag}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: --ft2-{flag}: {sentence}, not {value!r}" in result.stderr.str()


@pytest.mark.parametrize(("flag", "value", "sentence"), [bad for bad in BAD if bad[1].strip()])
def test_a_bad_value_in_the_ini_file_is_refused_with_one_sentence(
    bare: pytest.Pytester, flag: str, value: str, sentence: str
) -> None:
    name = f"ft2_{flag.replace('-', '_')}"
    bare.makeini(f"[pytest]\n{name} = {value}\n")
    result = bare.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: ini option {name}: {sentence}, not {value!r}" in result.stderr.str()


def test_an_option_without_a_value_is_refused(bare: pytest.Pytester) -> None:
    result = bare.runpytest_inprocess("--ft2-faults=")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        "--ft2-faults: should be a whole number from 0 to 10000000, not ''" in result.stderr.str()
    )


def test_the_help_shows_every_option_with_its_default_and_its_ini_twin(
    bare: pytest.Pytester,
) -> None:
    text = " ".join(bare.runpytest_inprocess("--help").stdout.str().split())
    for flag in FLAGS:
        assert f"--ft2-{flag}=" in text
        assert f"(ini: ft2_{flag.replace('-', '_')})" in text
        assert f"ft2_{flag.replace('-', '_')} (string):" in text
    assert "ft2_model_fixture (string):" in text
    assert "soft errors in language models (ft2):" in text


def test_the_marker_is_listed_with_its_signature(bare: pytest.Pytester) -> None:
    bare.runpytest_inprocess("--markers").stdout.fnmatch_lines([f"@pytest.mark.{SIGNATURE}: *"])


def test_the_listed_signature_is_the_one_that_is_checked() -> None:
    listed = inspect.signature(eval(f"lambda {SIGNATURE[len('sdc_budget(') : -1]}: None"))
    checked = inspect.signature(_signature)
    assert list(listed.parameters) == list(checked.parameters)
    for name, parameter in listed.parameters.items():
        assert parameter.default == checked.parameters[name].default
        assert parameter.kind == checked.parameters[name].kind


@pytest.mark.parametrize("faults", ["0", "3"])
def test_strict_markers_and_strict_config_know_the_plugin(project: Project, faults: str) -> None:
    project.pytester.makepyfile(test_it=GATED)
    result = project.run("--strict-markers", "--strict-config", f"--ft2-faults={faults}")
    assert result.ret == pytest.ExitCode.OK


def test_the_names_are_those_of_the_registries() -> None:
    assert set(options.FAULT_MODELS) == set(FAULT_MODELS)
    assert set(options.PROTECTIONS) == set(POLICIES)
    assert set(options.ENCODINGS) == set(FORMATS)
    assert set(options.CORRECTIONS) == set(CORRECTIONS)
    profiled = {name for name, each in POLICIES.items() if hasattr(each, "places")}
    assert set(options.PROFILED_PROTECTIONS) == profiled


def asked(project: Project, *arguments: str) -> tuple[object, ...]:
    result = project.run("--ft2-json=out.json", "--ft2-faults=3", *arguments)
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    names = ("planned", "fault_model", "protection", "seed", "encoding")
    return tuple(campaign[name] for name in names)


def test_an_option_beats_the_ini_file(project: Project) -> None:
    project.pytester.makepyfile(test_it=GATED)
    project.pytester.makeini(
        """
        [pytest]
        ft2_model_fixture = model
        ft2_faults = 2
        ft2_fault_model = 2-bit
        ft2_protection = none
        ft2_seed = 7
        ft2_encoding = fp16
        """
    )
    assert asked(project) == (3, "2-bit", "none", 7, "fp16")
    assert asked(
        project,
        "--ft2-fault-model=1-bit",
        "--ft2-protection=ft2",
        "--ft2-seed=0",
        "--ft2-encoding=bf16",
    ) == (3, "1-bit", "ft2", 0, "bf16")


def test_the_ini_file_alone_switches_campaigns_on_and_an_option_off(project: Project) -> None:
    project.pytester.makepyfile(test_it=GATED)
    project.pytester.makeini("[pytest]\nft2_model_fixture = model\nft2_faults = 2\n")
    project.run().assert_outcomes(passed=3)
    project.run("--ft2-faults=0").assert_outcomes(passed=1)


def test_a_marker_beats_an_option(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=GATED.replace(
            "budget(100)", 'budget(100, faults=2, fault_model="2-bit", protection="none")'
        )
    )
    assert asked(project, "--ft2-fault-model=1-bit", "--ft2-protection=ft2") == (
        2,
        "2-bit",
        "none",
        0,
        "fp16",
    )


def test_without_faults_a_marker_starts_no_campaign(project: Project) -> None:
    project.pytester.makepyfile(test_it=GATED.replace("(100)", "(100, faults=5)"))
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ft2: 1 gated test ran once, without faults*"])


_PROTECTIONS = ", ".join(map(repr, (None, *options.PROTECTIONS)))

BAD_MARKERS = [
    ("", "missing a required argument: 'percent'; write sdc_budget(percent, "),
    ("1, 2", "too many positional arguments; write sdc_budget("),
    ("1, faulty=3", "got an unexpected keyword argument 'faulty'; write sdc_budget("),
    ("'1'", "percent should be a number from 0 to 100, not '1'"),
    ("-1", "percent should be a number from 0 to 100, not -1"),
    ("101", "percent should be a number from 0 to 100, not 101"),
    ("float('nan')", "percent should be a number from 0 to 100, not nan"),
    ("True", "percent should be a number from 0 to 100, not True"),
    ("1, due_budget=None", "due_budget should be a number from 0 to 100, not None"),
    ("1, confidence=95", "confidence should be None or a number between 0.5 and 1, such as 0.95"),
    ("1, confidence=1", "confidence should be None or a number between 0.5 and 1, such as 0.95"),
    ("1, confidence=0.5", "confidence should be None or a number between 0.5 and 1"),
    ("1, faults=0", "faults should be None or a whole number from 1 to 10000000, not 0"),
    ("1, faults=2.0", "faults should be None or a whole number from 1 to 10000000, not 2.0"),
    ("1, faults=10**7 + 1", "faults should be None or a whole number from 1 to 10000000, not"),
    ("1, fault_model='3-bit'", "fault_model should be one of None, '1-bit', '2-bit', 'exp', not"),
    ("1, protection='magic'", f"protection should be one of {_PROTECTIONS}, not 'magic'"),
    ("1, protection=['ft2']", f"protection should be one of {_PROTECTIONS}, not ['ft2']"),
    ("1, golden='maybe'", "golden should be one of 'require', 'exclude', not 'maybe'"),
    ("1, per='test'", "per should be one of 'model', 'params', not 'test'"),
]


@pytest.mark.parametrize("faults", ["0", "5"])
@pytest.mark.parametrize(("arguments", "sentence"), BAD_MARKERS)
def test_a_bad_marker_is_refused_at_collection(
    project: Project, arguments: str, sentence: str, faults: str
) -> None:
    project.pytester.makepyfile(test_it=GATED.replace("(100)", f"({arguments})"))
    result = project.run(f"--ft2-faults={faults}")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    assert f"test_it.py::test_answer: sdc_budget: {sentence}" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_marker_of_a_class_or_module_counts_and_the_closest_wins(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        from conftest import generate

        pytestmark = pytest.mark.sdc_budget(90)

        @pytest.mark.sdc_budget(80)
        class TestIt:
            def test_one(self, model):
                assert generate(model) == {RIGHT}

            @pytest.mark.sdc_budget(70)
            def test_two(self, model):
                assert generate(model) == {RIGHT}

        def test_three(model):
            assert generate(model) == {RIGHT}
        """
    )
    project.run("--ft2-faults=2", "--ft2-json=out.json").assert_outcomes(passed=9)
    assert [each["budget"] for each in project.json()["campaigns"]] == [80, 70, 90]


REFUSED = {
    "async": (
        """
        @pytest.mark.sdc_budget(1)
        async def test_answer(model):
            pass
        """,
        "sdc_budget on an async test needs a plugin that runs it",
    ),
    "unittest method": (
        """
        import unittest

        class Case(unittest.TestCase):
            @pytest.mark.sdc_budget(1)
            def test_answer(self):
                pass
        """,
        "sdc_budget does not work on unittest.TestCase methods yet: make it a plain function",
    ),
    "unittest class": (
        """
        import unittest

        @pytest.mark.sdc_budget(1)
        class Case(unittest.TestCase):
            def test_answer(self):
                pass
        """,
        "sdc_budget does not work on unittest.TestCase methods yet: make it a plain function",
    ),
    "unittest in a marked module": (
        """
        import unittest

        pytestmark = pytest.mark.sdc_budget(1)

        class Case(unittest.TestCase):
            def test_answer(self):
                pass
        """,
        "sdc_budget does not work on unittest.TestCase methods yet: make it a plain function",
    ),
    "subtests": (
        """
        @pytest.mark.sdc_budget(1)
        def test_answer(model, subtests):
            pass
        """,
        "sdc_budget does not work with the subtests fixture yet: parametrise the test instead",
    ),
    "both models": (
        """
        @pytest.mark.sdc_budget(1)
        def test_answer(protected_model, unprotected_model):
            pass
        """,
        "protected_model and unprotected_model are the same model: a test uses one of them",
    ),
    "both models, not gated": (
        """
        def test_answer(protected_model, unprotected_model):
            pass
        """,
        "protected_model and unprotected_model are the same model: a test uses one of them",
    ),
    "faults by hand": (
        """
        @pytest.mark.sdc_budget(1)
        def test_answer(model, fault_injector):
            pass
        """,
        "a test that places faults by hand with fault_injector cannot be gated too: take "
        "sdc_budget off",
    ),
    "unprotected by the fixture, protected by the marker": (
        """
        @pytest.mark.sdc_budget(1, protection="ft2")
        def test_answer(unprotected_model):
            pass
        """,
        "the test uses unprotected_model, and its marker says protection='ft2'",
    ),
    "protected by the fixture, unprotected by the marker": (
        """
        @pytest.mark.sdc_budget(1, protection="none")
        def test_answer(protected_model):
            pass
        """,
        "the test uses protected_model, and its marker says protection='none'",
    ),
    "an id that is ours": (
        """
        @pytest.mark.sdc_budget(1)
        @pytest.mark.parametrize("name", ["gate", "other"])
        def test_answer(model, name):
            pass
        """,
        "test_answer[gate] is the name of a test and of what ft2 puts beside it: rename the "
        "parameter's id",
    ),
    "ids that stacked parameters share": (
        """
        @pytest.mark.sdc_budget(1)
        @pytest.mark.parametrize("question", ["US-capital", "capital"])
        @pytest.mark.parametrize("language", ["en", "en-US"])
        def test_answer(model, language, question):
            pass
        """,
        "2 parameter sets are all called test_answer[en-US-capital], and a gate tells them apart "
        "by their names: give their parameters other ids",
    ),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_cannot_be_gated_is_refused_at_collection(project: Project, kind: str) -> None:
    body, sentence = REFUSED[kind]
    project.pytester.makepyfile(test_it="import pytest\n" + inspect.cleandoc(body))
    result = project.run("--ft2-faults=5")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert sentence in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_model_fixture_that_is_nowhere_is_refused_at_collection(project: Project) -> None:
    project.pytester.makepyfile(test_it=GATED)
    project.pytester.makeini("[pytest]\nft2_model_fixture = llm\n")
    result = project.run("--ft2-faults=5")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert (
        "test_it.py::test_answer: there is no fixture 'llm': name the fixture that returns the "
        "model with the ini option ft2_model_fixture." in result.stdout.str()
    )


def test_a_json_file_is_written_where_the_option_says(project: Project, tmp_path: Path) -> None:
    project.pytester.makepyfile(test_it=GATED)
    project.run("--ft2-faults=2", f"--ft2-json={tmp_path / 'deep.json'}")
    assert (tmp_path / "deep.json").exists()


def test_a_marker_is_read_whole() -> None:
    mark = pytest.mark.sdc_budget(1, confidence=0.9, due_budget=2, per="params").mark
    budget = read_mark(mark)
    assert (budget.percent, budget.confidence, budget.due_budget) == (1.0, 0.9, 2)
    assert (budget.faults, budget.golden, budget.per) == (None, "require", "params")


def test_what_a_marker_asks_for_is_plain_even_if_it_is_given_as_enumerations() -> None:
    class Names(str, Enum):
        EXP = "exp"
        EXCLUDE = "exclude"

    class Numbers(IntEnum):
        ONE = 1

    budget = read_mark(
        pytest.mark.sdc_budget(
            Numbers.ONE, faults=Numbers.ONE, fault_model=Names.EXP, golden=Names.EXCLUDE
        ).mark
    )
    assert (budget.faults, budget.fault_model, budget.golden) == (1, "exp", "exclude")
    assert {type(value) for value in vars(budget).values()} == {float, int, str, type(None)}


@pytest.mark.parametrize(
    "marks",
    [
        "[pytest.param(1, marks=pytest.mark.sdc_budget(100)), 2]",
        "[1, pytest.param(2, marks=pytest.mark.sdc_budget(0))]",
        "[pytest.param(n, marks=pytest.mark.sdc_budget(n)) for n in (1, 2)]",
    ],
)
def test_budgets_on_single_parameter_sets_are_refused(project: Project, marks: str) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.parametrize("n", {marks})
        def test_answer(model, n):
            pass
        """
    )
    result = project.run("--ft2-faults=4")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*sdc_budget on some parameter sets alone would leave*"])


LATE_MARKS = """

@pytest.hookimpl(HOW)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.sdc_budget(5), append=False)
"""


TOO_LATE = (
    "test_it.py::test_answer got its sdc_budget marker after it was collected (by a "
    "pytest_collection_modifyitems or pytest_itemcollected hook, or while it ran), too late for a "
    "gate: put the marker on the function, on its class, or in its module's pytestmark"
)


def write_late_marks(project: Project, how: str) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + LATE_MARKS.replace("HOW", how))


@pytest.mark.parametrize("how", ["", "trylast=True"])
@pytest.mark.parametrize("mark", ["", "@pytest.mark.sdc_budget(100)"])
def test_a_marker_that_comes_after_collection_is_refused(
    project: Project, mark: str, how: str
) -> None:
    project.pytester.makepyfile(test_it=GATED.replace("@pytest.mark.sdc_budget(100)", mark))
    write_late_marks(project, how)
    result = project.run("--ft2-faults=5")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {TOO_LATE}" in result.stderr.str()
    project.run("--ft2-faults=0").assert_outcomes(passed=1)


def test_with_workers_a_marker_that_comes_after_collection_is_refused_once(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=GATED)
    write_late_marks(project, "")
    result = project.run_apart("-n2", "--ft2-faults=5", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=1)
    assert TOO_LATE in result.outlines
    assert project.json()["campaigns"] == []


def test_a_marker_that_a_conftest_gives_to_a_module_is_heard(project: Project) -> None:
    project.pytester.makepyfile(test_it=GATED.replace("@pytest.mark.sdc_budget(100)", ""))
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """

@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule():
    module = yield
    module.add_marker(pytest.mark.sdc_budget(100))
    return module
"""
    )
    project.run("--ft2-faults=5").assert_outcomes(passed=3)


@pytest.mark.parametrize("where", ["errors", "failed"])
def test_a_marker_that_a_running_test_gives_itself_fails_it(project: Project, where: str) -> None:
    late = """

@pytest.fixture(autouse=True)
def late(request):
    request.applymarker(pytest.mark.sdc_budget(0))
"""
    in_body = """
import pytest

@pytest.mark.xfail
def test_answer(request):
    request.applymarker(pytest.mark.sdc_budget(0))
    assert False
"""
    plain = GATED.replace("@pytest.mark.sdc_budget(100)", "@pytest.mark.xfail")
    project.pytester.makepyfile(test_it=plain + late if where == "errors" else in_body)
    result = project.run("--ft2-faults=5")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(**{where: 1})
    assert TOO_LATE in result.outlines
    assert "ft2: no gate ran: mark a test with " in result.stdout.str()
