"""Does the rule tell the truth? Leave one kind of projection unprotected, and count wrong answers.

The experiment of FT2 (HPDC '25), Figure 6: every kind of projection of the decoder blocks is
protected except one, faults strike anywhere, and the rate of silent data corruption (SDC) says how
much that kind needed its protection. Beside it stands the rule's answer (``Projection.critical``),
which reads the model's computation and runs no fault. All protections meet the same faults, so each
is compared with "all protected" fault by fault. ``--in-kind`` asks more sharply: the faults strike
only the kind that is left out.

Run it from the project's root: ``python benchmarks/leave_one_out.py [--in-kind] [--json FILE]
[llama opt] [--model FOLDER PROMPTS]``. ``benchmarks/README.md`` says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from scipy.stats import binomtest, fisher_exact
from tabulate import tabulate
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import ft2
from ft2.campaign import Outcome, Recorder, is_harness_error
from ft2.faults import FAULT_MODELS, Draw, Fault, FaultModel, Space, fault_model
from ft2.layers import projections
from ft2.layers.parts import Part, part_of, parts_of
from ft2.protection import POLICIES
from ft2.protection.policies.chosen_parts import ChosenPartsPolicy
from ft2.verdict import interval

QUICKSTART = Path(__file__).resolve().parent.parent / "example_suites" / "quickstart"
ENCODING = "fp16"
SIGNIFICANT = 0.05
EVERYTHING, BY_RULE, NOTHING = "all protected", "ft2", "none"


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes
    ----------
    arguments:
        What ``generate`` is called with.
    is_right:
        Judges the row of token ids that it returns.
    """

    arguments: dict[str, Any]
    is_right: Callable[[Tensor], bool]

    def repeated(self, rows: int) -> dict[str, Any]:
        """Return the arguments for a batch that asks this question `rows` times."""
        return {
            name: value.repeat(rows, 1) if isinstance(value, Tensor) else value
            for name, value in self.arguments.items()
        }


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked."""

    title: str
    model: Any
    questions: list[Question]


@dataclass(frozen=True)
class Trial:
    """One fault into the answer to one question."""

    question: Question
    fault: Fault


def quickstart(name: str) -> Subject:
    """Return a model of the quickstart suite; the suite's own assertions judge the answers."""
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "models" / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "models" / name)
    suite = runpy.run_path(str(QUICKSTART / "test_quickstart.py"))
    cases = [(suite["test_capital"], each) for each in suite["CAPITALS"]]
    cases += [(suite["test_sum"], each) for each in suite["SUMS"]]

    def question(test: Callable[..., None], parameters: tuple[Any, ...]) -> Question:
        arguments: dict[str, Any] = {}

        def listen(**given: Any) -> Tensor:
            arguments.update(given)
            said: Tensor = model.generate(**given)
            return said

        def is_right(said: Tensor) -> bool:
            try:
                test(SimpleNamespace(generate=lambda **_: said[None]), tokenizer, *parameters)
            except Exception:
                return False
            return True

        test(SimpleNamespace(generate=listen), tokenizer, *parameters)
        return Question(arguments, is_right)

    return Subject(f"quickstart {name}", model.eval(), [question(*case) for case in cases])


def saved(folder: str, prompts: str, new_tokens: int) -> Subject:
    """Return a saved model; the right answer is the one without a fault, token by token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pad = model.config.pad_token_id
    questions = []
    for line in Path(prompts).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            ids = torch.tensor([json.loads(line)])
        else:
            ids = AutoTokenizer.from_pretrained(folder)(line, return_tensors="pt")["input_ids"]
        arguments = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "pad_token_id": 0 if pad is None else pad,
        }
        golden = model.generate(**arguments)[0].tolist()
        questions.append(Question(arguments, partial(_starts_with, golden)))
    return Subject(f"{type(model).__name__} with {Path(prompts).name}", model, questions)


def _starts_with(golden: list[int], said: Tensor) -> bool:
    # In a batch, a row that has ended is padded until the last one ends.
    return said[: len(golden)].tolist() == golden


def answers(
    model: Any, policy: str, question: Question, faults: Sequence[Fault], batch: int
) -> list[Outcome]:
    """Ask the question once with each of the faults, as rows of batches.

    Raises
    ------
    RuntimeError
        If a fault did not land.
    """
    outcomes: list[Outcome] = []
    for start in range(0, len(faults), batch):
        rows = [replace(fault, row=row) for row, fault in enumerate(faults[start : start + batch])]
        with ft2.protect(model, policy), ft2.inject(model, rows) as injections:
            try:
                said = model.generate(**question.repeated(len(rows)))
            except Exception as error:
                if is_harness_error(error):
                    raise
                said = None
        if said is None:
            # Which of the rows made the model raise shows only when they run one at a time.
            alone = len(rows) == 1
            outcomes += [Outcome.DUE] if alone else answers(model, policy, question, rows, 1)
            continue
        missed = [str(each.fault) for each in injections if not each.landed]
        if missed:
            raise RuntimeError(f"these faults did not land under {policy}: {missed}")
        outcomes += [Outcome.MASKED if question.is_right(row) else Outcome.SDC for row in said]
    return outcomes


def run_trials(model: Any, policy: str, trials: Sequence[Trial], batch: int) -> list[Outcome]:
    """Return each trial's outcome; those with the same question share batches."""
    groups: dict[int, list[int]] = {}
    for number, trial in enumerate(trials):
        groups.setdefault(id(trial.question), []).append(number)
    outcomes: dict[int, Outcome] = {}
    for numbers in groups.values():
        faults = [trials[number].fault for number in numbers]
        said = answers(model, policy, trials[numbers[0]].question, faults, batch)
        outcomes.update(zip(numbers, said, strict=True))
    return [outcomes[number] for number in range(len(trials))]


