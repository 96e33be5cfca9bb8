"""Tiny, seeded models of the supported architectures: real transformers classes, no files."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

__all__ = ["ARCHITECTURES", "tiny_model"]

_VOCABULARY = 61
_COMMON = {"vocab_size": _VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GATED = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 4},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
    },
    "gptj": {**_GPT, "rotary_dim": 4},
    "gpt2": _GPT,
}


def tiny_model(
    model_type: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """Build a model of about ten thousand random weights, the same for the same arguments.

    Its initial weights are scaled up, so that it says different things to different prompts.
    """
    config = AutoConfig.for_model(model_type, **{**_COMMON, **ARCHITECTURES[model_type], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(10)
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval()
