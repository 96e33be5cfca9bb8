"""Fill the tables of the evaluation of FT2 (HPDC '25): Figures 2, 3, 6, 9, 11, 13, 15, Table 1.

With the miniatures, from the project's root:

    python example_suites/paper/evaluate.py --faults 2000 --json paper.json --markdown paper.md

with a real model and the official files, on an accelerator:

    python example_suites/paper/evaluate.py --ft2-model meta-llama/Llama-2-7b-hf --device cuda \
        --data squad=dev-v2.0.json gsm8k=test.jsonl --full-length --faults 25000 --json llama.json

Results are written after each step; the same command goes on where it was interrupted, and a larger
--faults adds to what is there. README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import ft2
from bench import Bench
from figures import FIGURES, Figure, Selection
from ft2.faults import FAULT_MODELS
from judging import JUDGES
from precision import Precision
from protections import protections
from published import MINIATURE, table_2
from readers import BadFileError, Question, read_questions
from results import Place, Results
from subject import NEW_TOKENS, Subject, TooFewQuestionsError, make_subject

__all__ = ["MINIATURES", "load_questions", "main", "miniature", "read_data"]

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
MINIATURES = {f"{name}{MINIATURE}": tasks for name, tasks in table_2().items()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    known = protections()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--figures", nargs="+", choices=list(FIGURES), default=list(FIGURES), metavar="NUMBER")
    add(
        "--faults",
        nargs="+",
        type=_positive,
        default=[500],
        help="for each number of a table; several: first so many for all of them, then more",
    )
    add(
        "--dtype",
        nargs="+",
        type=_told(Precision.parse),
        default=[Precision.parse("fp16"), Precision.parse("fp32")],
    )
    add(
        "--fault-models", nargs="+", choices=sorted(FAULT_MODELS), default=["1-bit", "2-bit", "exp"]
    )
    add("--policies", nargs="+", choices=list(known), default=list(known), metavar="NAME")
    add("--models", nargs="+", choices=list(MINIATURES), default=[], metavar="NAME")
    add("--ft2-model", nargs="+", default=[], metavar="PATH_OR_ID", help="in place of miniatures")
    add("--tasks", nargs="+", choices=list(JUDGES), default=list(JUDGES))
    add("--data", nargs="+", type=_told(read_data), default=[], metavar="TASK=FILE")
    add("--questions", type=_positive, default=50, help="answered rightly, of each task")
    add("--profile", type=_positive, default=100, help="other questions, for offline bounds")
    add("--new-tokens", type=_positive, help="at most; as in the paper: 60, mathematics 180")
    add("--full-length", action="store_true", help="go on past the end token, as the paper does")
    add("--device", default="cpu")
    add("--rows", type=_positive, help="of a batch, at most")
    add("--share-batches", action="store_true", help="among questions, in half precision too")
    add("--processes", type=_positive, default=1, help="models and tasks measured at once")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="results; an earlier run's are added to")
    add("--markdown", type=Path, metavar="FILE", help="the tables")
    add("--tables-only", action="store_true", help="of what the --json file holds")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number from 1, not {text!r}")
    return int(text)


def read_data(text: str) -> tuple[str, Path]:
    """Read ``TASK=FILE``.

    Raises
    ------
    ValueError
        If the task is unknown.
    """
    task, equals, name = text.partition("=")
    if not equals or task not in JUDGES:
        raise ValueError(f"data is TASK=FILE with one of {', '.join(JUDGES)} as TASK, not {text!r}")
    return task, Path(name)


def _told(read: Callable[[str], T]) -> Callable[[str], T]:
    """Have the command line say why a value is refused."""

    def reader(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return reader


def load_questions(data: Iterable[tuple[str, Path]]) -> dict[str, list[Question]]:
    """Read the questions of each task, from its files or, if none is given, the miniatures' own.

    Raises
    ------
    BadFileError
        If a file is missing or not in its format.
    """
    files: dict[str, list[Path]] = {}
    for task, path in data:
        files.setdefault(task, []).append(path)
    if not files:
        files = {task: [HERE / "questions" / f"{task}.jsonl"] for task in JUDGES}
    return {
        task: [question for path in paths for question in read_questions(task, path)]
        for task, paths in files.items()
    }


def subjects_of(arguments: argparse.Namespace, tasks: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of a model and a task that are asked for and can be measured."""
    there = [task for task in arguments.tasks if task in set(tasks)]
    if arguments.ft2_model:
        return [(_name(path), task) for path in arguments.ft2_model for task in there]
    chosen = arguments.models or list(MINIATURES)
    return [(name, task) for name in chosen for task in there if task in MINIATURES[name]]


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def miniature(name: str) -> Path:
    """Return a miniature's folder.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    folder = HERE / "miniatures" / name
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"there is no miniature in {folder}: train.py makes it, or name a model of yours with "
            "--ft2-model"
        )
    return folder


def load_model(path: str, precision: Precision, device: str) -> tuple[Any, Any]:
    """Return a model in eval mode, and its tokenizer."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=precision.dtype, use_safetensors=True
    )
    return model.to(device).eval(), AutoTokenizer.from_pretrained(path)