def check_alone(
    model: Any, trials: Sequence[Trial], outcomes: dict[str, list[Outcome]], each: int = 25
) -> dict[str, int]:
    """Run a sample of the trials again, one at a time; half of it SDCs where there are any."""
    checked = equal = wrong = 0
    for policy, batched in outcomes.items():
        for outcome in (Outcome.SDC, Outcome.MASKED):
            numbers = [i for i, seen in enumerate(batched) if seen is outcome]
            for number in numbers[:: max(1, len(numbers) // each)][:each]:
                trial = trials[number]
                alone = answers(model, policy, trial.question, [trial.fault], 1)
                checked += 1
                wrong += outcome is Outcome.SDC
                equal += alone == [outcome]
    print(f"{checked} of these, {wrong} SDCs, ran again one at a time: {equal} came out alike.")
    return {"trials": checked, "sdc": wrong, "equal": equal}


def space_of(model: Any, question: Question) -> Space:
    """Return all sites of the answer to a question."""
    recorder = Recorder(model)
    model.generate(**question.arguments)
    recorder.stop()
    return recorder.golden().space


class PartOfSpace:
    """The sites of one part in a space."""

    def __init__(self, model: nn.Module, part: Part, space: Space) -> None:
        self._ranges = {
            projection.name: [
                (start, stop)
                for start, stop, critical in projection.columns
                if part_of(projection, critical) == part
            ]
            for projection in projections(model)
        }
        self._whole = space
        self.space = Space(
            tuple(
                replace(
                    step,
                    executions=tuple(
                        replace(execution, columns=self._width(execution.layer))
                        for execution in step.executions
                        if self._width(execution.layer)
                    ),
                )
                for step in space.steps
            )
        )

    def _width(self, layer: str) -> int:
        return sum(stop - start for start, stop in self._ranges[layer])

    @property
    def share(self) -> float:
        """The share of the whole space's faults that strike this part."""
        pairs = zip(self.space.steps, self._whole.steps, strict=True)
        shares = [part.elements / whole.elements for part, whole in pairs if whole.elements]
        return sum(shares) / len(shares)

    def sample(self, draw: Draw, bits: FaultModel) -> Fault:
        """Draw one fault."""
        fault = self.space.sample(draw, bits, ENCODING)
        neuron = fault.neuron
        for start, stop in self._ranges[fault.layer]:
            if neuron < stop - start:
                return replace(fault, neuron=start + neuron)
            neuron -= stop - start
        raise IndexError(fault.neuron)


@dataclass(frozen=True)
class Comparison:
    """One protection beside "all protected", on the same faults.

    Attributes
    ----------
    trials, sdc, due:
        Counts of this protection.
    base:
        SDCs of "all protected".
    only_here, only_base:
        Discordant pairs: faults whose SDC one of the two prevents and the other does not.
    p:
        McNemar's exact test: how likely discordant pairs this unequal are, were it a coin's toss.
    """

    trials: int
    sdc: int
    due: int
    base: int
    only_here: int
    only_base: int

    @classmethod
    def of(cls, here: Sequence[Outcome], base: Sequence[Outcome]) -> Comparison:
        """Compare outcomes of the same trials."""
        sdc, theirs = ([each is Outcome.SDC for each in outcomes] for outcomes in (here, base))
        return cls(
            trials=len(here),
            sdc=sum(sdc),
            due=sum(each is Outcome.DUE for each in here),
            base=sum(theirs),
            only_here=sum(a and not b for a, b in zip(sdc, theirs, strict=True)),
            only_base=sum(b and not a for a, b in zip(sdc, theirs, strict=True)),
        )

    @property
    def p(self) -> float:
        discordant = self.only_here + self.only_base
        return float(binomtest(self.only_here, discordant).pvalue) if discordant else 1.0

    @property
    def rate(self) -> float:
        """SDCs in per cent of the trials."""
        return 100 * self.sdc / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the rate."""
        return interval(self.sdc, self.trials)

    @property
    def rise(self) -> float:
        """The rate less that of "all protected", in percentage points."""
        return 100 * (self.only_here - self.only_base) / self.trials

    @property
    def rise_interval(self) -> tuple[float, float]:
        """At least 95 %: from exact 97.5 % intervals of both kinds of discordant pairs."""
        here, base = (interval(n, self.trials, 0.975) for n in (self.only_here, self.only_base))
        return here[0] - base[1], here[1] - base[0]

    @property
    def numbers(self) -> dict[str, Any]:
        """All of this, for a JSON file."""
        derived = {name: getattr(self, name) for name in ("rate", "interval", "rise", "p")}
        return {**asdict(self), **derived, "rise_interval": self.rise_interval}


def holm(values: Sequence[float]) -> list[float]:
    """Adjust the p values of one table, so that a table without any effect shows one in 20."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Row:
    """What leaving out one part did."""

    part: Part
    compared: Comparison
    p: float

    @property
    def measured(self) -> str:
        """What the numbers decide."""
        if self.p >= SIGNIFICANT:
            return "open"
        return "raises" if self.compared.rise > 0 else "lowers"


def rows_of(compared: dict[Part, Comparison]) -> list[Row]:
    """Return what leaving out each part did, with p adjusted for their number."""
    adjusted = holm([each.p for each in compared.values()])
    return [Row(*pair, p) for pair, p in zip(compared.items(), adjusted, strict=True)]


def findings(rows: Sequence[Row]) -> list[str]:
    """Say in sentences where the numbers and the rule part, kind by kind."""
    sentences = []
    for row in rows:
        compared = row.compared
        if row.measured == "lowers" or (row.measured == "raises" and not row.part.critical):
            sentences.append(
                f"Against the rule, read strictly: {row.part.label} is {row.part.rule}, yet "
                f"leaving it out {row.measured} the rate, by {compared.rise:+.3f} points."
            )
        elif row.part.critical and row.measured == "open":
            low, high = compared.rise_interval
            sentences.append(
                f"Not shown: {row.part.label} is critical; leaving it out changes the rate by "
                f"{low:+.3f} to {high:+.3f} points."
            )
    return sentences


def order(rows: Sequence[Row], p_of: Callable[[Row, Row], float]) -> list[str]:
    """Compare each critical kind with each other one: which raises the rate more, left out?

    Parameters
    ----------
    rows:
        Of one table.
    p_of:
        Tests whether two rises differ.
    """
    pairs = [(a, b) for a in rows if a.part.critical for b in rows if not b.part.critical]
    adjusted = holm([p_of(*pair) for pair in pairs])
    said: dict[str, list[str]] = {"as the rule says": [], "the other way": [], "open": []}
    for (critical, other), p in zip(pairs, adjusted, strict=True):
        larger = critical.compared.rise > other.compared.rise
        decided = "as the rule says" if larger else "the other way"
        name = f"{critical.part.label} and {other.part.label}"
        said["open" if p >= SIGNIFICANT else decided].append(name)
    counts = ", ".join(f"{len(names)} {way}" for way, names in said.items())
    sentences = [f"{len(pairs)} pairs of a critical and another kind: {counts}."]
    for way in ("the other way", "open"):
        if said[way]:
            sentences.append(f"  {way}: {'; '.join(said[way])}")
    return sentences


def _shown(value: float, around: tuple[float, float] | None = None, sign: str = "") -> str:
    text = f"{value:{sign}.3f}"
    return text if around is None else f"{text} [{around[0]:{sign}.3f}, {around[1]:{sign}.3f}]"


def _counts(compared: Comparison) -> list[Any]:
    return [
        compared.sdc,
        _shown(compared.rate, compared.interval),
        f"{compared.only_here}/{compared.only_base}",
        _shown(compared.rise, compared.rise_interval, "+"),
    ]


def _cells(row: Row) -> list[Any]:
    tested = [f"{row.p:.2g}" if row.p > 0 else "< 1e-300", row.measured]
    return [row.part.label, row.part.rule, *_counts(row.compared), *tested]


HEADERS = ["rule", "SDC", "rate % [95 %]", "only here/all", "rise [95 %]", "p", "leaving it out"]


class Experiment:
    """All protections of one model, and the trials that they meet.

    Parameters
    ----------
    subject:
        The model and its questions. Those whose answer some protection changes without any fault
        are left out.
    bits:
        The fault model's name.
    seed:
        Determines the faults.
    batch:
        Most rows of a batch.
    """

    def __init__(self, subject: Subject, bits: str, seed: int, batch: int) -> None:
        self.subject = subject
        self.model = subject.model
        self.parts = parts_of(self.model)
        self._projections = {each.name: each for each in projections(self.model)}
        self._bits = fault_model(bits)
        self._seed = seed
        self._batch = batch
        POLICIES[EVERYTHING] = partial(ChosenPartsPolicy, frozenset(self.parts).__contains__)
        for part in self.parts:
            POLICIES[self.without(part)] = partial(ChosenPartsPolicy, part.__ne__)
        self.policies = [EVERYTHING, *map(self.without, self.parts), BY_RULE, NOTHING]
        self.questions = [each for each in subject.questions if self._is_stable(each)]
        if not self.questions:
            raise SystemExit(f"{subject.title}: protection alone changes every answer")
        self._spaces = [space_of(self.model, each) for each in self.questions]

    @staticmethod
    def without(part: Part) -> str:
        """Name the protection that leaves out one part."""
        return f"all but {part.label}"

    def _is_stable(self, question: Question) -> bool:
        for policy in self.policies:
            with ft2.protect(self.model, policy):
                if not question.is_right(self.model.generate(**question.arguments)[0]):
                    return False
        return True

    def sample(self, count: int, part: Part | None = None) -> list[Trial]:
        """Draw faults from the whole space, or from one part's."""
        name = self.subject.title if part is None else f"{self.subject.title}, {part.label}"
        places = [None if part is None else PartOfSpace(self.model, part, s) for s in self._spaces]
        trials = []
        for number in range(count):
            at = number % len(self.questions)
            draw, place = Draw(self._seed, name, number), places[at]
            if place is None:
                fault = self._spaces[at].sample(draw, self._bits, ENCODING)
            else:
                fault = place.sample(draw, self._bits)
            trials.append(Trial(self.questions[at], fault))
        return trials

    def share(self, part: Part) -> float:
        """The share of all faults that strike one part."""
        spaces = self._spaces
        return sum(PartOfSpace(self.model, part, s).share for s in spaces) / len(spaces)

    def run(self, policy: str, trials: Sequence[Trial]) -> list[Outcome]:
        """Return the trials' outcomes under a protection."""
        return run_trials(self.model, policy, trials, self._batch)

    def anywhere(self, count: int) -> dict[str, Any]:
        """Print the table whose faults strike the whole space."""
        trials = self.sample(count)
        outcomes = {policy: self.run(policy, trials) for policy in self.policies}
        compared = {
            policy: Comparison.of(each, outcomes[EVERYTHING]) for policy, each in outcomes.items()
        }
        rows = rows_of({part: compared[self.without(part)] for part in self.parts})
        struck = Counter(
            self._part_at(trials[number].fault) for number in _wrong(outcomes[BY_RULE])
        )
        table = [[*_cells(row), struck[row.part]] for row in rows]
        totals = {EVERYTHING: "(nothing)", BY_RULE: "(all not critical)", NOTHING: "(everything)"}
        table += [[name, "", *_counts(compared[policy])] for policy, name in totals.items()]
        table[-2][-1:] = [table[-2][-1], "", "", sum(struck.values())]

        def p_of(a: Row, b: Row) -> float:
            pair = (outcomes[self.without(row.part)] for row in (a, b))
            return Comparison.of(*pair).p

        print(f"\nFaults anywhere, {len(trials)} under each protection")
        print(tabulate(table, ["left out", *HEADERS, "struck under ft2"]))
        print(*findings(rows), *order(rows, p_of), sep="\n")
        bare, ruled, full = (compared[name].sdc for name in (NOTHING, BY_RULE, EVERYTHING))
        if bare:
            some, most = (f"{100 * (bare - left) / bare:.0f} %" for left in (ruled, full))
            print(f"Of {bare} SDCs, ft2 prevents {some}, protecting all kinds {most}.")
        for policy, each in compared.items():
            if each.due:
                print(f"{each.due} faults made the model raise under {policy}.")
        return {
            "faults": [str(trial.fault) for trial in trials],
            "checked": check_alone(self.model, trials, outcomes),
            "protections": [
                {"protection": policy, "wrong": _wrong(outcomes[policy]), **each.numbers}
                for policy, each in compared.items()
            ],
        }

    def in_kind(self, count: int) -> list[dict[str, Any]]:
        """Print the table whose faults strike only the part that is left out."""
        results, compared, extra = [], {}, {}
        for part in self.parts:
            trials = self.sample(count, part)
            policies = (EVERYTHING, self.without(part), NOTHING)
            outcomes = {policy: self.run(policy, trials) for policy in policies}
            base = outcomes[EVERYTHING]
            each = {policy: Comparison.of(those, base) for policy, those in outcomes.items()}
            compared[part] = each[self.without(part)]
            share = self.share(part)
            extra[part] = [
                f"{100 * share:.1f}",
                *(_shown(each[policy].rate) for policy in (NOTHING, EVERYTHING)),
            ]
            results.append(
                {
                    "part": part.label,
                    "share": share,
                    "faults": [str(trial.fault) for trial in trials],
                    "protections": [
                        {"protection": policy, "wrong": _wrong(outcomes[policy]), **those.numbers}
                        for policy, those in each.items()
                    ],
                }
            )
        rows = rows_of(compared)
        table = [[*_cells(row), *extra[row.part]] for row in rows]

        def p_of(a: Row, b: Row) -> float:
            # Each kind met faults of its own. What "all protected" lets through is not the
            # omission's doing, and what only it lets through is next to nothing.
            caused = (row.compared.only_here for row in (a, b))
            return float(fisher_exact([[each, count - each] for each in caused]).pvalue)

        print(f"\nFaults only in the kind that is left out, {count} of each")
        columns = ["left out and struck", *HEADERS, "share %", "none %", "all %"]
        print(tabulate(table, columns))
        print(*findings(rows), *order(rows, p_of), sep="\n")
        return results

    def _part_at(self, fault: Fault) -> Part:
        projection = self._projections[fault.layer]
        return next(
            part_of(projection, critical)
            for start, stop, critical in projection.columns
            if start <= fault.neuron < stop
        )


def _wrong(outcomes: Sequence[Outcome]) -> list[int]:
    return [number for number, outcome in enumerate(outcomes) if outcome is Outcome.SDC]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="llama or opt, of the quickstart")
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        default=[],
        metavar=("FOLDER", "PROMPTS"),
        help="a saved model, and a file with a prompt on each line: text, or a JSON list of ids",
    )
    parser.add_argument("--new-tokens", type=int, default=24, help="of a --model's answers")
    parser.add_argument("--faults", type=int, default=10_000, help="under each protection")
    parser.add_argument("--fault-model", choices=sorted(FAULT_MODELS), default="exp")
    parser.add_argument("--in-kind", action="store_true", help="the second table, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="most rows; 1: one at a time")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    names = arguments.names or ([] if arguments.model else ["llama", "opt"])
    subjects: list[Callable[[], Subject]] = [partial(quickstart, name) for name in names]
    subjects += [
        partial(saved, folder, prompts, arguments.new_tokens) for folder, prompts in arguments.model
    ]
    results = []
    for load in subjects:
        started = time.perf_counter()
        subject = load()
        experiment = Experiment(subject, arguments.fault_model, arguments.seed, arguments.batch)
        print(
            f"\n== {subject.title}: {len(experiment.questions)} of {len(subject.questions)} "
            f"questions that no protection alone changes; {arguments.fault_model} in {ENCODING}"
        )
        for part in experiment.parts:
            print(f"{part.label}: {part.rule}: {part.reason}")
        result: dict[str, Any] = {
            "title": subject.title,
            "questions": len(experiment.questions),
            "dropped": len(subject.questions) - len(experiment.questions),
            "rule": {part.label: [part.critical, part.reason] for part in experiment.parts},
            "anywhere": experiment.anywhere(arguments.faults),
        }
        if arguments.in_kind:
            result["in_kind"] = experiment.in_kind(arguments.faults)
        result["seconds"] = time.perf_counter() - started
        print(f"{result['seconds']:.0f} seconds")
        results.append(result)
    if arguments.json:
        document = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "arguments": {**vars(arguments), "encoding": ENCODING},
            "models": results,
        }
        Path(arguments.json).write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main()
