"""The trials of a gate without pytest: prompts, their answers, and a judge."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ft2.campaign.ahead import Ahead, Batched, GoldenCalls
from ft2.campaign.golden import Golden
from ft2.campaign.judges import Judge
from ft2.campaign.judges import judge as judge_called
from ft2.campaign.outcome import is_harness_error, outcome_of
from ft2.campaign.randomness import preserved_randomness, seed_everything
from ft2.campaign.replies import Replies
from ft2.campaign.run import Run, RunSpec
from ft2.campaign.watched import Watched
from ft2.faults import Draw, Fault
from ft2.faults import fault_model as fault_model_called
from ft2.layers import unwrap

__all__ = ["Campaign"]


class Campaign:
    """Asks a model each prompt once without a fault, and many times with one fault each.

    Parameters
    ----------
    model:
        A causal language model, in eval mode.
    prompts:
        Texts, if there is a tokenizer, or lists of token ids.
    answers:
        What the judge compares with, one for each prompt.
    judge:
        ``contains``, ``equals``, ``number`` (the last number said is the answer), or a function of
        what was said and the answer. What was said is the new text, or the new token ids where
        there is no tokenizer.
    tokenizer:
        Turns texts into token ids and back.
    faults:
        Trials; trial i asks prompt i modulo their number.
    fault_model, encoding, seed:
        As ``--ft2-fault-model``, ``--ft2-encoding`` and ``--ft2-seed``.
    protection, bounds, correction:
        As in :func:`ft2.protect`.
    golden:
        ``require``: the fault-free model must answer all prompts rightly. ``exclude``: prompts that
        it answers wrongly are left out.
    batch:
        Rows of a batch, at most; 1: one trial at a time; None: what fits into the memory. In fp16
        and bf16 each prompt has a batch of exactly so many rows.
    generation:
        Arguments of ``generate``, such as ``max_new_tokens``.

    Raises
    ------
    ValueError
        If a name is unknown, or prompts and answers are not as many.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Any],
        answers: Sequence[Any],
        judge: str | Judge = "contains",
        *,
        tokenizer: Any = None,
        faults: int = 500,
        fault_model: str = "1-bit",
        encoding: str | None = None,
        seed: int = 0,
        protection: str = "ft2",
        bounds: str | None = None,
        correction: Literal["clip", "zero"] | None = None,
        golden: Literal["require", "exclude"] = "require",
        batch: int | None = None,
        generation: dict[str, Any] | None = None,
    ) -> None:
        if len(prompts) != len(answers) or not prompts:
            raise ValueError(
                f"each prompt has an answer, but there are {len(prompts)} prompts and "
                f"{len(answers)} answers"
            )
        self._model = model
        self._prompts, self._answers = list(prompts), list(answers)
        self._judge = judge_called(judge)
        self._tokenizer = tokenizer
        self._faults, self._encoding, self._seed = faults, encoding, seed
        self._bits = fault_model_called(fault_model)
        self._protected = RunSpec(protection=protection, bounds=bounds, correction=correction)
        self._must_be_right = golden == "require"
        self._batch = batch
        self._generation = {"do_sample": False, **(generation or {})}

    def run(self, progress: bool = True) -> list[dict[str, Any]]:
        """Run all trials.

        Parameters
        ----------
        progress:
            Whether to show a progress bar.

        Returns
        -------
        list of dict
            A record of each trial, with plain values: what ``pandas.DataFrame`` takes, and what
            :func:`ft2.compare` takes of two campaigns. ``batch`` is how many rows its batch had at
            most, ``alone`` why it had none. 1 % of the batched trials, and at least 5, run again
            alone; ``alike`` says whether they ended alike. If one did not, and no rounding of half
            precision explains it, there is a warning.

        Raises
        ------
        ValueError
            If the fault-free model answers wrongly where it must not, or no prompt remains.
        """
        goldens: list[tuple[int, Golden, GoldenCalls]] = []
        wrong = []
        for number in range(len(self._prompts)):
            run, said = self._ask(number, RunSpec(record=True))
            if said is None or run.golden is None or not self._is_right(number, said):
                wrong.append(number)
                continue
            golden = run.golden
            if self._protected.protection != "none":
                run, _ = self._ask(number, self._spec(record=True))
            assert run.golden is not None
            goldens.append((number, golden, GoldenCalls(run.asked, run.calls, run.golden.outputs)))
        if not goldens or (wrong and self._must_be_right):
            raise ValueError(
                f"the fault-free model answers {len(wrong)} of {len(self._prompts)} prompts "
                f"wrongly (prompt {self._prompts[wrong[0]]!r}, say): leave them out, or use "
                "golden='exclude'"
            )
        faults = []
        for trial in range(self._faults):
            place = trial % len(goldens)
            space = goldens[place][1].space
            draw = Draw(self._seed, "campaign", trial)
            faults.append((trial, place, space.sample(draw, self._bits, self._encoding)))
        with tqdm(total=len(faults), disable=not progress, unit="trial") as bar:
            computed: dict[int, Batched | str] = {}
            if self._batch != 1:
                ahead = Ahead(
                    self._protected.protection,
                    self._protected.bounds,
                    self._protected.correction,
                    self._batch,
                )
                calls = {place: each for place, (_, _, each) in enumerate(goldens)}
                computed = ahead.compute(calls, faults, bar.update)
                if ahead.problem is not None:
                    warnings.warn(ahead.problem, RuntimeWarning, stacklevel=2)
            records = []
            watched = Watched(len(faults))
            for trial, place, fault in faults:
                number, known = goldens[place][0], computed.get(trial)
                record = self._record(trial, number, fault, known)
                if watched.takes(trial, record["batch"] > 1):
                    alone = self._record(trial, number, fault, None)
                    record["alike"] = alone["outcome"] == record["outcome"]
                records.append(record)
                if not isinstance(known, Batched):
                    bar.update()
        different = [each["trial"] for each in records if each["alike"] is False]
        if different and not any(calls.is_half for _, _, calls in goldens):
            sentence = (
                f"{len(different)} trials, {different[0]} say, end differently in a batch and "
                "alone, which no rounding explains: use batch=1."
            )
            warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        return records

    def _spec(self, fault: Fault | None = None, record: bool = False) -> RunSpec:
        given = self._protected
        return RunSpec(given.protection, given.bounds, given.correction, fault, record)

    def _ask(
        self, number: int, spec: RunSpec, replies: Replies | None = None
    ) -> tuple[Run, Any | None]:
        """Ask a prompt; return what was said, None if the model raised."""
        run = Run(spec, replies)
        with preserved_randomness():
            seed_everything(self._seed, f"campaign\n{number}")
            run.attach(self._model)
            try:
                ids = self._ids(number)
                model: Any = unwrap(self._model)
                said = model.generate(ids, attention_mask=torch.ones_like(ids), **self._generation)
            except Exception as error:
                if run.error is None or is_harness_error(error):
                    raise
                return run, None
            finally:
                run.detach()
        new: list[int] = said[0, ids.shape[1] :].tolist()
        if self._tokenizer is None:
            return run, new
        return run, self._tokenizer.decode(new, skip_special_tokens=True)

    def _ids(self, number: int) -> Tensor:
        prompt = self._prompts[number]
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise ValueError("texts need a tokenizer: give one, or prompts of token ids")
            prompt = self._tokenizer(prompt)["input_ids"]
        model: Any = unwrap(self._model)
        device = model.get_input_embeddings().weight.device
        return torch.as_tensor(prompt, device=device).reshape(1, -1)

    def _is_right(self, number: int, said: Any) -> bool:
        return self._judge(said, self._answers[number])

    def _record(
        self, trial: int, number: int, fault: Fault, known: Batched | str | None
    ) -> dict[str, Any]:
        said = None
        if isinstance(known, Batched):
            replies = known.replies()
            run, said = self._ask(number, self._spec(fault), replies)
            if not replies.delivered:
                known = "the model was asked for something else than without a fault"
        if not isinstance(known, Batched):
            run, said = self._ask(number, self._spec(fault))
        injection = run.injection
        assert injection is not None
        passed = said is not None and self._is_right(number, said)
        return {
            "trial": trial,
            "prompt": number,
            "call": fault.call,
            "step": fault.step,
            "layer": fault.layer,
            "position": fault.position,
            "neuron": fault.neuron,
            "bits": ":".join(map(str, fault.bits)),
            "fault": str(fault),
            "before": injection.before,
            "after": injection.after,
            "landed": injection.landed,
            "outcome": str(outcome_of(passed, said is None, timed_out=False))
            if injection.landed
            else None,
            "said": said,
            "corrected": run.corrected,
            "batch": known.batch if isinstance(known, Batched) else 1,
            "alone": known if isinstance(known, str) else None,
            "alike": None,
        }
