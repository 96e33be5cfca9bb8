"""A forward pass as it happens: its call, step, rows and tokens, and what each layer puts out."""

from ft2.forward.attach import attach
from ft2.forward.call import Call, Forward, Listener
from ft2.forward.clock import Clock, request
from ft2.forward.rows import by_row, fit_tokens
from ft2.forward.tap import Order, Tap, tap
from ft2.forward.trail import Vectors

__all__ = [
    "Call",
    "Clock",
    "Forward",
    "Listener",
    "Order",
    "Tap",
    "Vectors",
    "attach",
    "by_row",
    "fit_tokens",
    "request",
    "tap",
]
