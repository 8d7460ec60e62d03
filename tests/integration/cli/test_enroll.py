"""``estd enroll``: a device gets its certificate, renews it, and is told why it gets none."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from contextlib import closing
from pathlib import Path

from cryptography import x509
from live_server import NORTH, SOUTH, Live
from program import ESTD, ask, estd, read_pem, refusal, server_of


def test_a_device_enrolls_with_a_code_and_renews(live: Live, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    home = tmp_path / "pump"
    (tmp_path / "code").write_text(f"{code}\n")
    first = ask("enroll", *server_of(live), "--device", device, "--code-file", tmp_path / "code", "--out", home)
    assert (first["subject"], first["renewed"]) == (f"CN={device}", False)
    assert (home / "device.key").stat().st_mode & 0o777 == 0o600
    second = ask("enroll", *server_of(live), "--out", home, "--renew", "--key-type", "ec-p384")
    assert (second["renewed"], second["key_type"]) == (True, "ec-p384")
    listed = ask("cert", "list", "--device", device, "--dir", live.directory)
    assert sorted(one["serial"] for one in listed) == sorted([first["serial"], second["serial"]])
    # The certificate, its key and the CA certificates belong together and are what TLS wants.
    assert verified(home / "ca.pem", home / "device.pem")


def test_the_command_to_renew_with_works_as_printed(live: Live, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    home = tmp_path / "the pump's"
    (tmp_path / "code").write_text(f"{code}\n")
    done = estd("enroll", *server_of(live), "--device", device, "--code-file", tmp_path / "code", "--out", home)
    assert done.returncode == 0, done.stderr
    before = read_pem(home / "device.pem")
    (printed,) = [line.split("renew with", 1)[1].strip() for line in done.stdout.splitlines() if "renew with" in line]
    pasted = subprocess.run(
        ["bash", "-c", printed],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": f"{ESTD.parent}:{os.environ['PATH']}"},
    )
    assert pasted.returncode == 0, pasted.stderr
    after = read_pem(home / "device.pem")
    assert after.subject == before.subject
    assert after.serial_number != before.serial_number


def verified(authorities: Path, chain: Path) -> bool:
    """Whether a TLS stack takes the chain with its key, and it leads over one intermediate to a CA certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(chain, chain.with_name("device.key"))
    certificates = x509.load_pem_x509_certificates(authorities.read_bytes())
    leaf, *rest = x509.load_pem_x509_certificates(chain.read_bytes())
    for issuer in (*rest, certificates[0]):
        leaf.verify_directly_issued_by(issuer)
        leaf = issuer
    return len(rest) == 1


def test_a_device_enrolls_with_its_birth_certificate(live: Live, tmp_path: Path) -> None:
    device = live.device(SOUTH)
    enrolled = ask(
        "enroll",
        *server_of(live, SOUTH),
        "--certificate",
        device.certificate,
        "--key",
        device.key,
        "--out",
        tmp_path / "d",
    )
    assert device.name in enrolled["subject"]
    status, error = refusal("enroll", *server_of(live, NORTH), "--out", tmp_path / "d", "--renew")
    assert (status, error["details"]["http_status"]) == (1, 403)
    assert live.events(0, request_id=error["details"]["request_id"])


def test_how_enrolling_fails(live: Live, tmp_path: Path) -> None:
    device, code = live.code(NORTH)
    home = tmp_path / "d"
    by_code = ("enroll", *server_of(live), "--device", device, "--out", home)
    status, error = refusal(*by_code, given="00000-00000-00000-00000")
    assert (status, error["details"]["http_status"]) == (1, 401)
    assert estd(*by_code, given=code).returncode == 0
    status, error = refusal(*by_code, given=code)
    assert (status, "--renew" in error["problems"][0]["remedy"]) == (2, True)
    status, error = refusal("enroll", *server_of(live), "--device", device, "--out", tmp_path / "e", given=code)
    assert (status, "code-spent" in error["message"]) == (1, True)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"https://127.0.0.1:{free.getsockname()[1]}"
    status, error = refusal("enroll", "--url", nobody, "--trust", live.trust, "--out", home, "--renew", "--tries", "1")
    assert (status, error["code"]) == (75, "try-later")
    status, error = refusal("enroll", "--url", "http://x", "--trust", live.trust, "--out", home, "--renew")
    assert status == 2
    status, error = refusal("enroll", *server_of(live)[:2], "--trust", home / "ca.pem", "--out", home, "--renew")
    assert (status, error["code"]) == (1, "wrong-server")
