"""What attaching costs: generation with nothing, a waiting fault, and the ft2 protection.

Run it from the project's root: ``python benchmarks/overhead.py [--device cuda]``. Variants are
interleaved in one process and compared as ratios of medians; weights are random, since time does
not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ft2

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "llama, 3M parameters": {
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "vocab_size": 512,
        },
    },
    "cuda": {
        "Llama2-7B shape": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
        "OPT-2.7B shape": {
            "model_type": "opt",
            "hidden_size": 2560,
            "word_embed_proj_dim": 2560,
            "ffn_dim": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 50272,
        },
    },
}
NEW_TOKENS = 60
PROMPT = 100


def _build(shape: dict[str, Any], device: str) -> Any:
    config = AutoConfig.for_model(**shape)
    dtype = torch.float16 if device == "cuda" else torch.float32
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _measure(model: Any, device: str, repetitions: int) -> dict[str, list[float]]:
    prompt = torch.randint(5, 500, (1, PROMPT), device=device)
    waiting = ft2.Fault(
        call=10**6,
        step=0,
        layer=ft2.projections(model)[0].name,
        row=0,
        position=0,
        neuron=0,
        bits=(0,),
    )
    variants: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "nothing": nullcontext,
        "a waiting fault": lambda: ft2.inject(model, waiting),
        "ft2": lambda: ft2.protect(model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 1):
        for name, attach in variants.items():
            started = time.perf_counter()
            with attach():
                model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=NEW_TOKENS,
                    min_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=0,
                )
                if device == "cuda":
                    torch.cuda.synchronize()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=sorted(SHAPES), default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print(f"{'model':24} {'variant':18} {'seconds':>8} {'ratio':>7}")
    for title, shape in SHAPES[arguments.device].items():
        model = _build(shape, arguments.device)
        seconds = _measure(model, arguments.device, arguments.repetitions)
        base = statistics.median(seconds["nothing"])
        for name, each in seconds.items():
            median = statistics.median(each)
            print(f"{title:24} {name:18} {median:8.3f} {median / base:7.3f}")
        results[title] = seconds
        del model
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