class Evaluation:
    """Everything that one command measures."""

    def __init__(self, arguments: argparse.Namespace, progress: bool = True) -> None:
        self._arguments = arguments
        self._progress = progress
        self._questions: dict[str, list[Question]] = {}
        self.figures: list[Figure] = [FIGURES[name] for name in arguments.figures]
        self.results = Results.open(arguments.json)
        if not arguments.tables_only:
            self._questions = load_questions(arguments.data)
        known = protections()
        self.selection = Selection(
            subjects=tuple(subjects_of(arguments, self._questions or JUDGES)),
            named=bool(arguments.models or arguments.ft2_model),
            precisions=tuple(str(each) for each in arguments.dtype),
            fault_models=tuple(arguments.fault_models),
            protections=tuple(known[label] for label in arguments.policies),
            trials=max(arguments.faults),
        )

    def run(self) -> None:
        """Measure what is not known yet."""
        started, known = time.perf_counter(), self.results.trials
        places = self._places()
        try:
            if self._arguments.processes == 1:
                for trials in sorted(self._arguments.faults):
                    self.measure(places, trials)
            else:
                self._measure_apart(places)
        finally:
            if self.results.trials > known:
                run = {
                    "trials": self.results.trials - known,
                    "seconds": time.perf_counter() - started,
                    "device": self._arguments.device,
                    "processes": self._arguments.processes,
                }
                self.results.runs.append(run)
            self.results.save()

    def _places(self) -> list[Place]:
        """Return where anything is measured: precisions one after the other, models together."""
        selection = self.selection
        places = {place for figure in self.figures for place in figure.places(selection)}
        models = dict.fromkeys(model for model, _ in selection.subjects)
        pairs = [pair for name in models for pair in selection.subjects if pair[0] == name]
        wanted = [Place(*pair, precision) for precision in selection.precisions for pair in pairs]
        return [place for place in wanted if place in places]

    def measure(self, places: Iterable[Place], trials: int) -> None:
        """Measure some places, one after the other, so many trials for each number."""
        arguments = self._arguments
        self.results.environment = {
            "ft2": ft2.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        paths = {_name(path): path for path in arguments.ft2_model}
        loaded: tuple[str, str] | None = None
        for place in places:
            precision = Precision.parse(place.precision)
            if loaded != (place.model, place.precision):
                path = paths.get(place.model) or str(miniature(place.model))
                model, tokenizer = load_model(path, precision, arguments.device)
                loaded = place.model, place.precision
            self._measure(self._subject(place, precision, model, tokenizer), trials)

    def _measure_apart(self, places: list[Place]) -> None:
        """Measure places in processes of their own; what goes wrong in one waits for the others."""
        # Where answers are long, trials are: these first, so that none of them is left for the end.
        places = sorted(places, key=lambda place: -NEW_TOKENS[place.task])
        levels = sorted(self._arguments.faults)
        failed: list[BaseException] = []
        with self._parts() as folder, _processes(self._arguments.processes) as pool:
            jobs: dict[Future[None], _Job] = {}

            def submit(job: _Job) -> None:
                jobs[pool.submit(_measure_part, self._arguments, job)] = job

            for number, place in enumerate(places):
                path = folder / f"{number}.json"
                self.results.at(place, path).save()
                submit(_Job(place, path, levels[0]))
            with tqdm(total=len(places) * len(levels), unit="place") as bar:
                while jobs:
                    for done in wait(jobs, return_when=FIRST_COMPLETED).done:
                        job = jobs.pop(done)
                        self._take(job.path)
                        bar.update()
                        error = done.exception()
                        if error is not None:
                            failed.append(error)
                        elif (level := levels.index(job.trials) + 1) < len(levels):
                            # Behind those that have had fewer.
                            submit(replace(job, trials=levels[level]))
                    self.results.save()
        if failed:
            raise failed[0]

    @contextmanager
    def _parts(self) -> Iterator[Path]:
        """Give a folder for what processes measure; what is in it in the end is taken over."""
        path = self.results.path
        if path is None:
            folder = Path(tempfile.mkdtemp())
        else:
            folder = path.with_name(f"{path.name}.parts")
            folder.mkdir(exist_ok=True)
        try:
            # A run that was killed left them.
            self._take(*folder.glob("*.json"))
            yield folder
        finally:
            self._take(*folder.glob("*.json"))
            self.results.save()
            shutil.rmtree(folder)

    def _take(self, *files: Path) -> None:
        for file in files:
            part = Results.open(file)
            self.results.add(part)
            self.results.environment = part.environment or self.results.environment

    def _subject(self, place: Place, precision: Precision, model: Any, tokenizer: Any) -> Subject:
        arguments = self._arguments
        return make_subject(
            place.model,
            place.task,
            precision,
            model,
            tokenizer,
            self._questions[place.task],
            wanted=arguments.questions,
            profiled=arguments.profile,
            seed=arguments.seed,
            new_tokens=arguments.new_tokens,
            full_length=arguments.full_length,
        )

    def _measure(self, subject: Subject, trials: int) -> None:
        arguments, selection = self._arguments, self.selection
        others = {task: each for task, each in self._questions.items() if task != subject.task}
        bench = Bench(
            subject,
            self.results,
            trials,
            arguments.seed,
            arguments.rows,
            arguments.share_batches,
            others=others,
            new_tokens=arguments.new_tokens,
            progress=self._progress,
        )
        figures = [each for each in self.figures if bench.place in each.places(selection)]
        bench.run(need for figure in figures for need in figure.needs(bench, selection))
        for figure in figures:
            figure.measure_more(bench, selection)
        self.results.save()

    def tables(self) -> str:
        """Return all tables, in Markdown."""
        parts = []
        for figure in self.figures:
            parts += [figure.heading(), figure.table(self.results, self.selection)]
        return "\n\n".join(parts)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(arguments: argparse.Namespace) -> None:
    """Set up a process that measures."""
    transformers.logging.disable_progress_bar()
    if not arguments.ft2_model:
        # Matrices of a miniature are so small that a second thread would mostly be waited for.
        torch.set_num_threads(1)
    elif arguments.processes > 1:
        torch.set_num_threads(max(1, _cores() // arguments.processes))


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes; when it ends early, so do they."""
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    others = multiprocessing.active_children()
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        started = [each for each in multiprocessing.active_children() if each not in others]
        for process in started:
            process.terminate()
        for process in started:
            process.join()
        raise
    pool.shutdown()


@dataclass(frozen=True)
class _Job:
    """What a process measures: a place, into a file of its own, so many trials for each number."""

    place: Place
    path: Path
    trials: int


def _measure_part(arguments: argparse.Namespace, job: _Job) -> None:
    _prepare(arguments)
    alone = copy.copy(arguments)
    alone.json = job.path
    Evaluation(alone, progress=False).measure([job.place], job.trials)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = parse(given)
    started = time.perf_counter()
    _prepare(arguments)
    try:
        evaluation = Evaluation(arguments)
        if not arguments.tables_only:
            evaluation.run()
    except KeyboardInterrupt:
        kept = f"what is complete is in {arguments.json}" if arguments.json else "nothing is kept"
        print(f"interrupted: {kept}", file=sys.stderr)
        return 130
    except (BadFileError, TooFewQuestionsError, OSError, ValueError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    tables = evaluation.tables()
    print(tables)
    print(f"\n{time.perf_counter() - started:.0f} seconds")
    if arguments.markdown:
        arguments.markdown.write_text(tables + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
