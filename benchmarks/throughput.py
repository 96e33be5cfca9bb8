"""Trials a second: one at a time, in batches, and in batches from the golden run's cache.

Run it from the project's root:

    python benchmarks/throughput.py --model FOLDER            # a saved model, on one CPU thread
    python benchmarks/throughput.py --device cuda --shapes Llama2-7B OPT-2.7B

one at a time
    A hook on the fault's layer, and one ``generate`` for each trial.
batched
    ``generate`` on a batch that asks the prompt once for each trial, ``ft2.inject`` in its rows.
golden cache
    ``ft2.campaign.BatchEngine``: trials join at their fault's step. The time holds the golden run.

All meet faults of one campaign: each step equally likely, inside it each output of the blocks'
linear layers. Nothing is protected unless ``--policy`` says so, then in all three.

``--plain-attention`` leaves out the kernels that attend on a GPU, and ``--no-replay`` the CUDA
graph of a forward, to see what they save.
``--profile`` shows instead where the time of the last way's forwards goes: in its middle, where all
rows go on, and later, where some leave and others join.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from forward_profile import Window, floors, watch_forwards
from models import build
from shapes import SHAPES
from tabulate import tabulate
from torch import Tensor
from transformers import AutoModelForCausalLM

import ft2
from ft2.campaign import Recorder, row_cache
from ft2.campaign.batch_engine import BatchEngine
from ft2.campaign.prompt import Prompt
from ft2.campaign.row_batch import Spent
from ft2.faults import Draw, Fault, fault_model, flip, format_of


def load(arguments: argparse.Namespace, name: str) -> Any:
    """Return a saved model, or one of random weights: time does not depend on them."""
    if arguments.model:
        dtype = torch.float16 if arguments.device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        return model.to(arguments.device).eval()
    return build(SHAPES[name], arguments.device)


def generate(model: Any, prompt: Tensor, new_tokens: int) -> Tensor:
    said: Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return said


class Hooked:
    """A fault as everybody injects it: a forward hook that counts the steps."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._step = 0

    def __call__(self, module: Any, args: Any, output: Tensor) -> None:
        fault = self._fault
        if self._step == fault.step:
            element = output.view(-1, output.shape[-1])[fault.position, fault.neuron]
            element.copy_(flip(element.clone(), fault.bits, format_of(element.dtype)))
        self._step += 1


