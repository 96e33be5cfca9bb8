"""The one number format that strata of faults are of."""

from __future__ import annotations

import pytest

from ft2.faults import FORMATS, EmptySpaceError, Execution, Space, Step, one_encoding


def _space(*encodings: str) -> Space:
    executions = tuple(
        Execution(f"model.layers.0.layer{number}", 8, 4, encoding, 0, 3, ((0, 0, 3),))
        for number, encoding in enumerate(encodings)
    )
    return Space((Step(0, 0, executions), Step(0, 1, executions[:1])))


def test_layers_of_one_format_need_none_named() -> None:
    assert one_encoding(_space("bf16", "bf16"), None) is FORMATS["bf16"]
    assert one_encoding(_space("fp32"), "fp16") is FORMATS["fp16"]


def test_layers_of_several_formats_need_the_encoding_named() -> None:
    with pytest.raises(ValueError, match="compute in bf16, fp32: name one with --ft2-encoding"):
        one_encoding(_space("fp32", "bf16"), None)
    assert one_encoding(_space("fp32", "fp16"), "fp16") is FORMATS["fp16"]


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown number format 'fp12'"):
        one_encoding(_space("fp32"), "fp12")


@pytest.mark.parametrize("encoding", [None, "fp16"])
def test_a_space_without_sites_has_nothing_to_part(encoding: str | None) -> None:
    with pytest.raises(EmptySpaceError, match="computed a real token"):
        one_encoding(_space(), encoding)
