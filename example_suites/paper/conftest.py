"""Fixtures of the paper's suite: the models of Table 2, their questions, and figures' numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import Bench
from evaluate import MINIATURES, load_questions, miniature, read_data
from figures import Figure, Selection
from ft2.faults import format_of
from precision import Precision
from protections import NONE, protections
from pytest_ft2.options import SETTINGS
from readers import BadFileError, Question
from results import Cell, Entry, Results, pairs
from subject import Subject, TooFewQuestionsError, make_subject
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
    group.addoption(
        "--paper-new-tokens",
        type=int,
        metavar="N",
        help="of an answer, at most; default: as in the paper, 60, mathematics 180",
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
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", [task], indirect=True, scope="session")
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(metafunc.config.getoption("--paper-questions")))


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Any:
    """Return the model under test: a miniature in fp32, or what ``--ft2-model`` names."""
    if request.config.getoption("--ft2-model") is not None:
        return request.getfixturevalue("ft2_model")
    try:
        folder = miniature(request.param)
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer(model: Any) -> Any:
    """Return the tokenizer saved beside the model under test."""
    return AutoTokenizer.from_pretrained(model.name_or_path)


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, model: Any, tokenizer: Any) -> Subject:
    """Choose questions of a task: some of those that the model answers rightly.

    That asks the model, so it is done once and before any trial.
    """
    arithmetic = format_of(model.get_input_embeddings().weight.dtype).name
    encoding = request.config.stash[SETTINGS].encoding
    task = request.param
    try:
        return make_subject(
            Path(model.name_or_path).name,
            task,
            Precision(arithmetic, encoding or arithmetic),
            model,
            tokenizer,
            request.config.stash[_QUESTIONS][task],
            wanted=request.config.getoption("--paper-questions"),
            new_tokens=request.config.getoption("--paper-new-tokens"),
        )
    except TooFewQuestionsError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def question(subject: Subject, number: int) -> Question:
    """Return a question of the test's task that the model answers rightly."""
    return subject.asked[number].question


@pytest.fixture
def say(subject: Subject, model: Any, tokenizer: Any) -> Callable[[Question], str]:
    """Return what answers a question."""
    new_tokens = subject.new_tokens

    def answer(question: Question) -> str:
        prompt = tokenizer(question.prompt, return_tensors="pt").to(model.device)
        said = model.generate(**prompt, max_new_tokens=new_tokens, do_sample=False)
        new = said[0, prompt["input_ids"].shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True))

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

    def points_above_none(self, label: str, faults: FaultSet | None = None) -> float:
        """Return how far a protection's SDC rate lies above that without any, on the same faults.

        Where none of them does harm, nothing can be said: the test is skipped.
        """
        before = self.of(NONE, faults)
        if not before.sdc:
            pytest.skip(f"none of {before.trials} faults became an SDC: --ft2-faults takes more")
        return pairs([before], [self.of(label, faults)]).difference


@pytest.fixture
def measured(request: pytest.FixtureRequest, subject: Subject) -> Callable[..., Numbers]:
    """Return what measures a figure of the paper with the test's model and task."""
    settings = request.config.stash[SETTINGS]
    questions = request.config.stash[_QUESTIONS]
    task = subject.task

    def measure(figure: Figure, encoding: str = subject.precision.encoding) -> Numbers:
        there = replace(subject, precision=replace(subject.precision, encoding=encoding))
        selection = Selection(
            subjects=((there.name, task),),
            named=True,
            precisions=(str(there.precision),),
            fault_models=(settings.fault_model,),
            protections=tuple(protections().values()),
            trials=settings.faults,
        )
        others = {each: those for each, those in questions.items() if each != task}
        results = Results()
        bench = Bench(
            there,
            results,
            settings.faults,
            settings.seed,
            others=others,
            new_tokens=request.config.getoption("--paper-new-tokens"),
            progress=False,
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
