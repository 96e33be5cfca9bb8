"""Command-line options, their ini twins, and what they say together."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "CORRECTED_PROTECTIONS",
    "CORRECTIONS",
    "ENCODINGS",
    "FAULT_MODELS",
    "MOST_FAULTS",
    "NOISES",
    "PROFILED_PROTECTIONS",
    "PROTECTIONS",
    "SETTINGS",
    "Settings",
    "add_options",
    "read_settings",
]

# The names are repeated here because the registries they come from import torch; a test compares.
FAULT_MODELS = ("1-bit", "2-bit", "exp")
PROTECTIONS = (
    "ft2",
    "none",
    "ranger",
    "maximals",
    "global-clipper",
    "ft2-offline",
    "ft2-recompute",
)
PROFILED_PROTECTIONS = ("ranger", "maximals", "global-clipper", "ft2-offline")
CORRECTED_PROTECTIONS = ("ft2", "ft2-offline")
CORRECTIONS = ("clip", "zero")
ENCODINGS = ("fp16", "bf16", "fp32", "fp64", "fp8-e4m3", "fp8-e5m2")
STOPS = ("never", "early")
SAMPLINGS = ("uniform", "stratified")
MOST_FAULTS = 10_000_000
# An assertion on one of two answers holds on noise by chance half of the time: one that holds so
# often does not listen. Any other costs a run or two.
NOISES = 16
# Each noise is drawn with a seed of its own, and torch takes none of more than 64 bits.
_MOST_SEED = 2**64 - 1 - NOISES
# The system's timers know an end.
_MOST_SECONDS = 1_000_000
DTYPES = ("float32", "float16", "bfloat16", "auto")


@dataclass(frozen=True)
class Settings:
    """What the command line and the ini file ask for.

    Attributes
    ----------
    faults:
        Trials per gate; 0 switches campaigns off.
    chosen_options:
        The arguments, or what an environment put in place of the ini file, that a trial depends
        on: a replay needs them.
    """

    faults: int
    fault_model: str
    protection: str
    bounds: Path | None
    correction: str | None
    seed: int
    sampling: str
    stop: str
    chunk: int | None
    batch: int | None
    encoding: str | None
    trial_timeout: float | None
    json: Path | None
    replay: tuple[str, int] | None
    model: str | None
    device: str | None
    dtype: str
    model_fixture: str
    chosen_options: tuple[str, ...]

    @property
    def active(self) -> bool:
        """Whether gates are measured in this session."""
        return self.faults > 0 or self.replay is not None


SETTINGS = pytest.StashKey[Settings]()


@dataclass(frozen=True)
class _Option:
    name: str
    metavar: str
    help: str
    default: str | None
    read: Callable[[str], Any]
    shapes_a_trial: bool = False

    @property
    def flag(self) -> str:
        return "--ft2-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        return "ft2_" + self.name


def _whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.strip().isdecimal() or not least <= int(text) <= most:
            up_to = "" if most == math.inf else f" to {most}"
            raise ValueError(f"should be a whole number from {least}{up_to}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(f"should be a number of seconds above 0, up to {_MOST_SECONDS}")
    return seconds


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"should be one of {', '.join(names)}")
        return text

    return read


def _file_to_write(text: str) -> Path:
    path = Path(text).absolute()
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        raise ValueError("should be a file in a directory that exists")
    return path


def _file_to_read(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise ValueError("should be a file that is there")
    return path


def _trial(text: str) -> tuple[str, int]:
    test, _, trial = text.rpartition("#")
    if "::" not in test or not trial.isdecimal():
        raise ValueError("should read TEST#TRIAL, such as test_qa.py::test_capital#137")
    return test, int(trial)


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("should not be empty")
    return text


_OPTIONS = (
    _Option(
        "faults",
        "N",
        "trials per gate, one fault each; 0: no campaign",
        "0",
        _whole(0, MOST_FAULTS),
        shapes_a_trial=True,
    ),
    _Option(
        "fault_model",
        "NAME",
        f"which bits a fault flips: {', '.join(FAULT_MODELS)}",
        "1-bit",
        _one_of(FAULT_MODELS),
        shapes_a_trial=True,
    ),
    _Option(
        "protection",
        "NAME",
        f"policy on the model in trials: {', '.join(PROTECTIONS)}",
        "ft2",
        _one_of(PROTECTIONS),
        shapes_a_trial=True,
    ),
    _Option(
        "bounds",
        "FILE",
        "profiled bounds, as ft2.profile(...).save writes them; for "
        + ", ".join(PROFILED_PROTECTIONS),
        None,
        _file_to_read,
        shapes_a_trial=True,
    ),
    _Option(
        "correction",
        "NAME",
        f"what {' and '.join(CORRECTED_PROTECTIONS)} do with values out of bounds: "
        f"{', '.join(CORRECTIONS)}; default: clip",
        None,
        _one_of(CORRECTIONS),
        shapes_a_trial=True,
    ),
    _Option(
        "seed",
        "S",
        "whole number that determines every fault",
        "0",
        _whole(0, _MOST_SEED),
        shapes_a_trial=True,
    ),
    _Option(
        "sampling",
        "NAME",
        "stratified: more faults from where the first ones found SDCs, weighted by the strata's "
        "shares of the space; uniform: as the space has them",
        "uniform",
        _one_of(SAMPLINGS),
        shapes_a_trial=True,
    ),
    _Option(
        "stop",
        "WHEN",
        "early: run no more trials once the first of them decide a gate; never: run all",
        "never",
        _one_of(STOPS),
    ),
    _Option(
        "batch",
        "ROWS",
        "most trials computed together; 1: one at a time; default: what fits into the memory",
        None,
        _whole(1),
    ),
    _Option(
        "chunk",
        "K",
        "trials per item; default: 50, from 3200 trials on more, up to 500",
        None,
        _whole(1),
    ),
    _Option(
        "encoding",
        "NAME",
        f"number format whose bits are flipped: {', '.join(ENCODINGS)}; default: the value's own",
        None,
        _one_of(ENCODINGS),
        shapes_a_trial=True,
    ),
    _Option(
        "trial_timeout",
        "SECONDS",
        "a trial that takes longer is a DUE; default: 20 times the golden run, at least 10",
        None,
        _seconds,
    ),
    _Option("json", "FILE", "write records and verdicts there", None, _file_to_write),
    _Option("replay", "TEST#TRIAL", "run one trial again and show what it does", None, _trial),
    _Option(
        "model",
        "PATH_OR_ID",
        "model that the ft2_model fixture loads",
        None,
        _text,
        shapes_a_trial=True,
    ),
    _Option(
        "device",
        "DEVICE",
        "device of the ft2_model fixture's model",
        None,
        _text,
        shapes_a_trial=True,
    ),
    _Option(
        "dtype",
        "DTYPE",
        f"dtype of the ft2_model fixture's model: {', '.join(DTYPES)}",
        "auto",
        _one_of(DTYPES),
        shapes_a_trial=True,
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Register the options and their ini twins."""
    group = parser.getgroup("ft2", "soft errors in language models (ft2)")
    for option in _OPTIONS:
        default = "" if option.default is None else f"; default: {option.default}"
        group.addoption(
            option.flag,
            dest=option.ini,
            metavar=option.metavar,
            default=None,
            help=f"{option.help}{default} (ini: {option.ini})",
        )
        parser.addini(option.ini, f"{option.help}{default}; as {option.flag}", default=None)
    parser.addini(
        "ft2_model_fixture",
        "name of the fixture that returns the model under test; default: ft2_model",
        default=None,
    )


