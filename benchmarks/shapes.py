"""The shapes of models that benchmarks build with weights at random, and of what they are asked."""

from __future__ import annotations

from typing import Any

__all__ = ["NARROW", "PROMPT", "SHAPES"]

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
# Of a few numbers a layer, so that Python and torch's dispatch take all the time, as on a GPU.
NARROW: dict[str, dict[str, Any]] = {
    "Llama, narrow": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "vocab_size": 600,
    },
    "Qwen2, narrow": {
        "model_type": "qwen2",
        "max_window_layers": 0,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 600,
    },
    "OPT, narrow": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "vocab_size": 600,
    },
    "GPT-J, narrow": {
        "model_type": "gptj",
        "n_embd": 32,
        "n_layer": 16,
        "n_head": 4,
        "rotary_dim": 8,
        "vocab_size": 600,
    },
}
# Tokens.
PROMPT = 100
