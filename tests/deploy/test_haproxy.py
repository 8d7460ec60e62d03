"""HAProxy in front of estd: both configurations are accepted by it, and devices enroll through a real one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live_server import NAME, NORTH, Live, attempt, judge, run

HAPROXY = Path(__file__).parents[2] / "deploy" / "haproxy"


def take_port() -> int:
    """A port that is free now; what listens next to nothing else on this machine may have it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def adapt(name: str, folder: Path, *, estd: int, ops: int, listen: int, name_at_estd: str = NAME) -> Path:
    """The configuration as shipped, with places of this machine in it: one server, on loopback, as an ordinary user."""
    text = (HAPROXY / name).read_text(encoding="utf-8")
    text = re.sub(r"^    (user|group|chroot) .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^    maxconn \d+", "    maxconn 200", text, flags=re.MULTILINE)  # within this user's open files
    text, binds = re.subn(r"bind :\d+", f"bind 127.0.0.1:{listen}", text)
    text, servers = re.subn(r"server a 192\.0\.2\.11:8443", f"server a 127.0.0.1:{estd}", text)
    text = re.sub(r"^    server b .*\n", "", text, flags=re.MULTILINE)
    text, checks = re.subn(r"check port 8081", f"check port {ops}", text)
    assert (binds, servers, checks) == (1, 1, 1)
    text = text.replace("/etc/haproxy/", f"{folder}/").replace("ca.plant.example", name_at_estd)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def running(configuration: Path, port: int) -> Iterator[Path]:
    """A HAProxy until the block ends; the file its log goes to. It listens, and has found estd ready."""
    log = configuration.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([judge("haproxy"), "-db", "-f", configuration], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield log
    finally:
        process.terminate()
        process.wait(20)


def make_certificate(path: Path, name: str) -> None:
    """A certificate of HAProxy's own, with its key in one file as it wants them."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    no_password = serialization.NoEncryption()
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    path.write_bytes(key_pem + certificate.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize("name", ["passthrough.cfg", "public.cfg"])
def test_haproxy_accepts_the_configuration(tmp_path: Path, name: str) -> None:
    make_certificate(tmp_path / "est.plant.example.pem", "est.plant.example")
    make_certificate(tmp_path / "server-trust.pem", "trust")
    text = (HAPROXY / name).read_text(encoding="utf-8").replace("/etc/haproxy/", f"{tmp_path}/")
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = attempt("haproxy", "-c", "-f", tmp_path / name)
    assert done.status == 0, done.stderr + done.text
    if os.getuid() == 0:  # an ordinary user is warned that it cannot change to haproxy's user
        assert "WARNING" not in done.stderr + done.text


def test_a_device_enrolls_and_renews_through_the_passthrough(live: Live, tmp_path: Path) -> None:
    port = take_port()
    configuration = adapt("passthrough.cfg", tmp_path, estd=live.port, ops=live.ops_port, listen=port)
    device, code = live.code(NORTH)
    (tmp_path / "code").write_text(code)
    (tmp_path / "code").chmod(0o600)
    enroll = [sys.executable, "-m", "estd", "enroll", "--url", f"https://127.0.0.1:{port}", "--trust", live.trust]
    enroll += ["--label", NORTH, "--out", tmp_path / "device"]
    with running(configuration, port) as log:
        run(*enroll, "--device", device, "--code-file", tmp_path / "code", seconds=60)
        first = (tmp_path / "device" / "device.pem").read_bytes()
        run(*enroll, "--renew", seconds=60)
    second = (tmp_path / "device" / "device.pem").read_bytes()
    assert first != second
    issued = [x509.load_pem_x509_certificate(pem) for pem in (first, second)]
    assert all(live.stored(one.public_bytes(serialization.Encoding.DER)) for one in issued)
    assert " estd/a " in log.read_text()


def test_a_code_and_an_idevid_work_with_foreign_tools_through_it(live: Live, tmp_path: Path) -> None:
    port = take_port()
    configuration = adapt("passthrough.cfg", tmp_path, estd=live.port, ops=live.ops_port, listen=port)
    device = live.device(NORTH)
    (tmp_path / "body").write_bytes(run("openssl", "base64", given=device.make_csr()))
    curl = [
        "curl",
        "-sS",
        "--fail-with-body",
        "--cacert",
        live.trust,
        "--cert",
        device.certificate,
        "--key",
        device.key,
    ]
    curl += ["-H", "Content-Type: application/pkcs10", "--data-binary", f"@{tmp_path / 'body'}"]
    with running(configuration, port):
        answer = run(*curl, f"https://127.0.0.1:{port}/.well-known/est/{NORTH}/simpleenroll")
    assert answer.replace(b"\n", b"").startswith(b"MII")


def test_the_terminating_mode_serves_the_public_and_nobody_else(live: Live, tmp_path: Path) -> None:
    port = take_port()
    make_certificate(tmp_path / "est.plant.example.pem", "localhost")
    (tmp_path / "server-trust.pem").write_bytes(live.trust.read_bytes())
    configuration = adapt("public.cfg", tmp_path, estd=live.port, ops=live.ops_port, listen=port)
    base = f"https://localhost:{port}/.well-known/est"
    curl = ["curl", "-sS", "--cacert", tmp_path / "est.plant.example.pem", "-w", "\n%{http_code}"]
    before = live.issuances()
    device = live.device(NORTH)
    name, code = live.code(NORTH)
    with running(configuration, port):
        served = run(*curl, f"{base}/{NORTH}/cacerts")
        attributes = run(*curl, f"{base}/{NORTH}/csrattrs")
        refused = [
            run(*curl, f"{base}/{NORTH}/simpleenroll", "--data-binary", "x", "-u", f"{name}:{code}"),
            run(
                *curl,
                f"{base}/{NORTH}/simplereenroll",
                "--data-binary",
                "x",
                "--cert",
                device.certificate,
                "--key",
                device.key,
            ),
            run(*curl, f"{base}/{NORTH}/cacerts", "--data-binary", "x"),
            run(*curl, f"{base}/{NORTH}/../{NORTH}/simpleenroll", "--path-as-is"),
            run(*curl, f"https://localhost:{port}/"),
        ]
    direct = run("curl", "-sS", "--cacert", live.trust, live.url("cacerts", NORTH))
    assert served == direct + b"\n200"
    assert attributes.rpartition(b"\n")[2] in (b"200", b"204")
    assert [answer.rpartition(b"\n")[2] for answer in refused] == [b"403"] * len(refused)
    assert live.issuances() == before


def test_a_server_that_is_not_estd_is_not_believed(live: Live, tmp_path: Path) -> None:
    port = take_port()
    for file in ("est.plant.example.pem", "server-trust.pem"):  # a root that did not sign estd's certificate
        make_certificate(tmp_path / file, "localhost")
    configuration = adapt("public.cfg", tmp_path, estd=live.port, ops=live.ops_port, listen=port)
    curl = ["curl", "-sS", "--cacert", tmp_path / "est.plant.example.pem", "-o", os.devnull, "-w", "%{http_code}"]
    with running(configuration, port):
        answer = run(*curl, f"https://localhost:{port}/.well-known/est/{NORTH}/cacerts")
    assert answer == b"503"
