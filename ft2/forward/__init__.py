"""A forward pass as it happens: its call, step, rows and tokens, and what each layer puts out."""

from ft2.forward.adoption import adopted, copied, records_gradients
from ft2.forward.attach import attach
from ft2.forward.cache_names import cache_argument, cache_in, cache_made_by, cache_name
from ft2.forward.call import Call, Forward, Listener
from ft2.forward.clock import Clock, request
from ft2.forward.lane import Lane, hears_nothing, takes_a_seat
from ft2.forward.review import Reviewer
from ft2.forward.rows import by_row, fit_tokens, holds_rows
from ft2.forward.slots import Slots
from ft2.forward.sparing import sparable
from ft2.forward.tap import Order, Tap, tap, tap_in_lane
from ft2.forward.trail import Vectors
from ft2.forward.undo import CacheRecord, Kept, LengthRecord, UndoError, rows_written_elsewhere

__all__ = [
    "CacheRecord",
    "Call",
    "Clock",
    "Forward",
    "Kept",
    "Lane",
    "LengthRecord",
    "Listener",
    "Order",
    "Reviewer",
    "Slots",
    "Tap",
    "UndoError",
    "Vectors",
    "adopted",
    "attach",
    "by_row",
    "cache_argument",
    "cache_in",
    "cache_made_by",
    "cache_name",
    "copied",
    "fit_tokens",
    "hears_nothing",
    "holds_rows",
    "records_gradients",
    "request",
    "rows_written_elsewhere",
    "sparable",
    "takes_a_seat",
    "tap",
    "tap_in_lane",
]
