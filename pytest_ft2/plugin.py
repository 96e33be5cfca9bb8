"""The hooks of the ft2 plugin. Imports nothing heavy: everybody's pytest loads this module."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_ft2.marks import SIGNATURE, check_items
from pytest_ft2.options import SETTINGS, Settings, add_options, read_settings

_DESCRIPTION = (
    "with --ft2-faults=N, run the test N more times with one soft error each, and fail if more "
    "than this per cent of them turn a right answer into a wrong one."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{SIGNATURE}: {_DESCRIPTION}")
    settings = config.stash[SETTINGS] = read_settings(config)
    from pytest_ft2 import fixtures

    plugins = config.pluginmanager
    plugins.register(fixtures, "ft2-fixtures")
    plugins.register(fixtures.model_fixtures(settings.model_fixture), "ft2-model-fixtures")
    if settings.active:
        _activate(config, settings)
    else:
        from pytest_ft2.inactive import Inactive

        plugins.register(Inactive(), "ft2-inactive")


def pytest_report_header(config: pytest.Config) -> str | None:
    settings = config.stash[SETTINGS]
    if not settings.active:
        return None
    what = f"{settings.faults} faults per gate"
    if settings.replay is not None:
        what = f"replay of {settings.replay[0]}#{settings.replay[1]}"
    return (
        f"ft2: {what}, fault model {settings.fault_model}, "
        f"protection {settings.protection}, seed {settings.seed}"
    )


def _activate(config: pytest.Config, settings: Settings) -> None:
    from pytest_ft2.golden_items import GoldenItems
    from pytest_ft2.protocol import Campaigns
    from pytest_ft2.selection import FailedGates
    from pytest_ft2.sighting import Sighting

    plugins = config.pluginmanager
    plugins.register(Sighting(settings), "ft2-sighting")
    plugins.register(GoldenItems(settings), "ft2-golden-items")
    plugins.register(Campaigns(settings), "ft2-campaigns")
    if settings.replay is not None:
        from pytest_ft2.replay import Replay

        _refuse_in_a_replay(config)
        _narrow_collection(config, settings.replay[0])
        plugins.register(Replay(settings), "ft2-replay")
        return
    plugins.register(FailedGates(), "ft2-failed-gates")
    if hasattr(config, "workerinput"):
        return
    from pytest_ft2.owner import Owner
    from pytest_ft2.progress import Progress

    owner = Owner(config, settings)
    plugins.register(owner, "ft2-owner")
    plugins.register(Progress(owner), "ft2-progress")
    if settings.stop == "early" or settings.sampling == "stratified":
        from pytest_ft2.needed import NeededTrials

        plugins.register(NeededTrials(config, owner.ledger), "ft2-needed-trials")
    if plugins.hasplugin("xdist"):
        from pytest_ft2.workers import WorkerHooks

        plugins.register(WorkerHooks(owner, settings), "ft2-workers")


def _narrow_collection(config: pytest.Config, test: str) -> None:
    """Collect the replayed test's file alone, unless other arguments are given."""
    if config.args_source is not config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / test.partition("::")[0])]


def _refuse_in_a_replay(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None):
        raise pytest.UsageError("--ft2-replay runs one trial, in this process: leave -n out")
    # In a project's ini file it is meant for the campaigns.
    if any(argument.startswith("--ft2-json") for argument in config.invocation_params.args):
        raise pytest.UsageError(
            "--ft2-replay shows one trial and decides nothing, so there is nothing to write: leave "
            "--ft2-json out"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    made = yield
    settings = collector.config.stash[SETTINGS]
    check_items(made if isinstance(made, list) else [])
    if not settings.active or made is None:
        return made
    from pytest_ft2.collection import campaign_items, refuse_unsupported

    refuse_unsupported(collector, name, obj)
    return campaign_items(made, settings) if isinstance(made, list) else made
