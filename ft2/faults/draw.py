"""Uniform numbers that a seed, a name and a trial's number determine, everywhere alike."""

from __future__ import annotations

import hashlib

__all__ = ["Draw"]


class Draw:
    """The uniform numbers of one trial.

    They depend on nothing else: not on the process, the order of trials, or any library's random
    state. The n-th number is the same whatever the numbers before it were used for.

    Parameters
    ----------
    seed:
        The campaign's seed.
    name:
        The campaign's name, such as a node id.
    trial:
        The trial's number.
    """

    def __init__(self, seed: int, name: str, trial: int) -> None:
        self._key = f"{seed}\n{name}\n{trial}".encode()
        self._drawn = 0

    def below(self, bound: int) -> int:
        """Draw a whole number from 0 to ``bound - 1``, each equally likely (to within 2⁻⁶⁴).

        Raises
        ------
        ValueError
            If `bound` is not positive.
        """
        if bound <= 0:
            raise ValueError(f"cannot draw a number below {bound}")
        digest = hashlib.blake2b(
            self._key, digest_size=32, salt=self._drawn.to_bytes(8, "little")
        ).digest()
        self._drawn += 1
        return int.from_bytes(digest, "little") * bound >> (8 * len(digest))
