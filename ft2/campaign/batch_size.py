"""How many rows of a batch fit into the memory that is free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from ft2.campaign.prompt import Prompt

__all__ = [
    "fitting_rows",
    "fixed_rows",
    "golden_bytes",
    "returned_bytes",
    "room_for_golden",
    "room_for_returned",
]

# More rows make a CPU's forward longer and no cheaper; an accelerator needs them to be busy.
_MOST = {"cpu": 256, "cuda": 1024}
_LEAST = 8
# Of batches whose number of rows is part of a trial.
_FIXED = 32
_FIXED_ON_LARGE = 256
_SHARE = 0.5
_SHARE_GOLDEN = 0.25
_SHARE_RETURNED = 0.2


def fitting_rows(model: Any, prompts: Sequence[Prompt], sharers: int = 1) -> int:
    """Return how many rows a batch can have, a power of two from 8 on.

    Parameters
    ----------
    prompts:
        What is asked: their golden runs are kept, too.
    sharers:
        How many processes share the machine's memory.
    """
    device = model.get_input_embeddings().weight.device
    kept, row = _needed(model, prompts)
    room = int(_SHARE * _free(device) / _sharers(device, sharers)) - kept
    most = _MOST.get(device.type, 256)
    rows = _LEAST
    while 2 * rows <= most and 2 * rows * row <= room:
        rows *= 2
    return rows


def fixed_rows(model: Any, prompt: Prompt) -> int:
    """Return how many rows a batch has where their number is part of a trial.

    It depends on the model, the prompt and the kind of device alone, so that all workers, and all
    reruns, have the same: on a GPU that would hold twice as much beside the model in half of its
    memory there are more.
    """
    device = model.get_input_embeddings().weight.device
    if device.type != "cuda":
        return _FIXED
    kept, row = _needed(model, [prompt])
    held = sum(each.numel() * each.element_size() for each in model.parameters())
    room = int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    fits = held + kept + 2 * _FIXED_ON_LARGE * row <= room
    return _FIXED_ON_LARGE if fits else _FIXED


def golden_bytes(model: Any, prompts: Sequence[Prompt]) -> int:
    """Return how many bytes the golden runs of some prompts take while they are kept."""
    return _needed(model, prompts)[0]


def room_for_golden(model: Any, sharers: int, kept: int) -> int:
    """Return how many bytes all golden runs may take, of which `kept` are taken already."""
    device = model.get_input_embeddings().weight.device
    return int(_SHARE_GOLDEN * (_free(device) / _sharers(device, sharers) + kept))


def returned_bytes(model: Any, prompt: Prompt) -> int:
    """Return how much memory one trial needs for what it returns beside its tokens, at most."""
    config = model.config.get_text_config(decoder=True)
    states = (config.num_hidden_layers + 1) * config.hidden_size
    states *= model.get_input_embeddings().weight.element_size()
    tokens = len(prompt.tokens) + prompt.most
    return tokens * (_token_bytes(model) + states) + prompt.most * 4 * config.vocab_size


def room_for_returned(model: Any, sharers: int) -> int:
    """Return how many bytes all that trials return may have; the batch itself needs the most."""
    device = model.get_input_embeddings().weight.device
    return int(_SHARE_RETURNED * _free(device) / _sharers(device, sharers))


def _needed(model: Any, prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Return the bytes of the golden runs that are kept, and those of each row of a batch."""
    config = model.config.get_text_config(decoder=True)
    token = _token_bytes(model)
    own = max(prompt.most for prompt in prompts)
    widest = max(len(prompt.tokens) for prompt in prompts) + own
    # Scores and logits are computed in fp32; a few of a layer's tensors live at a time.
    passing = 4 * (2 * config.vocab_size + 16 * config.hidden_size)
    passing += 8 * config.num_attention_heads * (widest + own)
    # One row in eight reads a prompt of its own.
    row = own * token + widest * token // 8 + passing
    return len(prompts) * (widest + own) * token, row


def _token_bytes(model: Any) -> int:
    """Return the size of one token's keys and values."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = model.get_input_embeddings().weight.element_size()
    return int(2 * config.num_hidden_layers * heads * size * element)


def _sharers(device: torch.device, processes: int) -> int:
    # Each process has a GPU of its own.
    return 1 if device.type == "cuda" else processes


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return _free_of_machine()


def _free_of_machine() -> int:
    # What files are cached in is free, too, where the system tells how much that is.
    with suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as told:
        line = next(line for line in told if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    known = "SC_AVPHYS_PAGES" in os.sysconf_names
    pages = os.sysconf("SC_AVPHYS_PAGES") if known else os.sysconf("SC_PHYS_PAGES") // 2
    return pages * os.sysconf("SC_PAGE_SIZE")
