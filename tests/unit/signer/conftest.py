"""The signer's test processes are shared with the fault tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load_program(name: str) -> ModuleType:
    """A module below tests/faults, imported once."""
    if name not in sys.modules:
        path = Path(__file__).parents[2] / "faults" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def harness() -> ModuleType:
    return load_program("signer_harness")


@pytest.fixture(scope="session")
def program() -> ModuleType:
    return load_program("signer_program")
