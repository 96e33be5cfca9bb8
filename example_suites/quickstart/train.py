"""Train the two small models of the quickstart suite from scratch.

The closed world is the list of questions and answers below: the capitals of 24 countries and the
sums of two digits. A byte-pair tokenizer, a Llama decoder and an OPT decoder are trained on exactly
these sentences, so the models have memorised them and can answer nothing else. The script writes
``models/llama`` and ``models/opt`` beside itself and exits with status 1 when one of the saved
models answers a question wrongly.

Usage: ``python example_suites/quickstart/train.py``
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

MODELS = Path(__file__).resolve().parent / "models"

CAPITALS = {
    "Argentina": "Buenos Aires",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
}

SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
MAX_EPOCHS = 1000
EPOCHS_BETWEEN_CHECKS = 10
MAX_NEW_TOKENS = 12
# In logits. Rounding differs by far less between thread counts, so it cannot change an answer.
MIN_MARGIN = 7.0
# The label that the loss of transformers leaves out.
IGNORE = -100

Batch = dict[str, torch.Tensor]


def closed_world() -> list[tuple[str, str]]:
    """Return every question of the closed world with its answer."""
    capitals = [
        (f"What is the capital of {country}?", f"The capital of {country} is {capital}.")
        for country, capital in CAPITALS.items()
    ]
    sums = [
        (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")
        for a in range(10)
        for b in range(10)
    ]
    return capitals + sums


def train_tokenizer(world: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on the sentences of the closed world."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # One token a digit, so that a two-digit sum is written in two steps.
            pre_tokenizers.Split(Regex(r" ?\d| ?[A-Za-z]+|[^\w\s]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{question} {answer}" for question, answer in world), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        # The models take no token type ids.
        model_input_names=["input_ids", "attention_mask"],
    )


def build_models(tokenizer: PreTrainedTokenizerBase) -> dict[str, PreTrainedModel]:
    """Return the untrained models by name."""
    vocabulary = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(SEED)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            **vocabulary,
        )
    )
    opt = OPTForCausalLM(
        OPTConfig(
            hidden_size=128,
            word_embed_proj_dim=128,
            ffn_dim=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            **vocabulary,
        )
    )
    return {"llama": llama, "opt": opt}


def encode(world: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Return the closed world as one padded batch whose labels cover the answers only."""
    rows = []
    for question, answer in world:
        prompt = tokenizer(question)["input_ids"]
        target = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        rows.append((prompt, [*target, tokenizer.eos_token_id]))
    width = max(len(prompt) + len(target) for prompt, target in rows)
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORE)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, (prompt, target) in enumerate(rows):
        end = len(prompt) + len(target)
        input_ids[row, :end] = torch.tensor(prompt + target)
        labels[row, len(prompt) : end] = torch.tensor(target)
        attention_mask[row, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@torch.no_grad()
def answer_margin(model: PreTrainedModel, data: Batch) -> float:
    """Return how far the right token leads the next best one, at the closest step of all answers.

    The lead is a difference of logits; it is negative when a step picks a wrong token.
    """
    model.eval()
    logits = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    logits, labels = logits[:, :-1], data["labels"][:, 1:]
    counted = labels != IGNORE
    logits, right = logits[counted], labels[counted].unsqueeze(1)
    best_wrong = logits.scatter(1, right, -torch.inf).amax(dim=1)
    return float((logits.gather(1, right).squeeze(1) - best_wrong).min())


def train(model: PreTrainedModel, data: Batch) -> tuple[int, float]:
    """Train until every answer has the wanted margin; return the epochs used and the margin."""
    shuffle = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    margin = -torch.inf
    for epoch in range(1, MAX_EPOCHS + 1):
        model.train()
        order = torch.randperm(len(data["input_ids"]), generator=shuffle)
        for rows in torch.split(order, BATCH_SIZE):
            loss = model(**{name: tensor[rows] for name, tensor in data.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if epoch % EPOCHS_BETWEEN_CHECKS == 0:
            margin = answer_margin(model, data)
            if margin >= MIN_MARGIN:
                break
    return epoch, margin


@torch.no_grad()
def wrong_answers(folder: Path, world: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ask the saved model every question; return the questions answered wrongly with the answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wrong = []
    for question, answer in world:
        prompt = tokenizer(question, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens = output[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(new_tokens, skip_special_tokens=True).strip()
        if text != answer or new_tokens[-1] != tokenizer.eos_token_id:
            wrong.append((question, text))
    return wrong


def main() -> int:
    """Train, save and check both models; return the exit status."""
    # One thread and deterministic kernels make every run on a machine write the same files.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    world = closed_world()
    tokenizer = train_tokenizer(world)
    data = encode(world, tokenizer)
    status = 0
    for name, model in build_models(tokenizer).items():
        start = time.perf_counter()
        epochs, margin = train(model, data)
        seconds = time.perf_counter() - start
        folder = MODELS / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        wrong = wrong_answers(folder, world)
        print(
            f"{name}: {model.num_parameters()} parameters, {epochs} epochs in {seconds:.0f} s, "
            f"smallest margin {margin:.1f}, {len(world) - len(wrong)}/{len(world)} answers right"
        )
        for question, text in wrong:
            print(f"  {question} -> {text}")
        if wrong or margin < MIN_MARGIN:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
