"""``python -m ft2``: what it prints, and how it refuses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import logging as transformers_logging

import ft2
from ft2.__main__ import main
from ft2.layers import Projection
from ft2.report.layers import critical_columns, fold, form_of, layers_table
from tests.zoo.configs import small_config, small_model


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A command is a process of its own; here its settings must not outlive it."""
    threads, verbosity = torch.get_num_threads(), transformers_logging.get_verbosity()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    yield
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity(verbosity)
    hub.setLevel(level)


def folder_of(model_type: str, folder: Path) -> str:
    config = small_config(model_type)
    config.save_pretrained(folder)
    return str(folder)


def rows(table: str) -> dict[str, list[str]]:
    """Cells of each row of a printed table, by the projection's name."""
    lines = table.splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("---"))
    starts = [0]
    starts += [at + 2 for at in range(len(lines[rule]) - 1) if lines[rule][at : at + 3] == "  -"]
    cells = {}
    for line in lines[rule + 1 : lines.index("", rule)]:
        ends = [*starts[1:], len(line)]
        row = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        cells[row[0]] = row[1:]
    return cells


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ft2: ")
    assert err.count("\n") == 1
    return err


def test_blocks_that_are_alike_are_one_row_for_each_projection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "layers", folder_of("llama", tmp_path))
    assert {name: cells[:2] for name, cells in rows(out).items()} == {
        "model.layers.0-1.self_attn.q_proj": ["q_proj", "no"],
        "model.layers.0-1.self_attn.k_proj": ["k_proj", "no"],
        "model.layers.0-1.self_attn.v_proj": ["v_proj", "yes"],
        "model.layers.0-1.self_attn.o_proj": ["o_proj", "yes"],
        "model.layers.0-1.mlp.gate_proj": ["gate_proj", "no"],
        "model.layers.0-1.mlp.up_proj": ["up_proj", "yes"],
        "model.layers.0-1.mlp.down_proj": ["down_proj", "yes"],
    }
    assert "14 projections, 8 of them critical; 7 rows" in out


def test_all_rows_are_the_projections_as_the_library_lists_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ft2.projections(small_model("deepseek_v3"))
    out = printed(capsys, "layers", folder_of("deepseek_v3", tmp_path), "--all")
    shown = rows(out)
    assert list(shown) == [each.name for each in found]
    assert [cells[-1] for cells in shown.values()] == [each.reason for each in found]
    assert [cells[1] != "no" for cells in shown.values()] == [each.critical for each in found]
    assert "--all" not in out


def test_experts_and_blocks_of_two_sorts_are_folded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = rows(printed(capsys, "layers", folder_of("deepseek_v3", tmp_path)))
    assert "model.layers.0.mlp.up_proj" in shown
    assert shown["model.layers.1.mlp.experts.gate_up_proj.0-3"][:3] == [
        "gate_up_proj",
        "in part",
        "24-47",
    ]
    assert shown["model.layers.0.self_attn.kv_b_proj"][2] == "4-11 of each 12"


def test_every_projection_is_in_one_folded_row() -> None:
    for model_type in ("jamba", "xlm", "gemma3n_text", "moshi"):
        found = ft2.projections(small_model(model_type))
        groups = fold(found)
        assert sum(group.size for group in groups) == len(found)
        assert len({group.name for group in groups}) == len(groups)


def projection(name: str, columns: tuple[tuple[int, int, bool], ...]) -> Projection:
    return Projection(
        name=name,
        kind=name.rpartition(".")[-1],
        critical=any(critical for _, _, critical in columns),
        columns=columns,
        reason="a reason",
        in_features=8,
        out_features=columns[-1][1],
        module=name,
    )


@pytest.mark.parametrize(
    ("numbers", "folded"),
    [
        ([0], "0"),
        ([0, 1], "0-1"),
        ([0, 1, 2, 5, 7], "0-2,5,7"),
        (range(1, 24, 2), "1,3,…,23"),
        ([4 * each + at for each in range(12) for at in range(3)], "0-2,4-6,…,44-46"),
        ([0, 2, 5, 9, 14, 20], "0,2,5,9,14,20"),
    ],
)
def test_numbers_of_blocks_read_as_ranges(numbers: list[int], folded: str) -> None:
    found = [projection(f"h.{number}.fc", ((0, 8, True),)) for number in numbers]
    assert [group.name for group in fold(found)] == [f"h.{folded}.fc"]


