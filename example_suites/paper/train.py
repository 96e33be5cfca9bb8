"""Train the seven miniatures of this suite from scratch.

Each of them is trained on the questions of the tasks that the paper gives its model, until it
answers questions it has not seen, or until the time is over. For each the script writes a folder
that ``from_pretrained`` loads, with its tokenizer and fp16 weights; then it asks the saved model
the test questions, in fp16 and in fp32, and prints one table. It exits with status 1 when a
miniature answers fewer than 90 % of them, or was not made.

Usage: ``python example_suites/paper/train.py --device cuda --minutes 7``, from the project's root.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks import TASKS, Question, questions
from tasks.__main__ import exam_questions
from tasks.vocabulary import build_tokenizer, save_tokenizer
from training.architectures import MINIATURES
from training.exam import share_answered
from training.examples import encode, load, save, training_examples
from training.loop import Limits, train

HERE = Path(__file__).resolve().parent
SEED = 0
VOCABULARY_QUESTIONS = 20_000
VALIDATION_QUESTIONS = 400
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Job:
    """What a process is told: the miniature to train, from what, where to, and when to stop."""

    name: str
    examples: Path
    tokenizer: Path
    out: Path
    device: str
    threads: int
    limits: Limits
    goes_on: bool


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        choices=list(MINIATURES),
        default=list(MINIATURES),
        help=f"which of {', '.join(MINIATURES)} (default: all)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="wall time for questions and training; the exam comes after (default: 60)",
    )
    parser.add_argument(
        "--steps", type=int, default=100_000, help="most steps for each model (default: 100000)"
    )
    parser.add_argument(
        "--target",
        type=float,
        default=0.995,
        help="share of the validation questions answered word for word that ends training early "
        "(default: 0.995)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=300_000,
        help="training questions of each task (default: 300000)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="models trained at once (default: all of them on a GPU, else one)",
    )
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="start from the weights in the folder that is written to, where there are some, and "
        "see the questions in another order",
    )
    parser.add_argument("--out", type=Path, default=HERE / "miniatures", help="folder to write to")
    return parser


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(names: list[str], count: int, folder: Path) -> tuple[Path, Path]:
    """Write the tokenizer and the training examples; return where they are."""
    drawn = (
        itertools.islice(questions(task, "train", "vocabulary"), VOCABULARY_QUESTIONS)
        for task in TASKS.values()
    )
    tokenizer = build_tokenizer(
        question.prompt + question.reply for question in itertools.chain.from_iterable(drawn)
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    tasks = [task for task in TASKS if any(task in MINIATURES[name].tasks for name in names)]
    examples = training_examples(tasks, count, folder / "tokenizer", processes=_cores(), seed=SEED)
    save(examples, folder / "examples.safetensors")
    return folder / "tokenizer", folder / "examples.safetensors"


def make(job: Job) -> dict[str, Any]:
    """Train one miniature, save it, examine it; return its row of the table."""
    torch.set_num_threads(job.threads)
    # The same steps give the same weights, as far as the device's operations allow it.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device(job.device)
    miniature = MINIATURES[job.name]
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    torch.manual_seed(miniature.seed)
    config = miniature.config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = job.out / job.name
    starts_anew = not (job.goes_on and folder.exists())
    if starts_anew:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(device)
    validation = {
        task: encode(
            list(itertools.islice(questions(TASKS[task], "validation"), VALIDATION_QUESTIONS)),
            tokenizer,
        ).to(device)
        for task in miniature.tasks
    }
    trained = train(
        model,
        {task: some.to(device) for task, some in load(job.examples, miniature.tasks).items()},
        validation,
        job.limits,
        miniature.seed if starts_anew else miniature.seed + 1,
        log=lambda line: print(f"{job.name}: {line}", flush=True),
    )
    model.half().save_pretrained(folder)
    save_tokenizer(tokenizer, folder, config.model_type)
    row: dict[str, Any] = {
        "model": job.name,
        "parameters": model.num_parameters(),
        "steps": trained.steps,
        "seconds": round(trained.seconds),
        "loss": round(trained.loss, 5),
    }
    for task in miniature.tasks:
        row[f"{task} validation exact %"] = round(100 * trained.exact[task], 1)
        asked: list[Question] = exam_questions(task)
        for dtype in (torch.float16, torch.float32):
            share = share_answered(folder, TASKS[task], asked, dtype, device)
            kind = str(dtype).removeprefix("torch.float")
            row[f"{task} test fp{kind} %"] = round(100 * share, 1)
    print(f"{job.name}: {json.dumps(row)}", flush=True)
    return row


def make_in_a_process(job: Job) -> dict[str, Any]:
    """Make one miniature in a process of its own; a failure becomes a row that tells it."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(make, job).result()
    except Exception as error:
        traceback.print_exc()
        return {"model": job.name, "failure": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Make all miniatures asked for; return the exit status."""
    start = time.time()
    options = parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # Before CUDA starts in any of the processes: cuBLAS repeats its sums only with this.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The fast tokenizers' own threads and the processes would stand in each other's way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    on_gpu = torch.device(options.device).type == "cuda"
    jobs = options.jobs or (len(options.models) if on_gpu else 1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, examples = prepare(options.models, options.examples, Path(folder))
        print(f"questions made in {time.time() - start:.0f} s", flush=True)
        deadline = start + 60 * options.minutes
        share = (deadline - time.time()) / -(-len(options.models) // jobs)
        told = [
            Job(
                name,
                examples,
                tokenizer,
                options.out,
                options.device,
                max(1, _cores() // jobs),
                # The models that wait for a process get as much time as those that start.
                Limits(options.target, time.time() + share * (1 + turn // jobs), options.steps),
                options.go_on,
            )
            for turn, name in enumerate(options.models)
        ]
        with ThreadPoolExecutor(jobs) as pool:
            rows = list(pool.map(make_in_a_process, told))
    print(tabulate(rows, headers="keys"))
    shares = [value for row in rows for column, value in row.items() if " test " in column]
    failed = any("failure" in row for row in rows)
    return int(failed or min(shares, default=0) < 100 * LEAST_SHARE)


if __name__ == "__main__":
    sys.exit(main())
