"""What is said of an issuer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from factory import KEK, make_maker, make_record, make_rules

from estd.app.new_issuers import make_issuers
from estd.cli.issuer import _Issuer, _read, _state
from estd.cli.rules import read_rules

RULES = make_rules(make_maker())


def read(made_at: datetime) -> list[_Issuer]:
    """The issuers of an ecosystem, as they are when they were made at that time."""
    made = {issuer.name: issuer.certificate for issuer in make_issuers(KEK, None, RULES, None, made_at)[0]}
    record = make_record(RULES)
    issuers = tuple(replace(issuer, certificate=made[issuer.name]) for issuer in record.issuers)
    return _read(read_rules(replace(record, issuers=issuers)))


@pytest.mark.parametrize(("days", "state"), [(0, "signs"), (-365 * 40, "expired"), (30, "not yet valid")])
def test_an_issuer_out_of_its_time_does_not_sign(days: int, state: str) -> None:
    for one in read(datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)):
        assert _state(one) == state
        assert one.as_json()["validity"] == {"signs": "valid"}.get(state, state)
        assert _state(replace(one, active=False)) == "replaced"
        if state == "signs":
            assert _state(replace(one, record=replace(one.record, sealed_key=None))) == "certificate only"
        assert isinstance(one.certificate, x509.Certificate)