def read_settings(config: pytest.Config) -> Settings:
    """Read and check the options; an option beats its ini twin.

    Raises
    ------
    pytest.UsageError
        If one has a value that it cannot have; the message says which and what would be right.
    """
    values: dict[str, Any] = {}
    chosen: list[str] = []
    overridden = _overridden(config)
    for option in _OPTIONS:
        given = config.getoption(option.ini)
        from_ini = config.getini(option.ini)
        text = given if given is not None else from_ini or option.default
        # A file that the project's ini file names is the project's.
        place = config.rootpath / text if text and option.name == "bounds" and not given else text
        try:
            values[option.name] = None if place is None else option.read(str(place))
        except ValueError as error:
            source = option.flag if given is not None else f"ini option {option.ini}"
            raise pytest.UsageError(f"{source}: {error}, not {text!r}") from None
        if option.shapes_a_trial and (given is not None or option.ini in overridden):
            chosen.append(f"{option.flag}={text}")
    fixture = config.getini("ft2_model_fixture") or "ft2_model"
    if "ft2_model_fixture" in overridden:
        chosen.append(f"--override-ini=ft2_model_fixture={fixture}")
    if any(getattr(config.option, name, False) for name in ("setuponly", "trace")):
        # Trials would run bodies that are not to run, or each stop in the debugger.
        values["faults"] = 0
    start = config.invocation_params.dir
    if config.rootpath not in (start, *start.parents):
        # Without an argument pytest would not find this root folder again.
        chosen.append(os.path.relpath(config.rootpath, start))
    return Settings(**values, model_fixture=fixture, chosen_options=tuple(chosen))


def _overridden(config: pytest.Config) -> set[str]:
    """Return the names that ``-o NAME=VALUE`` sets in place of the ini file."""
    given: list[str] = config.getoption("override_ini", None) or []
    return {entry.partition("=")[0] for entry in given}
