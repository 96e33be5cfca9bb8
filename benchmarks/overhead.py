"""What protection and detection cost a model that generates: ratios to the model alone.

Run it from the project's root: ``python benchmarks/overhead.py [--device cuda] [--compiled]``. The
variants of a model are module objects of their own over the same weights, each with its protection
attached once, and their runs are interleaved in one process. Weights are random, since time does
not depend on them. A variant's time is its median first token plus its median later token times
their number, so that a busy machine's interruptions do not count. Beside it stands what a later
token takes of the processor, which neighbours on the machine change less: eager decoding on a GPU
is bound by it.

alone
    The model as it is.
paper
    The paper's way: a forward hook on each critical layer, clamp with tensor bounds, nan_to_num.
ft2
    ``ft2.protect(model)``.
bounds
    Detection alone: the critical layers' outputs are kept, and one launch a step checks them all
    against their bounds.
checksums
    Detection alone: the outputs and inputs of every projection are kept, and one launch a step
    checks the column sums of all of them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

import ft2
from ft2 import native
from ft2.forward import Clock, Forward, Listener, tap_in_lane
from ft2.protection.detection import BoundsCheck, Check, ChecksumCheck, DetectionLane

_LLAMA = {"model_type": "llama", "num_attention_heads": 32, "vocab_size": 32000}
_OPT = {"model_type": "opt", "num_attention_heads": 32, "vocab_size": 50272}
_QWEN = {"model_type": "qwen2", "max_window_layers": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "OPT-6.7B": {
        **_OPT,
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
    },
    "OPT-2.7B": {
        **_OPT,
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_hidden_layers": 32,
    },
    "GPT-J-6B": {
        "model_type": "gptj",
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "rotary_dim": 64,
        "vocab_size": 50400,
    },
    "Llama2-7B": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
    },
    "Vicuna-7B": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
    },
    "Qwen2-7B": {
        **_QWEN,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "Qwen2-1.5B": {
        **_QWEN,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "Llama, 3M parameters": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 512,
    },
}
PROMPT = 100
Moment = tuple[float, float]


def _build(shape: dict[str, Any], device: str) -> Any:
    dtype = torch.float16 if device == "cuda" else torch.float32
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=dtype).eval()


def _twin(model: Any) -> Any:
    """Another module object over the same weights."""
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _critical(model: nn.Module) -> list[ft2.Projection]:
    return [each for each in ft2.projections(model) if each.critical]


def _alone(model: Any) -> None:
    del model


def _paper(model: Any) -> None:
    for projection in _critical(model):
        module = model.get_submodule(projection.name)
        limit = torch.tensor(6e4, dtype=module.weight.dtype, device=module.weight.device)

        def clip(module: nn.Module, args: Any, output: Tensor, limit: Tensor = limit) -> Tensor:
            return torch.nan_to_num(torch.clamp(output, -limit, limit))

        module.register_forward_hook(clip)


def _ft2(model: Any) -> None:
    ft2.protect(model)


class _Detecting(Listener):
    """Has a model's layers checked at the end of each forward."""

    def __init__(self, model: Any, layers: list[ft2.Projection], check: Check, later: bool) -> None:
        self._lane = DetectionLane([check])
        self._later = later
        clock = Clock.listen(model, self)
        tap_in_lane(model, [each.name for each in layers], self._lane, clock.lanes)

    def forward_started(self, forward: Forward) -> None:
        if not (self._later and forward.is_first_token):
            self._lane.begin()


def _bounds(model: Any) -> None:
    layers = _critical(model)
    limits = torch.full((len(layers), 2, 1), 6e4, device=model.device)
    limits[:, 0] *= -1
    flags = torch.zeros(1, dtype=torch.uint8, device=model.device)
    _Detecting(model, layers, BoundsCheck(limits, flags), later=True)


def _checksums(model: Any) -> None:
    layers = ft2.projections(model)
    modules = [model.get_submodule(each.name) for each in layers]
    flags = torch.zeros(1, dtype=torch.uint8, device=model.device)
    _Detecting(model, layers, ChecksumCheck(modules, flags), later=False)


VARIANTS: dict[str, Callable[[Any], None]] = {
    "alone": _alone,
    "paper": _paper,
    "ft2": _ft2,
    "bounds": _bounds,
    "checksums": _checksums,
}


class _Stamps(StoppingCriteria):
    """Notes when each token was there, and how long the processor had worked until then."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def note(self) -> None:
        self.moments.append((time.perf_counter(), time.thread_time()))

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.note()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generate(model: Any, prompt: Tensor, new_tokens: int, compiled: bool) -> list[Moment]:
    """Return the seconds, passed and worked, of the first token and of each later one."""
    settings: dict[str, Any] = {"cache_implementation": "static"} if compiled else {}
    stamps = _Stamps()
    if prompt.is_cuda:
        torch.cuda.synchronize()
    stamps.note()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([stamps]),
        **settings,
    )
    return [
        (after[0] - before[0], after[1] - before[1])
        for before, after in itertools.pairwise(stamps.moments)
    ]


def _measure(arguments: argparse.Namespace, title: str) -> dict[str, list[list[Moment]]]:
    model = _build(SHAPES[title], arguments.device)
    variants = {name: _twin(model) for name in arguments.variants}
    for name, twin in variants.items():
        VARIANTS[name](twin)
    prompt = torch.randint(5, 500, (arguments.batch, PROMPT), device=arguments.device)
    seconds: dict[str, list[list[Moment]]] = {name: [] for name in variants}
    for repetition in range(arguments.warm_up + arguments.repetitions):
        for name, twin in variants.items():
            spent = _generate(twin, prompt, arguments.new_tokens, arguments.compiled)
            if repetition >= arguments.warm_up:
                seconds[name].append(spent)
    return seconds


def _summary(runs: list[list[Moment]]) -> tuple[float, float, float, float]:
    """Medians in ms: the first token, a later one, all of them, and a later one's work."""
    first = statistics.median(run[0][0] for run in runs)
    step = statistics.median(step for run in runs for step, _ in run[1:])
    work = statistics.median(work for run in runs for _, work in run[1:])
    return 1e3 * first, 1e3 * step, 1e3 * (first + (len(runs[0]) - 1) * step), 1e3 * work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compiled", action="store_true", help="static cache, CUDA graphs")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["Llama, 3M parameters"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(native.load(), file=sys.stderr)
    results = {}
    rows = []
    headers = (
        *("shape", "variant", "first token, ms", "later token, ms", "all, ms", "over alone"),
        *("work, ms", "over alone"),
    )
    with torch.no_grad():
        for title in arguments.shapes:
            seconds = _measure(arguments, title)
            *_, all_alone, work_alone = _summary(seconds["alone"])
            for name, runs in seconds.items():
                first, step, total, work = _summary(runs)
                over, more = total / all_alone - 1, work / work_alone - 1
                rows.append((title, name, first, step, total, f"{over:+.1%}", work, f"{more:+.1%}"))
            results[title] = seconds
            print(tabulate(rows[-len(seconds) :], headers, floatfmt=".2f"), flush=True)
            if arguments.device == "cuda":
                torch.compiler.reset()
                torch.cuda.empty_cache()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "seconds": results}, file)


if __name__ == "__main__":
    main()
