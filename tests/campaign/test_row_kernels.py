"""The kernels give what attention is, for every row, and keep its new token.

They need a GPU, or Triton's interpreter: TRITON_INTERPRET=1, which cannot do bf16.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="kernels need a GPU, or TRITON_INTERPRET=1",
)

ROWS, COLUMNS, OWN = 21, 70, 50


def kernels() -> Any:
    from ft2.campaign import row_kernels

    return row_kernels


class Asked:
    """Rows of two groups: 9 for each of two prefixes, and three with a prefix of their own."""

    def __init__(
        self, heads: int, shared: int, key: int, value: int, dtype: torch.dtype, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)

        def below(most: int) -> Tensor:
            return torch.randint(0, most, (ROWS,), generator=generator).to(DEVICE)

        self.query = numbers(ROWS, 1, heads, key).transpose(1, 2)
        self.new = numbers(ROWS, shared, 1, key), numbers(ROWS, shared, 1, value)
        self.prefixes = [
            (numbers(count, shared, COLUMNS, key), numbers(count, shared, COLUMNS, value), each)
            for count, each in ((2, 9), (3, 1))
        ]
        self.own = numbers(ROWS, shared, OWN, key), numbers(ROWS, shared, OWN, value)
        self.start = below(30)
        self.stop = self.start + below(40)
        self.length = below(OWN)
        # One sees nothing but its token.
        self.stop[3], self.length[3] = self.start[3], 0
        self.factor = key**-0.5

    def attend(self, own: tuple[Tensor, Tensor]) -> Tensor:
        seen = self.start, self.stop, self.length
        output: Tensor = kernels().attend(
            self.query, self.new, self.prefixes, own, *seen, self.factor
        )
        return output

    def computed(self) -> Tensor:
        own = self.own[0].clone(), self.own[1].clone()
        for row, length in enumerate(self.length.tolist()):
            for side in own:
                side[row, :, length:] = torch.nan
        output = self.attend(own)
        for row, length in enumerate(self.length.tolist()):
            for side, new in zip(own, self.new, strict=True):
                assert torch.equal(side[row, :, length], new[row, :, 0])
                assert side[row, :, length + 1 :].isnan().all()
        return output

    def expected(self) -> Tensor:
        prefixes = [
            (keys[one], values[one])
            for keys, values, each in self.prefixes
            for one in range(len(keys))
            for _ in range(each)
        ]
        outputs = []
        for row, prefix in enumerate(prefixes):
            seen = slice(int(self.start[row]), int(self.stop[row]))
            keys, values = (
                torch.cat([shared[:, seen], own[row, :, : self.length[row]], new[row]], 1).double()
                for shared, own, new in zip(prefix, self.own, self.new, strict=True)
            )
            each = self.query.shape[1] // keys.shape[0]
            scores = self.query[row].double() @ keys.repeat_interleave(each, 0).mT * self.factor
            outputs.append((scores.softmax(-1) @ values.repeat_interleave(each, 0))[:, 0])
        return torch.stack(outputs)


SIZES = [(4, 4, 16, 16), (8, 2, 20, 12), (4, 1, 32, 32), (8, 8, 80, 80), (2, 1, 256, 256)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
def test_each_row_attends_to_what_it_sees(
    sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and dtype is torch.bfloat16:
        pytest.skip("the interpreter cannot do bf16")
    for seed in range(3):
        asked = Asked(*sizes, dtype, seed)
        computed, expected = asked.computed().double(), asked.expected()
        error = float((computed - expected).norm() / expected.norm())
        assert error < (1e-3 if dtype is torch.float16 else 8e-3)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    asked = Asked(8, 2, 32, 32, torch.float16, 0)
    before = asked.computed()
    kept = 5
    for values in (asked.query, *asked.new, *asked.own):
        others = torch.arange(ROWS, device=DEVICE) != kept
        values[others] = torch.nan
    asked.start[:kept] = 0
    asked.stop[kept + 1 :] = COLUMNS
    assert torch.equal(asked.attend(asked.own)[kept], before[kept])
