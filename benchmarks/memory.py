"""How many bytes does protecting a request hold?

For the layers of the paper's seven models: what :func:`ft2.protect` has allocated after a request,
counted tensor by tensor, for each request of a batch and each critical layer. The paper holds the
bounds of a model in 288 to 512 bytes (FT2, section 5.2.2): two fp16 numbers for each layer.

The models have the paper's depth and a width of 64, on which nothing here depends. Run it from the
project's root: ``python benchmarks/memory.py``.
"""

from __future__ import annotations

import argparse
import gc
import json
from typing import Any

import torch
from shapes import SHAPES
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM

import ft2

_NARROW: dict[str, Any] = {
    "hidden_size": 64,
    "n_embd": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "n_head": 4,
    "rotary_dim": 8,
    "vocab_size": 100,
}


def bytes_held(shape: dict[str, Any], requests: int) -> tuple[int, int]:
    """Return the number of critical layers, and the bytes that protecting the requests holds."""
    narrow = {name: _NARROW.get(name, value) for name, value in shape.items()}
    config = AutoConfig.for_model(**narrow, bos_token_id=0, eos_token_id=1)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    prompt = torch.randint(2, 90, (requests, 4))
    model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    before = _storages()
    with ft2.protect(model) as protection:
        model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        after = _storages()
        assert protection.left_first_token
    layers = sum(each.critical for each in ft2.projections(model))
    return layers, sum(size for address, size in after.items() if address not in before)


def _storages() -> dict[int, int]:
    gc.collect()
    storages: dict[int, int] = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, torch.nn.Parameter) and not each.is_meta:
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    rows = []
    for title, shape in SHAPES.items():
        for requests in arguments.requests:
            layers, held = bytes_held(shape, requests)
            rows.append((title, requests, layers, held, held / requests / layers, 4 * layers))
    headers = (
        "model",
        "requests",
        "layers",
        "bytes",
        "a request and layer",
        "the paper's, a request",
    )
    print(tabulate(rows, headers, floatfmt=".1f"))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([dict(zip(headers, row, strict=True)) for row in rows], file)


if __name__ == "__main__":
    main()
