"""The fixtures: a default model, protected and unprotected models, and faults by hand.

Nothing here imports torch before a test asks for a fixture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

import pytest

from pytest_ft2.attempt import ACTIVE_RUN
from pytest_ft2.marks import MARK, read_mark
from pytest_ft2.options import SETTINGS

__all__ = ["ft2_model", "ft2_tokenizer", "model_fixtures"]


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


def model_fixtures(model_fixture: str) -> ModuleType:
    """Return a plugin with the fixtures that depend on the model fixture.

    Parameters
    ----------
    model_fixture:
        Its name, whatever the ini file calls it. It becomes a parameter of each fixture, so that
        pytest sees the dependency and parametrises tests by it.
    """
    # Of other objects than modules and classes, pytest looks for fixtures in their class only.
    plugin = ModuleType("pytest_ft2.model_fixtures", model_fixtures.__doc__)
    for body in (_protected_model, _unprotected_model, _fault_injector, _sdc_reduction):
        setattr(plugin, body.__name__.removeprefix("_"), _fixture(body, model_fixture))
    return plugin


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
    """The model, protected during this test as its marker or ``--ft2-protection`` says.

    In a gated test the trials protect it; the golden runs show what it does without.
    """
    from ft2.protection import protect
    from pytest_ft2.protections import protection_options

    if request.config.stash.get(ACTIVE_RUN, None) is not None:
        yield model
        return
    mark = request.node.get_closest_marker(MARK)
    asked = None if mark is None else read_mark(mark).protection
    settings = request.config.stash[SETTINGS]
    policy = asked or settings.protection
    try:
        options = protection_options(policy, settings)
    except ValueError as error:
        pytest.fail(f"{request.node.nodeid}: {error}", pytrace=False)
    with protect(model, policy=policy, **options):
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


def _sdc_reduction(request: pytest.FixtureRequest, model: Any) -> Generator[Any, None, None]:
    """Fails the test unless the protection cuts SDCs by so much: ``(right, at_least=50)``."""
    from pytest_ft2.reduction import SdcReduction

    yield SdcReduction(model, request.config.stash[SETTINGS], request.node.nodeid)
