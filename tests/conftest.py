"""Plugins that the tests of this project use."""

pytest_plugins = ["pytester"]
