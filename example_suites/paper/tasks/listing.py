"""Lists of words, written as a text."""

from __future__ import annotations

__all__ = ["listed"]


def listed(text: str) -> tuple[str, ...]:
    """Return what a text lists, between commas."""
    return tuple(text.split(", "))
