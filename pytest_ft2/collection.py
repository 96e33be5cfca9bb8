"""Put chunks and gates beside the items of a gated test."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from _pytest.skipping import evaluate_skip_marks

from ft2.verdict import POOL, AllocationRule, Budget, never_passes
from pytest_ft2.items import Campaign, ChunkItem, GateItem
from pytest_ft2.marks import MARK, SdcBudget, read_mark
from pytest_ft2.options import Settings
from pytest_ft2.plan import GatePlan
from pytest_ft2.protections import protection_options

__all__ = ["campaign_items", "late_marks", "refuse_unsupported"]

_COLLECTED = pytest.StashKey[pytest.Mark]()

_ASYNC_MARKS = ("asyncio", "anyio", "trio", "tornado", "gen_test")


def campaign_items(
    items: Sequence[pytest.Item | pytest.Collector], settings: Settings
) -> list[pytest.Item | pytest.Collector]:
    """Return the items of one test function, with its chunks and gates after them.

    Parameters
    ----------
    items:
        All items that pytest made of one function.

    Raises
    ------
    pytest.Collector.CollectError
        If the test cannot be gated as its marker says; the message is one sentence.
    """
    functions = [item for item in items if isinstance(item, pytest.Function)]
    marks = [item.get_closest_marker(MARK) for item in functions]
    if not any(marks):
        return list(items)
    for function, mark in zip(functions, marks, strict=True):
        if mark is not None:
            function.stash[_COLLECTED] = mark
    try:
        if any(mark is None or mark != marks[0] for mark in marks):
            raise ValueError(
                "sdc_budget on some parameter sets alone would leave the others out of the gate: "
                'put it on the function, with per="params" for a gate each'
            )
        _check_ids(functions)
        groups = _groups(functions, settings)
        budgets = [read_mark(_mark(members[0])) for members in groups.values()]
    except ValueError as error:
        raise pytest.Collector.CollectError(f"{functions[0].nodeid}: {error}.") from None
    labels = _labels(groups)
    added: list[pytest.Item] = []
    for (key, members), budget in zip(groups.items(), budgets, strict=True):
        added += _campaign(members, labels[key], budget, settings)
    taken = {item.name for item in items}
    for item in added:
        if item.name in taken:
            raise pytest.Collector.CollectError(
                f"{item.nodeid} is the name of a test and of what ft2 puts beside it: rename the "
                "parameter's id."
            )
    return [*items, *added]


def late_marks(items: Iterable[pytest.Item]) -> str | None:
    """Return a sentence on a marker that came after gates were put beside their tests, or None."""
    for item in items:
        mark = item.get_closest_marker(MARK)
        ours = isinstance(item, ChunkItem | GateItem)
        if mark is not None and not ours and item.stash.get(_COLLECTED, None) != mark:
            return (
                f"{item.nodeid} got its sdc_budget marker after it was collected (by a "
                "pytest_collection_modifyitems or pytest_itemcollected hook, or while it ran), too "
                "late for a gate: put the marker on the function, on its class, or in its module's "
                "pytestmark"
            )
    return None


def refuse_unsupported(collector: pytest.Collector, name: str, thing: object) -> None:
    """Refuse a marked ``unittest`` method.

    Raises
    ------
    pytest.Collector.CollectError
        With a sentence that says what to do.
    """
    import unittest

    if not (inspect.isclass(thing) and issubclass(thing, unittest.TestCase)):
        return
    marked = [thing, *(getattr(thing, attribute, None) for attribute in dir(thing))]
    if collector.get_closest_marker(MARK) is not None or any(
        mark.name == MARK for entry in marked for mark in _marks(entry)
    ):
        raise pytest.Collector.CollectError(
            f"{collector.nodeid}::{name}: sdc_budget does not work on unittest.TestCase methods "
            "yet: make it a plain function or a class without that base."
        )


def _marks(thing: object) -> Iterable[Any]:
    marks = getattr(thing, "pytestmark", [])
    marks = marks if isinstance(marks, list) else [marks]
    return [getattr(mark, "mark", mark) for mark in marks]


def _mark(item: pytest.Function) -> pytest.Mark:
    mark = item.get_closest_marker(MARK)
    assert mark is not None
    return mark


def _groups(
    functions: list[pytest.Function], settings: Settings
) -> dict[tuple[object, ...], list[pytest.Function]]:
    """Group a function's items into campaigns: by what the model depends on."""
    _check_function(functions[0])
    protection_options(_protection(functions[0], settings), settings)
    _check_sampling(settings)
    closure = _model_closure(functions[0], settings)
    groups: dict[tuple[object, ...], list[pytest.Function]] = {}
    for item in functions:
        callspec = getattr(item, "callspec", None)
        if callspec is None:
            key: tuple[object, ...] = ()
        elif read_mark(_mark(item)).per == "params":
            key = (callspec.id,)
        else:
            key = tuple(
                (name, index) for name, index in callspec.indices.items() if name in closure
            )
        groups.setdefault(key, []).append(item)
    return groups


def _check_ids(functions: list[pytest.Function]) -> None:
    """Refuse parameter sets that cannot be told apart; stacked ones can make the same id."""
    times = Counter(function.name for function in functions)
    name, most = times.most_common(1)[0]
    if most > 1:
        raise ValueError(
            f"{most} parameter sets are all called {name}, and a gate tells them apart by their "
            "names: give their parameters other ids"
        )


