"""``estd cert``: certificates are found, and what is revoked is refused by a server that runs."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from live_server import NORTH, Live
from patience import wait_until
from program import ask, estd, server_of, tell


def test_a_revoked_device_is_refused_from_its_next_request_on(live: Live, tmp_path: Path) -> None:
    here, device = ("--dir", live.directory), live.device(NORTH)
    home = tmp_path / "d"
    enrolled = ask("enroll", *server_of(live), "--certificate", device.certificate, "--key", device.key, "--out", home)
    shown = ask("cert", "show", enrolled["serial"].upper(), *here)
    assert (shown["state"], shown["sha256"]) == ("valid", enrolled["sha256"])
    [revoked] = ask("cert", "revoke", enrolled["serial"], "--reason", "keyCompromise", *here)
    assert revoked["revoked"]
    [again] = ask("cert", "revoke", enrolled["serial"], *here)
    assert not again["revoked"]
    assert ask("cert", "show", enrolled["serial"], *here)["state"] == "revoked"
    renew = ("enroll", *server_of(live), "--out", home, "--renew")
    # Until the worker has heard of it, a second at most, the renewal may still go through.
    error = wait_until(lambda: (done := estd(*renew, "--json")).returncode == 1 and json.loads(done.stderr)["error"], 5)
    assert "certificate-revoked" in error["message"]
    events = ask("audit", "list", "--ecosystem", NORTH, "--outcome", "refused", "--limit", "500", *here)
    assert "certificate-revoked" in {event["code"] for event in events}


@pytest.mark.parametrize("way", ["serial", "device"])
def test_a_key_found_compromised_later_is_blocked(live: Live, tmp_path: Path, way: str) -> None:
    """Of a certificate that was revoked for another reason before."""
    here = ("--dir", live.directory)
    device, code = live.code(NORTH)
    done = estd("enroll", *server_of(live), "--device", device, "--out", tmp_path / "d", "--json", given=code)
    assert done.returncode == 0, done.stderr
    serial = json.loads(done.stdout)["serial"]
    [revoked] = ask("cert", "revoke", serial, *here)
    assert (revoked["revoked"], revoked["outcome"]) == (True, "revoked")
    chosen = (serial,) if way == "serial" else ("--device", device, "--ecosystem", NORTH)
    told = estd("cert", "revoke", *chosen, "--reason", "keyCompromise", "--yes", *here)
    assert told.stdout == f"{serial}  {device}  was revoked before; the reason is keyCompromise now\n"
    for reason in ("keyCompromise", "superseded"):
        [again] = ask("cert", "revoke", serial, "--reason", reason, *here)
        assert (again["revoked"], again["outcome"]) == (False, "unchanged")
    events = ask("audit", "list", "--ecosystem", NORTH, "--limit", "500", *here)
    ours = [one for one in events if one["kind"] == "certificate.revoke" and one["serial"] == serial]
    told = [(one["reason"], one.get("raised")) for one in ours]
    assert told == [("keyCompromise", True), ("unspecified", None)]
    # The same key with a new code.
    [fresh] = ask("code", "create", "--ecosystem", NORTH, "--device", device, "--reusable", *here)
    key = load_pem_private_key((tmp_path / "d/device.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    wait_until(lambda: "key-revoked" in enroll_anew(live, device, fresh["code"], csr), 5)


def enroll_anew(live: Live, device: str, code: str, csr: bytes) -> str:
    """What the server says to a certificate request, by HTTP Basic; empty where it is granted."""
    request = urllib.request.Request(
        f"https://127.0.0.1:{live.port}/.well-known/est/{NORTH}/simpleenroll",
        base64.b64encode(csr),
        {
            "Content-Type": "application/pkcs10",
            "Authorization": "Basic " + base64.b64encode(f"{device}:{code}".encode()).decode(),
        },
    )
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=live.trust), timeout=20):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_certificates_as_people_see_them(live: Live, tmp_path: Path) -> None:
    device = live.device(NORTH)
    by = ("--certificate", device.certificate, "--key", device.key, "--out", tmp_path / "d")
    serial = ask("enroll", *server_of(live), *by)["serial"]
    text = tell("cert", "list", "--dir", live.directory)
    assert text.split()[0] == "serial"
    assert serial in text
