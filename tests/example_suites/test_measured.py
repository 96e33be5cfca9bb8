"""What RESULTS.md shows is what the kept trials say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import evaluate

SUITE = Path(evaluate.__file__).resolve().parent
MEASURED = SUITE / "measured.json"
BF16 = ("--dtype", "bf16", "--fault-models", "exp", "--policies", "none", "ft2", "ft2-recompute")


def rows(text: str) -> list[str]:
    """Rows of tables, without the blanks that align them."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [re.sub(r"\s+", " ", re.sub(r"-+", "-", line)).replace("| |", "||") for line in lines]


@pytest.mark.skipif(not MEASURED.exists(), reason="source distributions leave the trials out")
@pytest.mark.parametrize("given", [("--dtype", "fp16", "fp32"), BF16], ids=["all", "bf16"])
def test_the_tables_are_those_of_the_kept_trials(given: tuple[str, ...], tmp_path: Path) -> None:
    figures = ("--figures", "13", "15") if given != BF16 else ("--figures", "13")
    tables = tmp_path / "tables.md"
    kept = ("--json", str(MEASURED), "--tables-only", "--markdown", str(tables))
    assert evaluate.main([*kept, *figures, *given]) == 0
    shown = set(rows((SUITE / "RESULTS.md").read_text(encoding="utf-8")))
    found = rows(tables.read_text(encoding="utf-8"))
    assert len(found) > 20
    assert [row for row in found if row not in shown] == []
