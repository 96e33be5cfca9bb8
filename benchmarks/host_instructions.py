"""How many instructions a protection adds to a token: counted, so that no neighbour disturbs it.

Run it from the project's root, with valgrind and a C compiler there:

    python benchmarks/host_instructions.py [--architectures llama opt] [--layers 8]

Eager decoding is bound by what the host does: Python, torch's dispatch, launches. On a shared
machine its time is not steady to a tenth, its instructions are to the last digit but for where
garbage is collected. Models are of the architectures of ``overhead.py``, so narrow that arithmetic
costs little, as on a GPU; the variants are its own. A launch costs a GPU's driver more than a tiny
operation costs here: what adds operations (the paper's way adds three a layer, ``ft2`` one for each
layer whose output no sum or product takes) adds more there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from overhead import VARIANTS
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM

import ft2

_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
    },
    "gptj": {"n_embd": 32, "n_head": 4, "rotary_dim": 8},
}
_TOKENS = 4
# What starts and ends the counting, from valgrind's own header.
_MARKS = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void forget(void) { CALLGRIND_ZERO_STATS; }
void stop(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def decode(architecture: str, layers: int, marks: ctypes.CDLL) -> None:
    """Let each variant decode a few tokens between the marks; run under valgrind."""
    shape = _ARCHITECTURES[architecture]
    depth = "n_layer" if architecture == "gptj" else "num_hidden_layers"
    config = AutoConfig.for_model(architecture, vocab_size=64, **shape, **{depth: layers})
    prompt, token = torch.arange(5, 15)[None], torch.tensor([[7]])
    for name, attach in VARIANTS.items():
        model: Any = AutoModelForCausalLM.from_config(config).eval()
        attach(model)
        with torch.no_grad(), ExitStack() as request:
            if name not in ("alone", "paper"):
                request.enter_context(ft2.request(model))
            output = model(prompt, use_cache=True)
            cache = output[1]

            def decode_one(model: Any = model, cache: Any = cache) -> None:
                model(token, past_key_values=cache, use_cache=True)

            for _ in range(4):
                decode_one()
            marks.start()
            # The first one after the start is translated, not counted.
            decode_one()
            marks.forget()
            for _ in range(_TOKENS):
                decode_one()
            marks.stop(name.encode())


def count(architecture: str, layers: int, folder: Path) -> dict[str, float]:
    """Return the instructions of a token by variant."""
    command = (
        *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
        *(f"--callgrind-out-file={folder / architecture}", sys.executable, __file__),
        *("--architectures", architecture, "--layers", str(layers), "--marks", folder / "marks.so"),
    )
    # Hashes decide where dictionaries collide.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    counts = {}
    for part in folder.glob(f"{architecture}.*"):
        text = part.read_text(encoding="utf-8")
        name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.M)
        total = re.search(r"^totals: (\d+)", text, re.M)
        if name and total:
            counts[name[1]] = int(total[1]) / _TOKENS
    return {name: counts[name] for name in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", nargs="+", choices=_ARCHITECTURES)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--marks", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.marks:
        decode(arguments.architectures[0], arguments.layers, ctypes.CDLL(arguments.marks))
        return
    compiler = shutil.which("cc")
    if shutil.which("valgrind") is None or compiler is None:
        parser.error("valgrind, with its headers, and a C compiler must be installed")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "marks.c").write_text(_MARKS, encoding="utf-8")
        build = (compiler, "-shared", "-fPIC", "-O1", folder / "marks.c", "-o", folder / "marks.so")
        subprocess.run(build, check=True)
        for architecture in arguments.architectures or _ARCHITECTURES:
            counts = results[architecture] = count(architecture, arguments.layers, folder)
            rows = [
                (architecture, variant, each / 1e3, f"{each / counts['alone'] - 1:+.2%}")
                for variant, each in counts.items()
            ]
            headers = ("architecture", "variant", "thousand instructions", "over alone")
            print(tabulate(rows, headers, floatfmt=".1f"), flush=True)
    if arguments.json:
        document = {"torch": torch.__version__, "layers": arguments.layers, "counts": results}
        Path(arguments.json).write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
