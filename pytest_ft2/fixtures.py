"""The fixtures: a default model, protected and unprotected models, and faults by hand.

Nothing here imports torch before a test asks for a fixture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_ft2.attempt import ACTIVE_RUN
from pytest_ft2.options import SETTINGS

__all__ = ["ModelFixtures", "ft2_model", "ft2_tokenizer"]


@pytest.fixture(scope="session")
def ft2_model(pytestconfig: pytest.Config) -> Any:
    """The causal language model that ``--ft2-model`` names, in eval mode.

    ``--ft2-device`` and ``--ft2-dtype`` say where and in what precision.
    """
    from transformers import AutoModelForCausalLM

    settings = pytestconfig.stash[SETTINGS]
    model = AutoModelForCausalLM.from_pretrained(
        _model_name(pytestconfig), dtype=settings.dtype, use_safetensors=True
    )
    return model.to(settings.device or "cpu").eval()


@pytest.fixture(scope="session")
def ft2_tokenizer(pytestconfig: pytest.Config) -> Any:
    """The tokenizer of the model that ``--ft2-model`` names."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_model_name(pytestconfig))


def _model_name(config: pytest.Config) -> str:
    name = config.stash[SETTINGS].model
    if name is None:
        pytest.fail(
            "there is no model: give --ft2-model=PATH_OR_ID, or name the fixture that returns "
            "yours with the ini option ft2_model_fixture",
            pytrace=False,
        )
    return name


class ModelFixtures:
    """Fixtures that depend on the model fixture, whatever the ini file calls it.

    Parameters
    ----------
    model_fixture:
        Its name. It becomes a parameter of each fixture, so that pytest sees the dependency and
        parametrises tests by it.
    """

    def __init__(self, model_fixture: str) -> None:
        self.protected_model = _fixture(_protected_model, model_fixture)
        self.unprotected_model = _fixture(_unprotected_model, model_fixture)
        self.fault_injector = _fixture(_fault_injector, model_fixture)


def _fixture(
    body: Callable[[pytest.FixtureRequest, Any], Generator[Any, None, None]], model_fixture: str
) -> Any:
    def fixture(**arguments: Any) -> Generator[Any, None, None]:
        yield from body(arguments["request"], arguments[model_fixture])

    kind = inspect.Parameter.KEYWORD_ONLY
    names = ("request", model_fixture)
    fixture.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    fixture.__doc__ = body.__doc__
    return pytest.fixture(fixture, name=body.__name__.removeprefix("_"))


def _protected_model(request: pytest.FixtureRequest, model: Any) -> Generator[Any, None, None]:
    """The model of the model fixture, protected during this test as ``--ft2-protection`` says.

    In a gated test the trials protect it; the golden runs show what it does without.
    """
    from ft2.protection import protect

    if request.config.stash.get(ACTIVE_RUN, None) is not None:
        yield model
        return
    with protect(model, policy=request.config.stash[SETTINGS].protection):
        yield model


def _unprotected_model(request: pytest.FixtureRequest, model: Any) -> Generator[Any, None, None]:
    """The model of the model fixture; in a gated test the trials leave it unprotected too."""
    del request
    yield model


def _fault_injector(request: pytest.FixtureRequest, model: Any) -> Generator[Any, None, None]:
    """Places faults by hand: ``sample(n)`` after a call without faults, then ``inject(fault)``."""
    from pytest_ft2.injector import FaultInjector

    injector = FaultInjector(model, request.config.stash[SETTINGS], request.node.nodeid)
    yield injector
    injector.stop()
