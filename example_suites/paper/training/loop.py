"""Train one model on examples, until it answers what it has not seen or the time is over."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from training.examples import IGNORE, Examples

__all__ = ["Limits", "Trained", "exact_share", "train"]

TOKENS_PER_BATCH = 16_384
PEAK_RATE = 2e-3
WEIGHT_DECAY = 0.1
WARMUP_STEPS = 200
# After the target is met, or with this share of the limits left, the rate falls to nought.
COOLDOWN_STEPS = 1500
COOLDOWN_SHARE = 0.3
# Of a batch being one of a task, beside its share of wrong answers: what is known is not forgotten.
_LEAST_WEIGHT = 0.1
# Lengths are rounded up to this many tokens, so that few shapes are seen and little is padding.
_GRAIN = 8


@dataclass(frozen=True)
class Limits:
    """When training ends.

    Attributes
    ----------
    target:
        The share of the validation questions, of each task, answered exactly; then the rate falls
        and training ends.
    deadline:
        The time, as :func:`time.time` tells it, when it ends at the latest.
    steps:
        After how many steps it ends at the latest.
    """

    target: float
    deadline: float
    steps: int


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes
    ----------
    steps:
        Steps of the optimizer.
    seconds:
        Wall time.
    loss:
        The loss over the last steps, in nats a token of a reply, its exponential moving average.
    exact:
        By task, the share of the validation questions answered word for word.
    """

    steps: int
    seconds: float
    loss: float
    exact: dict[str, float]


@torch.no_grad()
def exact_share(model: PreTrainedModel, examples: Examples) -> float:
    """Return the share of replies that greedy decoding would give word for word.

    One forward tells: greedy decoding gives a reply if each of its tokens is the likeliest one
    after those before it.
    """
    model.eval()
    right = 0
    for rows in torch.arange(len(examples), device=examples.ids.device).split(256):
        ids, labels = examples.batch(rows, int(examples.length[rows].max()))
        said = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int(((said == labels[:, 1:]) | (labels[:, 1:] == IGNORE)).all(1).sum())
    model.train()
    return right / len(examples)


def train(
    model: PreTrainedModel,
    examples: Mapping[str, Examples],
    validation: Mapping[str, Examples],
    limits: Limits,
    seed: int,
    log: Callable[[str], None],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    seconds_between_checks: float = 20.0,
    steps_between_checks: int = 100,
) -> Trained:
    """Train a model in place, on the device it is on.

    The more validation questions of a task are answered wrongly, the more batches are of that task.

    The rate rises, stays, and falls to nought once the target is met or the limits are near
    (:data:`COOLDOWN_SHARE`). Given the same seed, device and limit of steps, and time enough, the
    same batches are seen and the same steps taken.

    Parameters
    ----------
    model:
        The model; its weights are float32. On CUDA the forward runs in bfloat16.
    examples:
        By task, what it is trained on, on the model's device.
    validation:
        By task, what it is checked on, on the model's device.
    limits:
        When to stop.
    seed:
        The seed of the order of the examples.
    log:
        Called with a line on the progress.
    tokens_per_batch:
        How many tokens a step sees, padding included.
    seconds_between_checks:
        Seconds between two such lines.
    steps_between_checks:
        Steps between two looks at the validation questions.
    """
    batches = {task: _Batches(some, tokens_per_batch, seed) for task, some in examples.items()}
    choice = random.Random(seed)
    weights = [1.0 for _ in batches]
    optimizer = _optimizer(model)
    half = torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda")
    start = logged = time.time()
    cooldown: _Cooldown | None = None
    loss_sum = torch.zeros((), device=model.device)
    exact: dict[str, float] = {}
    average, summed = math.nan, 0
    step = 0
    model.train()
    while time.time() < limits.deadline and (cooldown is None or cooldown.share_left(step) > 0):
        rate = PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        if cooldown is not None:
            rate *= cooldown.share_left(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        (task,) = choice.choices(list(batches), weights)
        ids, labels = batches[task].draw()
        with half:
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.detach()
        summed += 1
        step += 1

        checked = step % steps_between_checks == 0
        if checked:
            with half:
                exact = {task: exact_share(model, some) for task, some in validation.items()}
            weights = [_LEAST_WEIGHT + 1 - exact[each] for each in batches]
            average, summed = float(loss_sum) / summed, 0
            loss_sum.zero_()
        if checked and time.time() - logged >= seconds_between_checks:
            logged = time.time()
            log(_progress(step, logged - start, average, exact, cooldown is not None))
        if cooldown is None:
            met = checked and min(exact.values()) >= limits.target
            cooldown = _cooldown(limits, start, step, met)
    with half:
        exact = {task: exact_share(model, some) for task, some in validation.items()}
    if summed:
        average = float(loss_sum) / summed
    return Trained(step, time.time() - start, average, exact)


class _Batches:
    """Batches of examples of about the same length, at random."""

    def __init__(self, examples: Examples, tokens: int, seed: int) -> None:
        self._examples = examples
        self._tokens = tokens
        device = examples.ids.device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._random = random.Random(seed)
        grains = (examples.length.long() + _GRAIN - 1) // _GRAIN
        self._widths = [int(grain) * _GRAIN for grain in grains.unique()]
        self._rows = [(grains * _GRAIN == width).nonzero().squeeze(1) for width in self._widths]
        # As many batches of a width as its examples fill: each example is as likely.
        self._weights = [
            len(rows) * width for rows, width in zip(self._rows, self._widths, strict=True)
        ]

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        (which,) = self._random.choices(range(len(self._widths)), self._weights)
        width, rows = min(self._widths[which], self._examples.ids.shape[1]), self._rows[which]
        drawn = torch.randint(
            len(rows),
            (max(1, self._tokens // width),),
            generator=self._generator,
            device=rows.device,
        )
        return self._examples.batch(rows[drawn], width)


@dataclass(frozen=True)
class _Cooldown:
    step: int
    steps: int
    time: float
    seconds: float

    def share_left(self, step: int) -> float:
        done = (step - self.step) / max(1, self.steps)
        gone = (time.time() - self.time) / max(1e-3, self.seconds)
        return 1 - max(done, gone)


def _cooldown(limits: Limits, start: float, step: int, met: bool) -> _Cooldown | None:
    now = time.time()
    left = limits.deadline - now
    late = left <= COOLDOWN_SHARE * (limits.deadline - start)
    last = step >= limits.steps - min(COOLDOWN_STEPS, int(COOLDOWN_SHARE * limits.steps))
    if not (met or late or last):
        return None
    if late and not met:
        return _Cooldown(step, limits.steps - step, now, left)
    # By steps alone: the clock would tell two runs of one seed apart.
    return _Cooldown(step, min(COOLDOWN_STEPS, limits.steps - step), now, math.inf)


def _optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW that decays matrices, and neither biases nor norms."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=PEAK_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )


def _progress(
    step: int, seconds: float, loss: float, exact: Mapping[str, float], cooling: bool
) -> str:
    shares = ", ".join(f"{task} {100 * share:.1f} %" for task, share in exact.items())
    phase = ", cooling down" if cooling else ""
    return f"{seconds:.0f} s, step {step}, loss {loss:.4f}, {shares}{phase}"
