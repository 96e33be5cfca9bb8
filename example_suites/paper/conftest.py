"""Fixtures of the paper's suite: the models of Table 2, their questions, and figures' numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import Bench
from evaluate import HERE, MINIATURES, load_questions, read_data
from figures import Figure, Selection
from ft2.faults import format_of
from precision import Precision
from protections import protections
from pytest_ft2.options import SETTINGS
from readers import BadFileError, Question
from results import Cell, Entry, Results
from subject import NEW_TOKENS, TooFewQuestionsError, make_subject
from trials import FaultSet

# A miniature's matrices are so small that a second thread would mostly be waited for.
torch.set_num_threads(1)

_QUESTIONS = pytest.StashKey[dict[str, list[Question]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the official files, and how many of their questions are asked."""
    group = parser.getgroup("paper", "the evaluation of FT2 (HPDC '25)")
    group.addoption(
        "--paper-data",
        action="append",
        default=[],
        metavar="TASK=FILE",
        help="squad=dev-v2.0.json, xtreme=xquad.de.json or gsm8k=test.jsonl, in place of the "
        "miniatures' questions; can be repeated",
    )
    group.addoption(
        "--paper-questions",
        type=int,
        default=10,
        metavar="N",
        help="questions of each model and task (the paper: 50); default 10",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the questions before anything is collected."""
    try:
        data = [read_data(text) for text in config.getoption("--paper-data")]
        config.stash[_QUESTIONS] = load_questions(data)
    except (BadFileError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    if config.getoption("--paper-questions") < 1:
        raise pytest.UsageError("--paper-questions should be a whole number from 1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ask each model of the test's task each question."""
    mark = metafunc.definition.get_closest_marker("paper")
    if mark is None or "model" not in metafunc.fixturenames:
        return
    task = mark.kwargs["task"]
    questions = metafunc.config.stash[_QUESTIONS].get(task, [])
    given = metafunc.config.getoption("--ft2-model")
    if given is None:
        names = mark.kwargs.get("models") or [n for n, tasks in MINIATURES.items() if task in tasks]
    else:
        names = [given]
    ids = [name.rstrip("/").rpartition("/")[2] for name in names]
    metafunc.parametrize(
        "model",
        names if questions else [],
        ids=ids if questions else None,
        indirect=True,
        scope="session",
    )
    if "question" in metafunc.fixturenames:
        asked = questions[: metafunc.config.getoption("--paper-questions")]
        metafunc.parametrize("question", asked, ids=[question.id for question in asked])


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Any:
    """Return the model under test: a miniature in fp32, or what ``--ft2-model`` names."""
    if request.config.getoption("--ft2-model") is not None:
        return request.getfixturevalue("ft2_model")
    folder = HERE / "miniatures" / request.param
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer(model: Any) -> Any:
    """Return the tokenizer saved beside the model under test."""
    return AutoTokenizer.from_pretrained(model.name_or_path)


@pytest.fixture
def say(request: pytest.FixtureRequest, model: Any, tokenizer: Any) -> Callable[[Question], str]:
    """Return what answers a question of the test's task: 60 new tokens, mathematics 180."""
    new_tokens = NEW_TOKENS[_task(request)]

    def answer(question: Question) -> str:
        prompt = tokenizer(question.prompt, return_tensors="pt").to(model.device)
        said = model.generate(**prompt, max_new_tokens=new_tokens, do_sample=False)
        return str(
            tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        )

    return answer


@dataclass(frozen=True)
class Numbers:
    """What a figure is made of.

    Attributes
    ----------
    entries:
        By the faults and the protection's label.
    facts:
        What was read off the model, and measured without faults.
    """

    entries: dict[tuple[FaultSet, str], Entry]
    facts: dict[str, Any]

    def of(self, label: str, faults: FaultSet | None = None) -> Entry:
        """Return the entry of a protection, of those faults or of the only ones there are."""
        found = [
            entry
            for (those, name), entry in self.entries.items()
            if name == label and faults in (None, those)
        ]
        (entry,) = found
        return entry


@pytest.fixture
def measured(request: pytest.FixtureRequest, model: Any, tokenizer: Any) -> Callable[..., Numbers]:
    """Return what measures a figure of the paper with the test's model and task."""
    settings = request.config.stash[SETTINGS]
    questions = request.config.stash[_QUESTIONS]
    task = _task(request)
    name = Path(model.name_or_path).name

    def measure(figure: Figure, encoding: str | None = settings.encoding) -> Numbers:
        arithmetic = format_of(model.get_input_embeddings().weight.dtype).name
        precision = Precision(arithmetic, encoding or arithmetic)
        try:
            subject = make_subject(
                name,
                task,
                precision,
                model,
                tokenizer,
                questions[task],
                wanted=request.config.getoption("--paper-questions"),
            )
        except TooFewQuestionsError as error:
            pytest.fail(str(error), pytrace=False)
        selection = Selection(
            subjects=((name, task),),
            named=True,
            precisions=(str(precision),),
            fault_models=(settings.fault_model,),
            protections=tuple(protections().values()),
            trials=settings.faults,
        )
        others = {each: there for each, there in questions.items() if each != task}
        results = Results()
        bench = Bench(
            subject, results, settings.faults, settings.seed, others=others, progress=False
        )
        needs = figure.needs(bench, selection)
        if needs and not settings.faults:
            pytest.skip("no faults are injected: --ft2-faults=500 measures")
        bench.run(needs)
        figure.measure_more(bench, selection)
        # Shown when the test fails, or with -rP.
        print(figure.heading(), figure.table(results, selection), sep="\n\n")
        cells = {need: Cell(bench.place, need.faults, need.protection.label) for need in needs}
        entries = {need: results.get(cell) for need, cell in cells.items()}
        return Numbers(
            {
                (need.faults, need.protection.label): entry
                for need, entry in entries.items()
                if entry is not None
            },
            bench.facts,
        )

    return measure


def _task(request: pytest.FixtureRequest) -> str:
    return str(request.node.get_closest_marker("paper").kwargs["task"])
