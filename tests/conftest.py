"""Fixtures shared by the whole suite."""

pytest_plugins = ["postgres_fixture", "live_server"]
