"""Faults: fault models, the space of sites, the injector, and the proof that a fault landed."""

from ft2.faults.bit_chances import bit_chances
from ft2.faults.change import change_sizes, exponents, flips_top_bit
from ft2.faults.draw import Draw
from ft2.faults.fault import Fault
from ft2.faults.formats import FORMATS, NumberFormat, flip, format_of, number_format, pattern
from ft2.faults.injection import Injection, inject
from ft2.faults.models import FAULT_MODELS, FaultModel, fault_model
from ft2.faults.one_encoding import one_encoding
from ft2.faults.space import EmptySpaceError, Execution, Space, Step

__all__ = [
    "FAULT_MODELS",
    "FORMATS",
    "Draw",
    "EmptySpaceError",
    "Execution",
    "Fault",
    "FaultModel",
    "Injection",
    "NumberFormat",
    "Space",
    "Step",
    "bit_chances",
    "change_sizes",
    "exponents",
    "fault_model",
    "flip",
    "flips_top_bit",
    "format_of",
    "inject",
    "number_format",
    "one_encoding",
    "pattern",
]