class Subject:
    """One model, one prompt, and the faults of a campaign."""

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        self.model = load(arguments, name)
        self.policy = arguments.policy
        self.new_tokens = arguments.new_tokens
        self.replays = not arguments.no_replay
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 500, (1, arguments.prompt), generator=generator)
        self.prompt = ids.to(arguments.device)
        recorder = Recorder(self.model)
        self.golden = generate(self.model, self.prompt, self.new_tokens)
        recorder.stop()
        space = recorder.golden().space
        bits = fault_model(arguments.fault_model)
        draws = (Draw(0, name, trial) for trial in range(arguments.trials))
        self.faults = [space.sample(draw, bits) for draw in draws]

    def one_at_a_time(self, faults: Sequence[Fault]) -> list[list[int]]:
        said = []
        for fault in faults:
            module = self.model.get_submodule(fault.layer)
            handle = module.register_forward_hook(Hooked(fault))
            with ft2.protect(self.model, self.policy):
                said.append(generate(self.model, self.prompt, self.new_tokens)[0].tolist())
            handle.remove()
        return said

    def batched(self, faults: Sequence[Fault]) -> list[list[int]]:
        rows = [replace(fault, row=row) for row, fault in enumerate(faults)]
        prompt = self.prompt.repeat(len(rows), 1)
        with ft2.protect(self.model, self.policy), ft2.inject(self.model, rows):
            said: list[list[int]] = generate(self.model, prompt, self.new_tokens).tolist()
        return said

    def golden_cache(self, faults: Sequence[Fault], rows: int) -> tuple[list[list[int]], Spent]:
        engine = self._prepared(rows)
        found = engine.run([(0, fault) for fault in faults])
        tokens = self.prompt[0].tolist()
        return [[*tokens, *each.said] if each else [] for each in found], engine.spent

    def profiled(self, faults: Sequence[Fault], rows: int, device: str) -> list[Window]:
        engine = self._prepared(rows)
        before = max(self.new_tokens // 2, 4)
        windows: list[Window]
        with watch_forwards(before, 2, device) as windows:
            engine.run([(0, fault) for fault in faults])
        return windows

    def _prepared(self, rows: int) -> BatchEngine:
        tokens = tuple(self.prompt[0].tolist())
        ends = self.model.generation_config.eos_token_id
        ends = tuple(ends) if isinstance(ends, list) else (ends,) if ends is not None else ()
        prompt = Prompt(tokens, self.new_tokens, self.new_tokens, ends)
        engine = BatchEngine(self.model, [prompt], self.policy, rows=rows, replays=self.replays)
        engine.prepare()
        return engine


def measure(compute: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """Return what is computed, the seconds it takes, and the most memory in use, in GiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = compute()
    if device == "cuda":
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return result, time.perf_counter() - started, memory


def compare(arguments: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Measure the three ways, and count the answers that differ from those alone."""
    subject = Subject(arguments, name)
    faults = subject.faults
    device = arguments.device
    alone_faults, batched_faults = faults[: arguments.alone], faults[: arguments.batched]
    # The first run of each loads kernels.
    subject.one_at_a_time(faults[:1])
    subject.golden_cache(faults[: min(64, arguments.rows)], arguments.rows)
    alone, seconds, memory = measure(partial(subject.one_at_a_time, alone_faults), device)
    base = len(alone_faults) / seconds
    results: list[dict[str, Any]] = [
        {"way": "one at a time", "trials_per_second": base, "memory": memory}
    ]
    batched, seconds, memory = measure(partial(subject.batched, batched_faults), device)
    rate = len(batched_faults) / seconds
    differ = _different(alone, batched)
    results.append(
        {"way": "batched", "trials_per_second": rate, "memory": memory, "different": differ}
    )
    if device == "cuda":
        torch.cuda.empty_cache()
    rows = arguments.rows
    (said, spent), seconds, memory = measure(partial(subject.golden_cache, faults, rows), device)
    results.append(
        {
            "way": "golden cache",
            "trials_per_second": len(faults) / seconds,
            "memory": memory,
            "different": _different(alone, said),
            "prefill": spent.prefill / seconds,
            "decode": spent.decode / seconds,
            "bookkeeping": 1 - (spent.prefill + spent.decode) / seconds,
            "rows_per_forward": spent.row_steps / max(spent.forwards, 1),
            "milliseconds_per_forward": 1000 * spent.decode / max(spent.forwards, 1),
            "forwards": spent.forwards,
            "replayed": spent.replayed,
            "not_recorded": spent.not_recorded,
        }
    )
    golden = subject.golden[0].tolist()
    changed = sum(each != golden for each in said)
    print(
        f"{name}: {len(faults)} trials, prompt {arguments.prompt}, {arguments.new_tokens} new "
        f"tokens, batches of {arguments.rows} rows; {changed} answers changed by their fault"
    )
    shown = ("way", "trials_per_second", "times", "prefill", "decode", "bookkeeping", "memory")
    table = []
    for each in results:
        each["times"] = each["trials_per_second"] / base
        each["compared"] = len(alone_faults)
        cells = [each.get(column, "") for column in (*shown, "different")]
        table.append([f"{cell:.3g}" if isinstance(cell, float) else cell for cell in cells])
    headers = ["", "trials/s", "times", "prefill", "decode", "bookkeeping", "peak GiB"]
    print(tabulate(table, [*headers, f"differ, of {len(alone_faults)}"]))
    print(
        f"golden cache: {spent.forwards} forwards of {results[-1]['rows_per_forward']:.0f} rows in "
        f"use, {results[-1]['milliseconds_per_forward']:.1f} ms each; {spent.replayed} replayed"
        + (f" ({spent.not_recorded})" if spent.not_recorded else ""),
        flush=True,
    )
    return results


def show_profile(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Print where the time of a batch's forwards goes."""
    subject = Subject(arguments, name)
    rows, device = arguments.rows, arguments.device
    # The first run loads kernels.
    subject.golden_cache(subject.faults[: min(64, rows)], rows)
    seconds = measure(partial(subject.golden_cache, subject.faults[:1], rows), device)[1]
    windows = subject.profiled(subject.faults, rows, device)
    config = subject.model.config
    token = 2 * config.num_hidden_layers * config.hidden_size * subject.model.dtype.itemsize
    least = floors(subject.model, rows, rows * subject.new_tokens // 2 * token)
    print(f"{name}: {rows} rows; the golden run and one trial alone take {seconds:.2f} s")
    print(tabulate(least, ["at least, per forward", "ms"], floatfmt=".2f"))
    for window in windows:
        window.show()
    return {"floors": least, "windows": [window.numbers for window in windows]}


def _different(alone: list[list[int]], others: list[list[int]]) -> int:
    return sum(mine != other for mine, other in zip(alone, others, strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a saved model, in place of --shapes")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["Llama, 3M parameters"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--policy", default="none", choices=("none", "ft2"))
    parser.add_argument("--fault-model", default="exp")
    parser.add_argument("--prompt", type=int, help="tokens; default: 100 on CUDA, 8 on a CPU")
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--trials", type=int, help="default: 4096 on CUDA, 2000 on a CPU")
    parser.add_argument("--alone", type=int, help="how many of them one at a time, too")
    parser.add_argument(
        "--batched", type=int, help="how many of them in one generate; default: 256"
    )
    parser.add_argument("--rows", type=int, help="of a batch; default: 1024 on CUDA, 256 on a CPU")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--plain-attention", action="store_true", help="without kernels")
    parser.add_argument("--no-replay", action="store_true", help="without a CUDA graph")
    parser.add_argument("--profile", action="store_true", help="show where a forward's time goes")
    arguments = parser.parse_args()
    on_cuda = arguments.device == "cuda"
    defaults = {
        "prompt": (100, 8),
        "trials": (4096, 2000),
        "alone": (6, 60),
        "batched": (256, 256),
        "rows": (1024, 256),
    }
    for name, (cuda, cpu) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, cuda if on_cuda else cpu)
    if arguments.plain_attention:
        row_cache.kernels_for = lambda like: None
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results: dict[str, Any] = {}
    way = show_profile if arguments.profile else compare
    with torch.no_grad():
        for name in [arguments.model] if arguments.model else arguments.shapes:
            results[Path(name).name] = way(arguments, name)
            if on_cuda:
                torch.cuda.empty_cache()
    if arguments.json:
        document = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if on_cuda else "cpu, one thread",
            "arguments": vars(arguments),
            "results": results,
        }
        Path(arguments.json).write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
