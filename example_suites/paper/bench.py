"""Measure what tables need of one subject, unless it is known already."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from ft2.layers import UnsupportedModelError
from protections import Protection
from readers import Question
from results import Cell, Entry, Place, Results
from subject import Asked, Subject, digest_of
from trials import FaultFree, FaultSet, fault_free, measure

__all__ = ["Bench", "Need"]


@dataclass(frozen=True)
class Need:
    """A protection, and the faults that it is to meet."""

    protection: Protection
    faults: FaultSet


@dataclass(eq=False)
class Bench:
    """Runs trials into a subject's answers, and keeps the results.

    Parameters
    ----------
    subject:
        The model and its questions.
    results:
        Where numbers are kept.
    trials:
        How many for each cell.
    seed, rows, shared:
        As :func:`trials.measure` takes them.
    others:
        Questions of other tasks, by task: Figure 3 profiles bounds on them.
    new_tokens:
        How long the answers to those are at most; None: as in the paper.
    progress:
        Whether to show a progress bar.
    """

    subject: Subject
    results: Results
    trials: int
    seed: int = 0
    rows: int | None = None
    shared: bool = False
    progress: bool = True
    others: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    new_tokens: int | None = None

    def __post_init__(self) -> None:
        subject = self.subject
        self.place = Place(subject.name, subject.task, str(subject.precision))
        parameters = list(subject.model.parameters())
        device = parameters[0].device
        self._device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        key = str(self.place)
        parts = [subject.digest, f"seed={self.seed}"]
        if subject.precision.is_half:
            parts.append("shared" if self.shared else "own")
        self._of_subject = " ".join(parts)
        self.facts = self.results.subjects[key] = {
            **self.results.subjects.get(key, {}),
            "digest": self._of_subject,
            "class": type(subject.model).__name__,
            "parameters": sum(each.numel() for each in parameters),
            "questions": len(subject.asked),
            "tried": subject.tried,
            "right": subject.right,
            "too_long": subject.too_long,
            "profiled": len(subject.others),
            "confusable": subject.confusable,
            "steps": sum(len(each.said) for each in subject.asked),
            "prompt_tokens": sum(len(each.prompt.tokens) for each in subject.asked),
            "refused": {},
            "asked": [each.question.id for each in subject.asked],
        }

    def recorded(self, name: str, facts: Any) -> None:
        """Keep what a table says of the model itself."""
        self.facts[name] = facts

    def digest(self, protection: Protection) -> str:
        """Name all that a protection's trials depend on beside their numbers."""
        parts = [self._of_subject]
        if protection.is_profiled:
            parts.append(self.subject.profile_digest)
        return " ".join(parts)

    def run(self, needs: Iterable[Need]) -> None:
        """Measure what is not known, one protection after the other; save after each."""
        wanted: dict[Protection, list[FaultSet]] = {}
        for need in dict.fromkeys(needs):
            wanted.setdefault(need.protection, []).append(need.faults)
        missing = {each: self._missing(each, faults) for each, faults in wanted.items()}
        total = sum(len(numbers) for sets in missing.values() for numbers in sets.values())
        with tqdm(
            total=total, desc=str(self.place), unit="trial", disable=not (self.progress and total)
        ) as bar:
            done = 0
            for protection, sets in missing.items():
                if not sets:
                    continue
                bar.set_description(f"{self.place}: {protection.label}")
                self._measure(protection, sets, bar)
                done += sum(map(len, sets.values()))
                bar.n = done
                bar.refresh()

    def _missing(self, protection: Protection, sets: list[FaultSet]) -> dict[FaultSet, range]:
        digest = self.digest(protection)
        found = {}
        for faults in sets:
            known = self.results.get(Cell(self.place, faults, protection.label), digest)
            have = 0 if known is None else len(known.outcomes)
            if have < self.trials:
                found[faults] = range(have, self.trials)
        return found

    def _measure(self, protection: Protection, sets: dict[FaultSet, range], bar: Any) -> None:
        digest = self.digest(protection)
        cells = {faults: Cell(self.place, faults, protection.label) for faults in sets}
        known = {
            faults: entry
            for faults, cell in cells.items()
            if (entry := self.results.get(cell, digest)) is not None
        }
        try:
            measured = measure(
                self.subject,
                protection,
                sets,
                seed=self.seed,
                rows=self.rows,
                shared=self.shared,
                free=next(iter(known.values())).fault_free if len(known) == len(sets) else None,
                done=bar.update,
            )
        except UnsupportedModelError as error:
            self.facts["refused"][protection.label] = str(error)
            self.results.save()
            return
        count = sum(map(len, sets.values()))
        for faults, numbers in sets.items():
            entry = Entry(
                digest=digest,
                outcomes=measured.outcomes[faults],
                fault_free=measured.fault_free,
                rows=measured.rows,
                alone=measured.alone,
                checked=measured.checked,
                alike=measured.alike,
                seconds=measured.seconds * len(numbers) / count,
                device=self._device,
            )
            if faults in known:
                before = known[faults]
                entry = replace(
                    entry,
                    outcomes=before.outcomes + entry.outcomes,
                    alone=before.alone + entry.alone,
                    checked=before.checked + entry.checked,
                    alike=before.alike + entry.alike,
                    seconds=before.seconds + entry.seconds,
                )
            self.results.put(cells[faults], entry)
        self.results.save()

    def with_bounds_of(
        self, protection: Protection, source: str, questions: list[Asked]
    ) -> FaultFree:
        """Ask without any fault, with bounds profiled on some questions; keep it by `source`."""
        key = f"{self.place}: {protection.label} with bounds of {source}"
        digest = f"{self.subject.digest} {digest_of(questions)}"
        known = self.results.fault_free.get(key)
        if known is not None and known["digest"] == digest:
            return FaultFree(**{k: v for k, v in known.items() if k not in ("digest", "seconds")})
        started = time.perf_counter()
        profile = self.subject.profile_on(protection.policy, questions)
        found = fault_free(self.subject, protection, profile)
        seconds = time.perf_counter() - started
        self.results.fault_free[key] = {"digest": digest, "seconds": seconds, **asdict(found)}
        self.results.save()
        return found
