"""Which protection prevents how many wrong answers? All of them meet the same faults.

The comparison of FT2 (HPDC '25), Figure 13, on the quickstart suite's trained models: no
protection, the paper's rivals (Ranger, MaxiMals, Global Clipper), FT2 with bounds profiled offline,
FT2 itself, which the paper's text has clip what is out of bounds and its artifact set to zero, and
FT2-recompute, which computes a step with a wrong value again.
Bounds are profiled on the questions that the models know and the suite does not ask.

Run it from the project's root: ``python benchmarks/policies.py [--faults N] [--fault-model NAME]
[--json FILE] [llama opt]``. ``benchmarks/README.md`` says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from leave_one_out import (
    ENCODING,
    NOTHING,
    QUICKSTART,
    Comparison,
    Question,
    Subject,
    Trial,
    check_alone,
    quickstart,
    run_trials,
    space_of,
)
from tabulate import tabulate
from transformers import AutoTokenizer

import ft2
from ft2.faults import FAULT_MODELS, Draw, fault_model
from ft2.protection import POLICIES, Policy, Profile
from ft2.protection.policies import make_policy
from ft2.protection.settings import PolicySettings

NEW_TOKENS = 12
CLIP, ZERO = "ft2, clip", "ft2, zero"
RECOMPUTE = "ft2-recompute"
PROFILED = ("ranger", "maximals", "global-clipper", "ft2-offline")


def profiling_questions(name: str) -> list[torch.Tensor]:
    """Return the token ids of the questions that a model knows and its suite does not ask."""
    suite = runpy.run_path(str(QUICKSTART / "test_quickstart.py"))
    asked = {f"What is the capital of {country}?" for country, _ in suite["CAPITALS"]}
    asked |= {f"What is {a} plus {b}?" for a, b in suite["SUMS"]}
    world = runpy.run_path(str(QUICKSTART / "train.py"))["closed_world"]()
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "models" / name)
    return [
        tokenizer(question, return_tensors="pt")["input_ids"]
        for question, _ in world
        if question not in asked
    ]


def register(name: str, model: Any) -> tuple[list[str], dict[str, Profile]]:
    """Profile the model, and name each protection of the table."""

    def as_set(policy: str, settings: PolicySettings, _: PolicySettings) -> Policy:
        return make_policy(policy, settings)

    prompts = [ids for batch in profiling_questions(name) for ids in batch]
    profiles = {
        policy: ft2.profile(model, prompts, policy, max_new_tokens=NEW_TOKENS)
        for policy in PROFILED
    }
    settings: dict[str, tuple[str, PolicySettings]] = {
        f"{policy}, profiled": (policy, PolicySettings(bounds=profile))
        for policy, profile in profiles.items()
    }
    offline = PolicySettings(bounds=profiles["ft2-offline"], correction="zero")
    settings["ft2-offline, zero"] = ("ft2-offline", offline)
    settings[CLIP] = ("ft2", PolicySettings(correction="clip"))
    settings[ZERO] = ("ft2", PolicySettings(correction="zero"))
    for label, (policy, chosen) in settings.items():
        POLICIES[label] = partial(as_set, policy, chosen)
    return [NOTHING, *settings, RECOMPUTE], profiles


def fault_free(model: Any, policy: str, questions: list[Question]) -> tuple[int, int]:
    """Return how many questions are answered wrongly without a fault, and corrected values."""
    wrong = corrected = 0
    for question in questions:
        with ft2.protect(model, policy) as protection:
            wrong += not question.is_right(model.generate(**question.arguments)[0])
        corrected += sum(protection.counts)
    return wrong, corrected


def compare(name: str, faults: int, bits: str, seed: int, batch: int) -> dict[str, Any]:
    """Print one model's table, and return its numbers."""
    subject: Subject = quickstart(name)
    model, questions = subject.model, subject.questions
    policies, profiles = register(name, model)
    spaces = [space_of(model, question) for question in questions]
    trials = []
    for number in range(faults):
        at = number % len(questions)
        draw = Draw(seed, f"{subject.title}, policies", number)
        fault = spaces[at].sample(draw, fault_model(bits), ENCODING)
        trials.append(Trial(questions[at], fault))
    profile = profiles[PROFILED[0]]
    print(
        f"\n== {subject.title}: {len(trials)} faults under each protection, {bits} in {ENCODING}, "
        f"{len(questions)} questions; bounds profiled on {profile.prompts.count} others, "
        f"{profile.prompts.tokens} tokens"
    )
    outcomes, rows, results = {}, [], []
    for policy in policies:
        started = time.perf_counter()
        outcomes[policy] = run_trials(model, policy, trials, batch)
        compared = Comparison.of(outcomes[policy], outcomes[NOTHING])
        prevented = 100 * (compared.base - compared.sdc) / max(compared.base, 1)
        wrong, corrected = fault_free(model, policy, questions)
        low, high = compared.interval
        rows.append(
            [
                policy,
                compared.sdc,
                f"{compared.rate:.2f} [{low:.2f}, {high:.2f}]",
                f"{prevented:.0f}",
                f"{compared.only_base}/{compared.only_here}",
                f"{compared.p:.1g}",
                compared.due,
                wrong,
                corrected,
            ]
        )
        results.append(
            {
                "protection": policy,
                "prevented": prevented,
                "fault_free_wrong": wrong,
                "fault_free_corrected": corrected,
                "seconds": time.perf_counter() - started,
                **compared.numbers,
            }
        )
    print(tabulate(rows, HEADERS))
    zero = Comparison.of(outcomes[ZERO], outcomes[CLIP])
    print(
        f"Of {len(trials)} faults, {zero.only_here} are wrong answers only under {ZERO!r}, "
        f"{zero.only_base} only under {CLIP!r}: p = {zero.p:.1g}."
    )
    checked = check_alone(model, trials, outcomes)
    return {
        "title": subject.title,
        "checked": checked,
        "zero_against_clip": zero.numbers,
        "protections": results,
    }


HEADERS = [
    "protection",
    "SDC",
    "rate % [95 %]",
    "prevented %",
    "prevents/adds",
    "p",
    "DUE",
    "wrong without fault",
    "corrected without fault",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["llama", "opt"], metavar="NAME")
    parser.add_argument("--faults", type=int, default=4000, help="under each protection")
    parser.add_argument("--fault-model", choices=sorted(FAULT_MODELS), default="exp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="most rows; 1: one at a time")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    run: Callable[[str], dict[str, Any]] = partial(
        compare,
        faults=arguments.faults,
        bits=arguments.fault_model,
        seed=arguments.seed,
        batch=arguments.batch,
    )
    results = [run(name) for name in arguments.names]
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
