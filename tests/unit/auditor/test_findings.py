from __future__ import annotations

import json

import pytest

from estd.auditor import findings
from estd.auditor.findings import Findings, Invariant


def test_what_is_found_is_told_by_invariant_record_and_serial() -> None:
    found = Findings()
    assert found.clean
    found.add(Invariant.INTENDED, "journal-0-0001.log:188", "has no intent", b"\x01\xff")
    found.notices.append("one segment is elsewhere")
    written = json.loads(json.dumps(found.write()))
    assert not written["clean"]
    assert written["breaches"] == [
        {"invariant": "ii", "where": "journal-0-0001.log:188", "what": "has no intent", "serial": "01ff"}
    ]
    assert written["notices"] == ["one segment is elsewhere"]


def test_a_database_that_lost_everything_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "BREACHES_KEPT", 3)
    found = Findings()
    for number in range(10):
        found.add(Invariant.ON_RECORD, str(number), "is gone")
    assert (len(found.breaches), found.dropped) == (3, 7)
    assert not found.clean
