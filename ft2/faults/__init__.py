"""Faults: fault models, the space of sites, the injector, and the proof that a fault landed."""

from ft2.faults.draw import Draw
from ft2.faults.fault import Fault
from ft2.faults.formats import FORMATS, NumberFormat, flip, format_of, number_format, pattern
from ft2.faults.injection import Injection, inject
from ft2.faults.models import FAULT_MODELS, FaultModel, fault_model
from ft2.faults.space import EmptySpaceError, Execution, Space, Step
from ft2.faults.strata import OTHER_BITS, TOP_BIT, sample_top_bit, stratum_of, top_bit_weight

__all__ = [
    "FAULT_MODELS",
    "FORMATS",
    "OTHER_BITS",
    "TOP_BIT",
    "Draw",
    "EmptySpaceError",
    "Execution",
    "Fault",
    "FaultModel",
    "Injection",
    "NumberFormat",
    "Space",
    "Step",
    "fault_model",
    "flip",
    "format_of",
    "inject",
    "number_format",
    "pattern",
    "sample_top_bit",
    "stratum_of",
    "top_bit_weight",
]
