"""How many trials in fp16 and bf16 end otherwise when the batch has another size.

Run it from the project's root:

    python benchmarks/half_precision.py

In half precision what a row computes depends on its batch's shape. The quickstart suite's questions
are asked with the same faults alone and in batches of several sizes. A trial's outcome is whether
the fault-free answer is still given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer

import ft2

SUITE = Path(__file__).resolve().parents[1] / "example_suites" / "quickstart"

QUESTIONS = [f"What is {first} plus {second}?" for first, second in ((7, 8), (3, 4), (9, 5))]
QUESTIONS += [f"What is the capital of {country}?" for country in ("Peru", "Cuba", "France")]


def trials(name: str, dtype: torch.dtype, batch: int, faults: int) -> list[dict[str, Any]]:
    """Return the record of each trial."""
    folder = SUITE / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = []
    for question in QUESTIONS:
        ids = tokenizer(question, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0]
        new = said[ids["input_ids"].shape[1] :]
        right.append(tokenizer.decode(new, skip_special_tokens=True))
    campaign = ft2.Campaign(
        model,
        QUESTIONS,
        right,
        judge="equals",
        tokenizer=tokenizer,
        faults=faults,
        fault_model="exp",
        batch=batch,
        protection="none",
        generation={"max_new_tokens": 12},
    )
    return campaign.run(progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=600)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for name in ("llama", "opt"):
        for dtype in (torch.float16, torch.bfloat16):
            first, *others = (
                trials(name, dtype, batch, arguments.faults) for batch in arguments.batches
            )
            for batch, found in zip(arguments.batches[1:], others, strict=True):
                pairs = list(zip(first, found, strict=True))
                changed = sum(one["outcome"] != other["outcome"] for one, other in pairs)
                said = sum(one["said"] != other["said"] for one, other in pairs)
                sdc = sum(one["outcome"] == "sdc" for one in first)
                batched = sum(other["batch"] > 1 for other in found)
                share = f"{100 * changed / len(pairs):.2f}"
                title = str(dtype).removeprefix("torch.")
                rows.append([name, title, arguments.batches[0], batch, len(pairs)])
                rows[-1] += [batched, sdc, changed, share, said]
    columns = ["model", "dtype", "rows", "and", "trials", "in batches", "SDC"]
    columns += ["outcomes differ", "%", "answers differ"]
    print(tabulate(rows, columns))


if __name__ == "__main__":
    main()
