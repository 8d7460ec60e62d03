"""The profile as a value; how documents say it is in ``test_profile_reader.py``."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from estd.ca.ecosystem import Ecosystem
from estd.ca.profile import PURPOSE_NAMES, write_profile
from estd.ca.vocabulary import EXTENDED_KEY_USAGES


def test_a_profile_is_a_value(read: Callable[..., Ecosystem], minimal: str) -> None:
    one, two = (read(minimal).profiles["device"] for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(AttributeError):
        one.strict = True  # type: ignore[misc]  # that is the point


def test_what_is_written_is_ready_for_json(read: Callable[..., Ecosystem], minimal: str) -> None:
    written = write_profile(read(minimal).profiles["device"])
    assert json.loads(json.dumps(written)) == written
    assert None not in written.values()


def test_purposes_are_called_by_name() -> None:
    assert sorted(PURPOSE_NAMES.values()) == sorted(EXTENDED_KEY_USAGES)
