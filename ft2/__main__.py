"""The command line: ``python -m ft2 layers MODEL``, ``profile MODEL PROMPTS`` and ``doctor``."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = ["main"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Beside the reason a row of a large model's table takes about so many characters.
_OTHER_COLUMNS = 100
_LEAST_REASON = 40


class _UsageError(Exception):
    """Something that the user can put right, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    try:
        text = options.run(options)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except _UsageError as error:
        sys.stderr.write(f"ft2: {error}\n")
        return 2
    except BrokenPipeError:
        # Whoever read the table has seen enough; Python must not flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ft2", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    layers = commands.add_parser(
        "layers",
        help="list the linear projections of a model, and which are critical",
        description="List the linear projections of a model's decoder blocks, and which are "
        "critical. The model is built from its configuration alone: no weights are loaded and "
        "no code of a model's repository is run.",
    )
    layers.add_argument(
        "model",
        metavar="MODEL",
        help="a folder with a config.json, a hub id (OWNER/NAME), or an architecture with its "
        "default configuration (llama, LlamaForCausalLM)",
    )
    layers.add_argument(
        "--all", action="store_true", help="a row for each projection of each block and expert"
    )
    layers.set_defaults(run=_layers)
    profile = commands.add_parser(
        "profile",
        help="profile the bounds that a policy needs, and save them",
        description="Run a model on prompts, and save between which bounds the outputs of the "
        "layers stay that a policy protects.",
    )
    profile.add_argument("model", metavar="MODEL", help="a folder or a hub id (OWNER/NAME)")
    profile.add_argument(
        "prompts",
        metavar="PROMPTS",
        type=Path,
        help="a file with a prompt on each line: text, or a JSON list of token ids",
    )
    profile.add_argument("--policy", required=True, help="whose layers are profiled")
    profile.add_argument("--output", "-o", metavar="FILE", type=Path, required=True)
    profile.add_argument("--max-new-tokens", metavar="N", type=int, default=32)
    profile.add_argument("--device", default="cpu")
    profile.add_argument("--dtype", default="auto", help="float32, float16, bfloat16 or auto")
    profile.set_defaults(run=_profile)
    doctor = commands.add_parser("doctor", help="tell what is installed, and which path protects")
    doctor.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> str:
    from ft2.doctor import report

    return report()


def _profile(options: argparse.Namespace) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ft2.protection import profile
    from ft2.protection.policies import profiled_policy

    _quiet()
    if not options.output.absolute().parent.is_dir():
        raise _UsageError(f"there is no folder to write {options.output} in")
    try:
        profiled_policy(options.policy)
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise _UsageError(str(error)) from error
    prompts = [_prompt(line) for line in lines if line.strip()]
    try:
        # Files that hold code of their own are not loaded.
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=options.dtype, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = None
        if any(isinstance(prompt, str) for prompt in prompts):
            tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    except Exception as error:
        raise _UsageError(f"{options.model} cannot be loaded: {_first_sentence(error)}") from error
    try:
        made = profile(
            model.to(options.device).eval(),
            prompts,
            options.policy,
            tokenizer=tokenizer,
            max_new_tokens=options.max_new_tokens,
        )
        made.save(options.output)
    except (ValueError, TypeError, OSError) as error:
        raise _UsageError(str(error)) from error
    return (
        f"{options.output}: bounds of {len(made.bounds)} layers for {made.policy}, from "
        f"{made.prompts.count} prompts and {made.prompts.tokens} tokens"
    )


def _prompt(line: str) -> Any:
    if not line.lstrip().startswith("["):
        return line
    try:
        return json.loads(line)
    except ValueError:
        return line


def _layers(options: argparse.Namespace) -> str:
    import torch

    from ft2.layers import UnsupportedModelError, projections
    from ft2.report.layers import layers_table

    name = options.model
    _quiet()
    # The bookkeeping is many small operations, which wait for threads longer than they take.
    torch.set_num_threads(1)
    model = _build(name)
    try:
        found = projections(model)
    except UnsupportedModelError as error:
        raise _UsageError(f"{name}: {error}") from error
    width = None
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns - _OTHER_COLUMNS, _LEAST_REASON)
    return layers_table(found, unfolded=options.all, reason_width=width)


def _quiet() -> None:
    """Keep the table, or the one sentence, free of advice about kernels and retries."""
    import logging
    import warnings

    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _build(name: str) -> Any:
    """Build the model without numbers, from its configuration."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = _config(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _UsageError(
            f"{name}: {config.model_type} is none of the causal language models of transformers"
        )
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _UsageError(
            f"{name}: transformers cannot build this model: {_first_sentence(error)}"
        ) from error


def _config(name: str) -> Any:
    from transformers import AutoConfig

    path = Path(name).expanduser()
    if not path.exists() and not _HUB_ID.fullmatch(name):
        return _default_config(name)
    if not path.exists():
        where = f"{name} is no folder here, and its configuration could not be had from the hub"
    elif path.is_dir() and not (path / "config.json").is_file():
        raise _UsageError(f"there is no config.json in the folder {name}")
    else:
        where = f"the configuration in {name} could not be read"
    try:
        source = str(path) if path.exists() else name
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise _UsageError(
                f"{name} is made of code of its own, which ft2 does not run; "
                "ft2.projections(model) works on a model that you have loaded"
            ) from error
        raise _UsageError(f"{where}: {_first_sentence(error)}") from error


def _default_config(name: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    by_class = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    architectures = {_plain(each): each for each in CONFIG_MAPPING}
    architectures |= {_plain(class_name): kind for class_name, kind in by_class.items()}
    kind = architectures.get(_plain(name))
    if kind is None:
        causal = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *by_class]
        known = {_plain(each): each for each in causal}
        near = [known[each] for each in get_close_matches(_plain(name), known, n=3)]
        hint = f"did you mean {' or '.join(near)}?" if near else "a hub id reads OWNER/NAME"
        raise _UsageError(f"{name!r} is no folder here and no architecture of transformers: {hint}")
    try:
        return CONFIG_MAPPING[kind]()
    except Exception as error:
        raise _UsageError(
            f"{name}: its default configuration does not hold: {_first_sentence(error)}"
        ) from error


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name).lower()


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return re.split(r"(?<=\.)\s", text)[0] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