def test_blocks_that_differ_in_one_projection_are_told_apart() -> None:
    found = [
        *(projection(f"h.0.{kind}", ((0, 8, True),)) for kind in ("fc1", "fc2")),
        *(projection(f"h.1.{kind}", ((0, 8, kind == "fc1"),)) for kind in ("fc1", "fc2")),
        *(projection(f"h.2.{kind}", ((0, 8, True),)) for kind in ("fc1", "fc2")),
    ]
    assert [group.name for group in fold(found)] == ["h.0,2.fc1", "h.0,2.fc2", "h.1.fc1", "h.1.fc2"]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (((0, 8, True),), ""),
        (((0, 4, False), (4, 8, True)), "4-7"),
        (((0, 4, True), (4, 5, False), (5, 6, True)), "0-3, 5"),
        (((0, 1, False), (1, 2, True), (2, 3, False), (3, 4, True)), "1 of each 2"),
        (((0, 2, True), (2, 3, False), (3, 5, True), (5, 6, False)), "0-1 of each 3"),
    ],
)
def test_critical_columns_are_told_shortly(
    columns: tuple[tuple[int, int, bool], ...], text: str
) -> None:
    assert critical_columns(projection("h.0.qkv", columns)) == text


def test_forms_are_told_apart() -> None:
    forms = {form_of(each) for each in ft2.projections(small_model("mixtral"))}
    assert forms == {"linear", "raw parameter", "experts"}
    forms = {form_of(each) for each in ft2.projections(small_model("gpt2"))}
    assert forms == {"linear", "fused columns"}


def test_reasons_are_wrapped_in_a_terminal() -> None:
    found = ft2.projections(small_model("llama"))
    widest = max(map(len, layers_table(found, reason_width=40).split("\n\n")[0].splitlines()))
    assert widest < max(map(len, layers_table(found).split("\n\n")[0].splitlines()))


@pytest.mark.parametrize("name", ["opt", "OPTForCausalLM", "optforcausallm"])
def test_an_architecture_is_built_from_its_default_configuration(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "layers", name)
    assert "model.decoder.layers.0-11.fc2" in rows(out)


def test_nothing_but_the_configuration_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("llama", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    assert "v_proj" in printed(capsys, "layers", folder)


def test_a_large_model_takes_no_memory_for_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    config.save_pretrained(tmp_path)
    out = printed(capsys, "layers", str(tmp_path))
    assert "560 projections, 320 of them critical" in out


def test_an_unknown_name_is_met_with_names_that_are_near(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "did you mean llama" in refusal(capsys, "layers", "lama")
    assert "MixtralForCausalLM" in refusal(capsys, "layers", "MixtralForCausal")
    assert "OWNER/NAME" in refusal(capsys, "layers", "nothing like it")


def test_what_is_no_causal_language_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "causal language models" in refusal(capsys, "layers", "vit")


def test_a_model_that_cannot_be_looked_into_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "which token" in refusal(capsys, "layers", "xlnet")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no config.json in the folder"),
        ("{", "could not be read"),
        ("{}", "could not be read"),
        (json.dumps({"model_type": "no such type"}), "could not be read"),
        (json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}), "code of its own"),
        (json.dumps({"model_type": "llama", "num_attention_heads": 7}), "cannot build|could not"),
    ],
)
def test_a_folder_that_does_not_hold_a_model_is_refused(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    said = refusal(capsys, "layers", str(tmp_path))
    assert any(each in said for each in sentence.split("|"))


def test_a_hub_id_that_cannot_be_reached_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, *, trust_remote_code: bool) -> None:
        assert not trust_remote_code
        raise OSError(f"We couldn't connect to the hub.\nLook at your connection, {name}.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    said = refusal(capsys, "layers", "owner/name")
    assert said == (
        "ft2: owner/name is no folder here, and its configuration could not be had from the hub: "
        "We couldn't connect to the hub.\n"
    )


def test_the_doctor_prints_its_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor = SimpleNamespace(report=lambda: "all is well")
    monkeypatch.setitem(sys.modules, "ft2.doctor", doctor)
    assert printed(capsys, "doctor") == "all is well\n"


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "ft2", "layers", folder], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert len(rows(run.stdout)) == 7
    run = subprocess.run([sys.executable, "-m", "ft2"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "COMMAND" in run.stderr


def test_help_needs_no_torch() -> None:
    code = "import ft2.__main__, sys; ft2.__main__._parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
