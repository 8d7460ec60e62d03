"""Ready-made profiles: each is accepted as it stands, with nothing but an issuer and a way in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from estd.ca.document import Problems
from estd.ca.ecosystem import Ecosystem
from estd.ca.ecosystems import READY
from estd.ca.profile_reader import read_profile


@pytest.mark.parametrize("base", READY)
def test_each_is_accepted_as_it_stands(base: str, read: Callable[..., Ecosystem], head: str) -> None:
    text = f'{head}[profile.device]\nbase = "{base}"\nissuer = "devices"\nenroll = []\n'
    assert read(text).profiles["device"].issuer == "devices"


@pytest.mark.parametrize("base", READY)
def test_an_operator_may_override_any_key(base: str) -> None:
    for key, value in READY[base].items():
        problems = Problems("x")
        read_profile("p", {"base": base, "issuer": "i", key: value}, "p", problems, False)
        assert not problems.found