def _check_function(function: pytest.Function) -> None:
    if inspect.iscoroutinefunction(function.obj) and not any(
        function.get_closest_marker(name) for name in _ASYNC_MARKS
    ):
        raise ValueError(
            "sdc_budget on an async test needs a plugin that runs it, such as pytest-asyncio with "
            "its marker; without one it cannot be gated"
        )
    if "subtests" in function.fixturenames:
        raise ValueError(
            "sdc_budget does not work with the subtests fixture yet: parametrise the test instead"
        )
    if "sdc_reduction" in function.fixturenames:
        raise ValueError(
            "a test that compares with and without the protection by sdc_reduction cannot be gated "
            "too: take sdc_budget off"
        )
    if "fault_injector" in function.fixturenames:
        raise ValueError(
            "a test that places faults by hand with fault_injector cannot be gated too: take "
            "sdc_budget off, or leave the faults to it"
        )
    protection = read_mark(_mark(function)).protection
    if "protected_model" in function.fixturenames and protection == "none":
        raise ValueError("the test uses protected_model, and its marker says protection='none'")
    if "unprotected_model" in function.fixturenames and protection not in (None, "none"):
        raise ValueError(
            f"the test uses unprotected_model, and its marker says protection={protection!r}"
        )


def _check_sampling(settings: Settings) -> None:
    """Refuse strata where they cannot be had."""
    if settings.sampling == "stratified" and settings.stop == "early":
        raise ValueError(
            "--ft2-sampling=stratified cannot be combined with --ft2-stop=early, whose looks count "
            "each trial alike: leave one of them out"
        )


def _protection(function: pytest.Function, settings: Settings) -> str:
    """Return the name of the protection that the function's trials have."""
    if "unprotected_model" in function.fixturenames:
        return "none"
    return read_mark(_mark(function)).protection or settings.protection


def _model_closure(function: pytest.Function, settings: Settings) -> set[str]:
    """Return the names of the fixtures and parameters that the model fixture depends on."""
    definitions = function._fixtureinfo.name2fixturedefs
    manager = function.session._fixturemanager
    closure: set[str] = set()
    waiting = [settings.model_fixture]
    while waiting:
        name = waiting.pop()
        if name in closure:
            continue
        closure.add(name)
        found = definitions.get(name) or manager.getfixturedefs(name, function) or ()
        if not found and name == settings.model_fixture:
            raise ValueError(
                f"there is no fixture {name!r}: name the fixture that returns the model with the "
                "ini option ft2_model_fixture"
            )
        waiting.extend(argument for each in found for argument in each.argnames)
    return closure


def _labels(groups: dict[tuple[object, ...], list[pytest.Function]]) -> dict[Any, str]:
    """Name the groups of one function by those of their items' ids that tell them apart."""
    first = next(iter(groups.values()))[0]
    if read_mark(_mark(first)).per == "params" and hasattr(first, "callspec"):
        return {key: members[0].callspec.id for key, members in groups.items()}
    if len(groups) == 1:
        return dict.fromkeys(groups, "")
    ids = {
        key: [tuple(item.callspec._idlist) for item in members] for key, members in groups.items()
    }
    places = range(min(len(each) for members in ids.values() for each in members))
    telling = [
        place
        for place in places
        if all(len({each[place] for each in members}) == 1 for members in ids.values())
        and len({members[0][place] for members in ids.values()}) > 1
    ]
    labels = {key: "-".join(members[0][place] for place in telling) for key, members in ids.items()}
    if len(set(labels.values())) < len(labels):
        return {key: f"model{number}" for number, key in enumerate(labels)}
    return labels


def _campaign(
    members: list[pytest.Function], label: str, budget: SdcBudget, settings: Settings
) -> list[pytest.Item]:
    running = [item for item in members if evaluate_skip_marks(item) is None]
    if not running:
        return []
    first = running[0]
    parent = first.parent
    assert parent is not None
    planned = budget.faults or settings.faults
    protection = _protection(first, settings)
    name = f"{first.originalname}[{label}]" if label else first.originalname
    start = f"{first.originalname}[{label}-" if label else f"{first.originalname}["
    plan = GatePlan(
        key=f"{parent.nodeid}::{name}",
        prefix=f"{parent.nodeid}::{start}",
        location=first.location,
        planned=planned,
        chunk=settings.chunk or GatePlan.default_chunk(planned),
        sets=tuple(item.callspec.id if hasattr(item, "callspec") else "" for item in running),
        budget=budget.percent,
        confidence=budget.confidence,
        due_budget=float(budget.due_budget),
        fault_model=budget.fault_model or settings.fault_model,
        protection=protection,
        **protection_options(protection, settings),
        encoding=settings.encoding,
        golden=budget.golden,
        seed=settings.seed,
        sampling=settings.sampling,
        more=AllocationRule(planned).most_more if settings.sampling == "stratified" else 0,
        pool=POOL * planned if settings.sampling == "stratified" else 0,
        stop=settings.stop,
        trial_timeout=settings.trial_timeout,
        replay_options=settings.chosen_options,
    )
    gate_budget = Budget(plan.budget, plan.due_budget, plan.confidence)
    # A replay plans no trials, and decides nothing.
    hopeless = never_passes(planned, gate_budget) if planned else None
    if hopeless is not None:
        first.warn(pytest.PytestWarning(f"{plan.key}: {hopeless}."))
    campaign = Campaign(plan, running)
    campaign.chunks = [
        ChunkItem.from_parent(
            parent,
            name=plan.chunk_id(trials).removeprefix(f"{parent.nodeid}::"),
            campaign=campaign,
            trials=trials,
        )
        for trials in plan.chunks
    ]
    gate_name = plan.gate_id.removeprefix(f"{parent.nodeid}::")
    gate = GateItem.from_parent(parent, name=gate_name, campaign=campaign)
    return [*campaign.chunks, gate]
