"""A forward pass as it happens: its call, step, rows and tokens, and what each layer puts out."""

from ft2.forward.call import Call, Forward, Listener
from ft2.forward.clock import Clock, request
from ft2.forward.rows import by_row, real_tokens
from ft2.forward.tap import Order, Tap, tap

__all__ = [
    "Call",
    "Clock",
    "Forward",
    "Listener",
    "Order",
    "Tap",
    "by_row",
    "real_tokens",
    "request",
    "tap",
]
