"""``estd issuer``: CA certificates are listed, shown and exported."""

from __future__ import annotations

from pathlib import Path

from live_server import NORTH, Live
from program import refusal, tell


def test_issuers_as_people_see_them(live: Live) -> None:
    here = ("--dir", live.directory)
    assert "CN=Campus South Root CA" in tell("issuer", "list", *here)
    assert "sealed in the database" in tell("issuer", "show", "root", "--ecosystem", NORTH, *here)
    assert "-----BEGIN CERTIFICATE-----" in tell("issuer", "export", "--ecosystem", NORTH, *here)


def test_an_export_that_would_hold_nothing_is_refused(live: Live, tmp_path: Path) -> None:
    out = tmp_path / "no.pem"
    for name, what in (("devices", f"is no root of {NORTH!r}"), ("nope", f"does not exist in {NORTH!r}")):
        chosen = ("--roots", "--name", name, "--out", out)
        status, error = refusal("issuer", "export", *chosen, "--ecosystem", NORTH, "--dir", live.directory)
        assert (status, error["problems"][0]["what"]) == (2, what)
        assert not out.exists()
