"""The state of a batch: on disk before it counts, whole after any crash, and never two clients' at once."""

from __future__ import annotations

import base64
import csv
import json
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from factory import make_device

from estd.device.batch_state import BatchState, Verdict
from estd.errors import Invalid

FACTS = {"url": "https://localhost", "label": "plant"}
CERTIFICATE = make_device(None, "pump").der
GRANTED = Verdict("pump", b"\x01" * 32, CERTIFICATE)
REFUSED = Verdict("valve", b"\x02" * 32, None, error="key-weak", detail="a comma, and a word")


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_what_is_recorded_is_there_after_a_kill(tmp_path: Path, name: str) -> None:
    with BatchState(tmp_path / name, FACTS, resume=False) as state:
        state.record([GRANTED])
        state.record([REFUSED])
    with BatchState(tmp_path / name, FACTS, resume=True) as state:
        assert state.done == {"pump": GRANTED.digest, "valve": REFUSED.digest}
        assert list(state.verdicts()) == [GRANTED, REFUSED]


def test_a_record_is_flushed_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    fsync = os.fsync
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:

        def note(descriptor: int) -> None:
            flushed.append((state.path.read_bytes().count(b"\n"), dict(state.done)))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        state.record([GRANTED, REFUSED])
    assert flushed == [(3, {})]


def test_a_torn_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:
        state.record([GRANTED, REFUSED])
    whole = state.path.read_bytes()
    at = whole.rstrip().rfind(b"\n") + 1
    for size in range(at, len(whole)):
        state.path.write_bytes(whole[:size])
        with BatchState(tmp_path / "out.csv", FACTS, resume=True) as again:
            assert set(again.done) == {"pump"}
            again.record([REFUSED])
        assert state.path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"17",
        b'{"id": "valve"}',
        b"\xff\xfe",
        b'{"id": "valve", "csr_sha256": "02", "certificate": "AAAA"}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:
        state.record([GRANTED, REFUSED])
    head, first, second = state.path.read_bytes().splitlines()
    state.path.write_bytes(b"\n".join((head, line, first, second)) + b"\n")
    with pytest.raises(Invalid, match="line 2 is damaged"), BatchState(tmp_path / "out.csv", FACTS, resume=True):
        pass
    state.path.write_bytes(b"\n".join((line, first, second)) + b"\n")
    with pytest.raises(Invalid, match="is of another batch"), BatchState(tmp_path / "out.csv", FACTS, resume=True):
        pass


def test_a_name_that_is_no_text_is_told_all_the_same(tmp_path: Path) -> None:
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:
        state.record([Verdict("a\udcffb", b"\x02" * 32, None, error="unreadable", detail="not a name")])
        state.write_results()
    assert rows(state.refused)[1] == ["a\\udcffb", "unreadable", "not a name"]


def test_a_second_word_on_a_request_is_the_one_that_counts(tmp_path: Path) -> None:
    granted = Verdict(REFUSED.name, b"\x03" * 32, CERTIFICATE)
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:
        state.record([REFUSED])
        state.write_results()
        assert state.refused.exists()
        state.record([granted])
        state.write_results()
        assert list(state.verdicts()) == [granted]
        assert not state.refused.exists()


def test_results_in_a_file(tmp_path: Path) -> None:
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:
        state.record([GRANTED, REFUSED])
        state.write_results()
    assert rows(tmp_path / "out.csv") == [["id", "certificate"], ["pump", base64.b64encode(CERTIFICATE).decode()]]
    assert rows(tmp_path / "out.refused.csv") == [["id", "error", "detail"], ["valve", REFUSED.error, REFUSED.detail]]


def test_results_in_a_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with BatchState(out, FACTS, resume=False) as state:
        state.record([GRANTED, REFUSED])
        pem = out / "pump.pem"
        assert x509.load_pem_x509_certificate(pem.read_bytes()).public_bytes(Encoding.DER) == CERTIFICATE
        pem.unlink()
        state.write_results()
        assert pem.exists()
    assert rows(out / "refused.csv")[1][0] == "valve"
    assert sorted(path.name for path in out.iterdir()) == [".batch.state", "pump.pem", "refused.csv"]


def test_what_was_begun_is_not_begun_again_by_accident(tmp_path: Path) -> None:
    with BatchState(tmp_path / "out.csv", FACTS, resume=False):
        pass
    with BatchState(tmp_path / "out.csv", FACTS, resume=False) as state:  # nothing had come of it
        state.record([GRANTED])
    with pytest.raises(Invalid, match="--resume"), BatchState(tmp_path / "out.csv", FACTS, resume=False):
        pass
    other = {**FACTS, "label": "other"}
    with pytest.raises(Invalid, match="another batch"), BatchState(tmp_path / "out.csv", other, resume=True):
        pass


def test_nobody_else_meanwhile(tmp_path: Path) -> None:
    with (
        BatchState(tmp_path / "out.csv", FACTS, resume=False),
        pytest.raises(Invalid, match="in use"),
        BatchState(tmp_path / "out.csv", FACTS, resume=True),
    ):
        pass
    assert json.loads((tmp_path / "out.csv.state").read_bytes()) == {"format": 1, **FACTS}


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Invalid, match="cannot be used"),
        BatchState(tmp_path / "file" / "out.csv", FACTS, resume=False),
    ):
        pass
