"""What a profile holds, on which prompts it can be made, and whose it is."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoTokenizer

import ft2
from ft2 import Profile, ProfileError
from ft2.protection import POLICIES
from ft2.protection.policies import profiled_policy
from ft2.protection.profile import ModelFacts, PromptFacts
from tests.protection.watch import generate, prompts, watching
from tests.tiny_models import tiny_model
from tests.zoo.configs import small_model

_QUICKSTART = Path(__file__).parents[2] / "example_suites" / "quickstart" / "models" / "llama"


def _profile(model: nn.Module, ids: Any, policy: str = "maximals", **options: Any) -> Profile:
    options = {"max_new_tokens": 4, "progress": False, **options}
    return ft2.profile(model, ids, policy, **options)


def test_bounds_are_the_least_and_largest_number_over_prompts_and_generated_tokens() -> None:
    model = tiny_model()
    ids = prompts(3)
    profile = _profile(model, ids)
    for layer, bounds in profile.bounds.items():
        with watching(model, layer) as watch:
            for row in ids:
                generate(model, row[None], max_new_tokens=4)
        assert bounds == watch.range(0, slice(None))
    assert profile.prompts.count == 3
    # Nine tokens, and of four new ones the last is not read again.
    assert profile.prompts.tokens == 3 * (9 + 4 - 1)
    assert profile.unseen == []


def test_without_new_tokens_the_prompts_alone_are_profiled() -> None:
    model = tiny_model()
    profile = _profile(model, prompts(), max_new_tokens=0)
    layer = "model.layers.0.mlp.down_proj"
    with watching(model, layer) as watch:
        generate(model, prompts(), max_new_tokens=1)
    assert profile.bounds[layer] == watch.range(0)
    assert profile.prompts.tokens == 9


def _forms(ids: Tensor) -> list[Any]:
    padded = torch.cat([torch.zeros(len(ids), 3, dtype=torch.int64), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long().expand(padded.shape)
    return [
        ids,
        list(ids),
        ids.tolist(),
        [tuple(row) for row in ids.tolist()],
        {"input_ids": ids},
        [{"input_ids": row} for row in ids],
        {"input_ids": padded, "attention_mask": mask},
        iter(ids.tolist()),
    ]


@pytest.mark.parametrize("form", range(8))
def test_prompts_in_any_form_and_padded_give_one_profile(form: int) -> None:
    model = tiny_model()
    assert _profile(model, _forms(prompts(2))[form]) == _profile(model, prompts(2))


def test_one_prompt_may_be_a_list_of_token_ids() -> None:
    model = tiny_model()
    assert _profile(model, [5, 6, 7]) == _profile(model, [[5, 6, 7]])


def test_texts_are_read_with_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(_QUICKSTART)
    model = tiny_model(vocab_size=len(tokenizer))
    text = "What is the capital of Peru?"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    expected = _profile(model, ids)
    assert _profile(model, text, tokenizer=tokenizer) == expected
    assert _profile(model, [text], tokenizer=tokenizer) == expected
    with pytest.raises(TypeError, match="need a tokenizer"):
        _profile(model, text)


def test_other_prompts_and_other_lengths_have_another_hash() -> None:
    model = tiny_model()
    hashes = {
        _profile(model, ids, max_new_tokens=length).prompts.sha256
        for ids in (prompts(1), prompts(2), prompts(1, seed=1))
        for length in (0, 2)
    }
    assert len(hashes) == 6


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ([], ValueError, "there are no prompts"),
        ([[]], TypeError, "at least one"),
        ([3.5], TypeError, "a prompt is a text, token ids .*, not float"),
        (torch.rand(2, 3), TypeError, "token ids are whole numbers"),
        ({"ids": torch.ones(1, 2)}, TypeError, "a mapping with input_ids"),
    ],
)
def test_what_is_no_prompt_is_refused(wrong: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        _profile(tiny_model(), wrong)


def test_a_model_that_trains_or_overflows_is_not_profiled() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        _profile(model.train(), prompts())
    model.eval()
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^model\.layers\.1\.mlp\.down_proj puts out NaN or Inf"):
        _profile(model, prompts())


def test_profiling_leaves_no_trace() -> None:
    model = tiny_model()
    classes = [type(module) for module in model.modules()]
    state = torch.get_rng_state()
    _profile(model, prompts(), "ranger")
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_experts_that_no_token_was_routed_to_are_told_and_stay_unbounded() -> None:
    model = small_model("mixtral")
    with pytest.warns(UserWarning, match=r"^\d+ of 10 layers saw no token of the prompts"):
        profile = _profile(model, [[5]], max_new_tokens=0)
    assert 0 < len(profile.unseen) <= 4
    assert all(".experts.down_proj." in name for name in profile.unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _profile(model, prompts(8) % 50 + 4).unseen
    with ft2.protect(model, "maximals", bounds=profile) as protection:
        said = generate(model, prompts() % 50 + 4, max_new_tokens=4)
    assert said.shape == (1, 13)
    assert len(protection.counts) == 1


def test_a_bar_shows_progress_where_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    _profile(model, prompts(2), progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _profile(model, prompts(2), progress=True)
    assert "profiling: 100%" in capsys.readouterr().err
    _profile(model, prompts(2), progress=False)
    assert capsys.readouterr().err == ""


_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
_PAIRS = st.tuples(_NUMBERS, _NUMBERS).map(lambda pair: (min(pair), max(pair)))
_PROFILES = st.builds(
    Profile,
    policy=st.sampled_from(["ranger", "ft2-offline"]),
    model=st.builds(ModelFacts, st.text(), st.text(), st.text()),
    prompts=st.builds(PromptFacts, st.integers(1), st.integers(1), st.text()),
    bounds=st.dictionaries(st.text(), st.none() | _PAIRS),
)


@given(_PROFILES)
def test_a_profile_is_read_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, profile: Profile
) -> None:
    path = tmp_path_factory.mktemp("profiles") / "saved.json"
    profile.save(path)
    assert Profile.load(path) == profile
    assert [each.name for each in path.parent.iterdir()] == ["saved.json"]


def test_a_saved_profile_protects_as_the_one_that_was_made(tmp_path: Path) -> None:
    model = tiny_model()
    profile = _profile(model, prompts(1, 2), max_new_tokens=0)
    profile.save(tmp_path / "profile.json")
    ids = prompts(seed=9)
    counts = []
    for bounds in (profile, tmp_path / "profile.json", str(tmp_path / "profile.json")):
        with ft2.protect(model, "maximals", bounds=bounds) as protection:
            generate(model, ids)
        counts.append(protection.counts)
    assert counts[0] == counts[1] == counts[2] > [0]


def test_a_profile_that_was_saved_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    model = tiny_model()
    for seed in (0, 1):
        made = _profile(model, prompts(seed=seed))
        made.save(path)
        assert Profile.load(path) == made


_DOCUMENT = {
    "format": "ft2 profile",
    "version": 1,
    "policy": "ranger",
    "model": {"kind": "A", "fingerprint": "b", "dtype": "float32"},
    "prompts": {"count": 1, "tokens": 2, "sha256": "c"},
    "bounds": {"layer": [0.0, 1.0]},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "something else"},
        {"version": 2},
        {"policy": 3},
        {"model": {"kind": "A"}},
        {"prompts": {"count": 0, "tokens": 2, "sha256": "c"}},
        {"bounds": [1, 2]},
        {"bounds": {"layer": [1.0, 0.0]}},
        {"bounds": {"layer": [0.0]}},
        {"bounds": {"layer": [0.0, "NaN"]}},
        {"bounds": {"layer": [0.0, float("inf")]}},
    ],
    ids=str,
)
def test_a_file_that_holds_no_profile_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(_DOCUMENT))
    assert Profile.load(path).bounds == {"layer": (0.0, 1.0)}
    path.write_text(json.dumps({**_DOCUMENT, **changes}))
    with pytest.raises(ProfileError, match=r"^profile\.json is no profile that ft2\.profile"):
        Profile.load(path)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"profile .*missing\.json cannot be read: No such file"):
        ft2.protect(tiny_model(), "ranger", bounds=tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("bounds")
    with pytest.raises(ProfileError, match=r"text\.json is no profile"):
        Profile.load(tmp_path / "text.json")


def _refused(model: nn.Module, bounds: Profile | None, policy: str = "maximals") -> str:
    kind = type(model)
    with pytest.raises(ProfileError) as refusal:
        ft2.protect(model, policy, bounds=bounds)
    assert type(model) is kind
    return str(refusal.value)


def test_a_profile_is_refused_on_any_model_but_its_own() -> None:
    model = tiny_model()
    profile = _profile(model, prompts())
    assert "another model (LlamaForCausalLM) than this LlamaForCausalLM, or on other weights" in (
        _refused(tiny_model(seed=1), profile)
    )
    assert "another model" in _refused(tiny_model("mistral"), profile)
    assert "another model" in _refused(tiny_model(intermediate_size=32), profile)
    assert "float32 weights, and this LlamaForCausalLM has bfloat16 ones" in (
        _refused(tiny_model(dtype=torch.bfloat16), profile)
    )
    ft2.protect(copy.deepcopy(model), "maximals", bounds=profile).remove()
    compiled: Any = torch.compile(model)
    ft2.protect(compiled, "maximals", bounds=profile).remove()


def test_a_profile_is_refused_for_another_policy_and_other_layers() -> None:
    model = tiny_model()
    profile = _profile(model, prompts())
    assert _refused(model, profile, "ranger").startswith(
        "the profile was made for the policy maximals, not for ranger"
    )
    fewer = Profile(
        profile.policy, profile.model, profile.prompts, dict([*profile.bounds.items()][1:])
    )
    assert "layers are not those that maximals protects" in _refused(model, fewer)


_PROFILED = [name for name in POLICIES if name not in ("ft2", "none", "ft2-recompute")]


@pytest.mark.parametrize("policy", _PROFILED)
def test_without_a_profile_a_sentence_says_how_to_get_one(policy: str) -> None:
    assert _refused(tiny_model(), None, policy) == (
        f"{policy} needs bounds that were profiled on prompts of yours: give it those that "
        f"ft2.profile(model, prompts, policy={policy!r}) returns, or the file that their "
        "save(FILE) wrote"
    )
    assert profiled_policy(policy).name == policy


@pytest.mark.parametrize("policy", ["ft2", "none"])
def test_a_policy_without_profiled_bounds_takes_none(policy: str) -> None:
    model = tiny_model()
    assert _refused(model, _profile(model, prompts()), policy) == (
        f"{policy} takes no profiled bounds: leave them out"
    )
    with pytest.raises(ValueError, match=f"^{policy} has no bounds to profile: use one of ranger"):
        _profile(model, prompts(), policy)
