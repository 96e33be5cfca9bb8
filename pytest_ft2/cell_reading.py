"""Read from fault-free runs into which cell each draw falls, and how large the cells are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice

from ft2.campaign import ExponentReader
from ft2.faults import (
    Draw,
    Fault,
    NumberFormat,
    bit_chances,
    change_sizes,
    fault_model,
    flips_top_bit,
    number_format,
    one_encoding,
)
from ft2.report import layer_kind
from ft2.verdict import Cell
from pytest_ft2.cells import CampaignCells, UnknownCellsError
from pytest_ft2.goldens import GoldenRunner

__all__ = ["read_cells"]

# So many sites are read in one fault-free run, at most.
_AT_ONCE = 50_000


def read_cells(goldens: GoldenRunner, sets: Sequence[int]) -> CampaignCells:
    """Read from fault-free runs into which cell each draw falls, and how large the cells are.

    Parameters
    ----------
    sets:
        The numbers of the parameter sets that trials are dealt to in turn.

    Raises
    ------
    UnknownCellsError
        With a sentence on why they cannot be known.
    """
    draws = goldens.plan.draws
    found = CampaignCells.of(len(draws))
    for place, number in enumerate(sets):
        of_set = iter(draws[place :: len(sets)])
        while block := [*islice(of_set, _AT_ONCE)]:
            _read(goldens, number, block, found)
    return found


def _read(goldens: GoldenRunner, number: int, draws: list[int], found: CampaignCells) -> None:
    plan, golden = goldens.plan, goldens.of_set(number).golden
    name = goldens.campaign.sets[number].nodeid
    if golden is None:
        raise UnknownCellsError(f"Strata need the golden run {name}, and there is none.")
    model = fault_model(plan.fault_model)
    try:
        encoding = one_encoding(golden.space, plan.encoding)
        faults = {
            draw: golden.space.sample(Draw(plan.seed, plan.key, draw), model, plan.encoding)
            for draw in draws
        }
    except ValueError as error:
        raise UnknownCellsError(f"{name}: {error}.") from error
    reader = ExponentReader(encoding, faults)
    problem = goldens.read(number, reader)
    if problem is not None:
        raise UnknownCellsError(problem)
    for draw, fault in faults.items():
        found.put(draw, _cell(fault, encoding, reader.found[draw]))
    if number not in found.masses:
        chances = {bits: float(chance) for bits, chance in bit_chances(model, encoding).items()}
        found.masses[number] = _masses(reader.masses(golden.space), chances, encoding)


def _masses(
    read: Mapping[tuple[str, str, int], float],
    chances: Mapping[tuple[int, ...], float],
    encoding: NumberFormat,
) -> dict[Cell, float]:
    by_kind: dict[tuple[str, str, int], float] = {}
    for (layer, phase, exponent), mass in read.items():
        key = _kind(layer), phase, exponent
        by_kind[key] = by_kind.get(key, 0.0) + mass
    # There are thousands of ways to flip two bits, and few of them differ in their cell.
    flips: dict[int, dict[tuple[int, bool, int], float]] = {}
    for exponent in {exponent for _, _, exponent in by_kind}:
        alike = flips[exponent] = {}
        for bits, chance in chances.items():
            flip = bits[-1], flips_top_bit(bits, encoding), change_sizes(bits, encoding)[exponent]
            alike[flip] = alike.get(flip, 0.0) + chance
    masses: dict[Cell, float] = {}
    for (kind, phase, exponent), mass in by_kind.items():
        for flip, chance in flips[exponent].items():
            cell = Cell(kind, phase, *flip)
            masses[cell] = masses.get(cell, 0.0) + mass * chance
    return masses


def _cell(fault: Fault, encoding: NumberFormat, exponent: int) -> Cell:
    phase = "first" if fault.step == 0 else "later"
    return _cell_of(_kind(fault.layer), phase, fault.bits, encoding.name, exponent)


@lru_cache(maxsize=1 << 16)
def _cell_of(kind: str, phase: str, bits: tuple[int, ...], encoding: str, exponent: int) -> Cell:
    known = number_format(encoding)
    size = change_sizes(bits, known)[exponent]
    return Cell(kind, phase, bits[-1], flips_top_bit(bits, known), size)


@lru_cache(maxsize=1 << 12)
def _kind(layer: str) -> str:
    return layer_kind(layer)
