"""The tokenizer of the miniatures: a token a word, a digit, a Chinese character, a sign."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

__all__ = ["PAD", "build_tokenizer", "save_tokenizer"]

# A space belongs to what follows it, so that the tokens joined are the text.
_TOKEN = Regex(r"\n|\p{Han}| ?\d| ?\p{L}+| ?[^\s\p{L}\d]")

PAD = "<pad>"
_BEGIN, _END, _UNKNOWN = "<s>", "</s>", "<unk>"


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows every token of the texts, and writes ``<s>`` before a text."""
    tokenizer = Tokenizer(WordLevel(unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_TOKEN, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        special_tokens=[PAD, _BEGIN, _END, _UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, tokenizer.token_to_id(_BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=_BEGIN,
        eos_token=_END,
        unk_token=_UNKNOWN,
        padding_side="left",
        # The models take no token type ids.
        model_input_names=["input_ids", "attention_mask"],
        # Cleaning up would take the space before a sign away.
        clean_up_tokenization_spaces=False,
    )


# For these, AutoTokenizer takes the model's own class, whatever class the tokenizer was saved as,
# and that class keeps no more of the file than its words: it cuts texts in its own way. Only if the
# configuration names code for the tokenizer does AutoTokenizer take the class that was saved; the
# code, which does not exist, is left aside, as running it would need consent.
_OWN_CLASS = ("qwen2",)
_LEFT_ASIDE = {"AutoTokenizer": ["none.TokenizersBackend", None]}


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, model_type: str) -> None:
    """Save a tokenizer beside its model, so that ``AutoTokenizer`` loads it as it is."""
    tokenizer.save_pretrained(folder)
    if model_type in _OWN_CLASS:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text("utf-8")) | {"auto_map": _LEFT_ASIDE}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
