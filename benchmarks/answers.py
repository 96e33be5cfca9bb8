"""What protection adds to whole answers of ``generate``: ratios to the model alone.

Run it from the project's root: ``python benchmarks/answers.py [--device cuda] [--compiled]``. The
model alone, the same once more, and the same under each policy answer by turns, in an order that is
drawn anew each time; nothing but ``generate`` is called. ``overhead.py`` takes such answers apart
and interleaves tokens, so it sees smaller differences; what it finds must be found here.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import numpy as np
import torch
from models import build, twin
from shapes import NARROW, PROMPT, SHAPES
from tabulate import tabulate
from torch import Tensor
from transformers import GenerationConfig

import ft2

_ALL = {**SHAPES, **NARROW}
_POLICIES = {"alone": None, "again": None, "ft2": "ft2", "ft2-recompute": "ft2-recompute"}


def _models(shape: dict[str, Any], device: str) -> dict[str, Any]:
    """Module objects over the same weights, one for each of the above."""
    model = build(shape, device)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    models = {}
    for name, policy in _POLICIES.items():
        models[name] = twin(model)
        if policy is not None:
            ft2.protect(models[name], policy)
    return models


def _answer(model: Any, prompt: Tensor, new_tokens: int, cache: str | None) -> float:
    """Seconds of one answer."""
    began = time.perf_counter()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        cache_implementation=cache,
    )
    if prompt.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _row(title: str, name: str, ours: list[float], alone: list[float]) -> list[Any]:
    pairs = np.array([ours, alone])
    drawn = np.random.default_rng(0).integers(len(alone), size=(1000, len(alone)))
    ratios = [np.divide(*np.median(pairs[:, each], axis=1)) - 1 for each in drawn]
    median, decile = (
        np.divide(*np.percentile(pairs, percentile, axis=1)) - 1 for percentile in (50, 10)
    )
    low, high = np.percentile(ratios, [2.5, 97.5])
    took = 1e3 * np.median(ours)
    over = (f"{median:+.1%}", f"{low:+.1%} to {high:+.1%}", f"{decile:+.1%}")
    return [title, name, took, *over]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="static cache, CUDA graphs")
    parser.add_argument("--shapes", nargs="+", choices=_ALL, default=["Llama, narrow"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--turns", type=int, default=40, help="answers of each")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cache = "static" if arguments.compiled else None
    settings = (arguments.new_tokens, cache)
    draw, results = random.Random(0), {}
    headers = ("shape", "variant", "an answer, ms", "over alone", "95 %", "by first deciles")
    for title in arguments.shapes:
        models = _models(_ALL[title], arguments.device)
        prompt = torch.randint(5, 500, (arguments.batch, PROMPT), device=arguments.device)
        for model in models.values():
            for _ in range(3):
                _answer(model, prompt, *settings)
        took: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(arguments.turns):
            for name in draw.sample(list(models), len(models)):
                took[name].append(_answer(models[name], prompt, *settings))
        results[title] = took
        rows = [_row(title, name, each, took["alone"]) for name, each in took.items()]
        print(tabulate(rows, headers, floatfmt=".1f"), flush=True)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump({"arguments": vars(arguments), "seconds": results}, file)
        del models
        if prompt.is_cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
