"""``estd serve``: a server from settings, what it takes over while it runs, and what it refuses to start with."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from live_server import Live
from patience import wait_for_file, wait_until
from program import ESTD, ask, estd, refusal, tell

from estd.device.requests import write_key
from estd.keys.software import SoftwareKey


@pytest.mark.slow
def test_a_server_from_settings(tmp_path: Path) -> None:
    settings, ready = tmp_path / "estd.toml", tmp_path / "ready.json"
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    settings.write_text('data_directory = "data"\nlisten.port = 0\nops.port = 0\n[keys]\nfile = "key"\n')
    assert "first start" in ask("serve", "--config", settings, "--check")["database"]
    with serving(settings, ready):
        assert ask("serve", "--config", settings, "--check")["running"] is True
        facts = json.loads(ready.read_text())
    assert not ready.exists()
    # A program reads every line of the log.
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "serving" in {line["message"] for line in log}
    said = (tmp_path / "said").read_text()
    assert said == f"estd serves on port {facts['port']}, ops on port {facts['ops_port']}\n"

    (tmp_path / "key").write_text("cd" * 32)
    for command in (("serve", "--config", settings, "--check"), ("serve", "--config", settings)):
        done = estd(*command)
        assert done.returncode == 2
        told = done.stderr.splitlines()[-2:]
        assert told[0].startswith(f"estd: the key-encryption key ({tmp_path / 'key'}) is not the one that")
        assert "--new-key" in told[1]
        assert "child did not become ready" not in done.stderr, "found before any signer was started"


@contextmanager
def serving(settings: Path, ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server of these settings, until the block ends; what it says is in the files ``log`` and ``said`` beside them."""
    with settings.with_name("log").open("wb") as log, settings.with_name("said").open("wb") as said:
        process = subprocess.Popen(
            [str(ESTD), "serve", "--config", str(settings), "--ready-file", str(ready)], stdout=said, stderr=log
        )
        try:
            wait_for_file(ready, process, 60, settings.with_name("log").read_text)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0


def bring_certificate(directory: Path, ends: datetime, *names: str) -> bytes:
    """An operator's own certificate and key, as ``tls.pem`` and ``tls.key``; the certificate, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 5, ends - timedelta(days=90), ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    for name, content in (
        ("tls.key", write_key(SoftwareKey(key))),
        ("tls.pem", certificate.public_bytes(Encoding.PEM)),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.slow
def test_what_a_reload_takes_over_and_what_it_does_not(tmp_path: Path) -> None:
    settings, ready, log = tmp_path / "estd.toml", tmp_path / "ready.json", tmp_path / "log"
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    text = 'data_directory = "data"\nlisten.port = 0\nops.port = 0\nprocesses.workers = 1\nkeys.file = "key"\n'
    text += 'tls = { names = ["ca.plant.example"], certificate = "tls.pem", key = "tls.key" }\n'
    settings.write_text(text)
    now = datetime.now(UTC).replace(microsecond=0)
    first = bring_certificate(tmp_path, now + timedelta(days=9), "ca.plant.example")

    def lines(message: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        return [one for one in found if one["message"] == message]

    def reload(process: subprocess.Popen[bytes], said: str) -> dict[str, Any]:
        """What the log says of it, with that message."""
        before = len(lines(said))
        process.send_signal(signal.SIGHUP)
        return wait_until(lambda: lines(said)[before:], 30)[0]

    with serving(settings, ready) as process:
        facts = json.loads(ready.read_text())

        def shown() -> bytes:
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", facts["port"])))

        assert shown() == first
        bring_certificate(tmp_path, now - timedelta(days=1), "ca.plant.example")
        assert "ended on" in reload(process, "reload failed; the old workers stay")["detail"]
        assert shown() == first
        (tmp_path / "tls.pem").unlink()
        assert "No such file" in reload(process, "reload failed; the old workers stay")["detail"]
        assert shown() == first
        assert lines("reloaded") == []

        second = bring_certificate(tmp_path, now + timedelta(days=8), "other.example")
        reload(process, "reloaded")
        wait_until(lambda: shown() == second)
        (named,) = lines("the server certificate is for other names than tls.names")
        assert named["names"] == ["ca.plant.example"]
        with urllib.request.urlopen(f"http://127.0.0.1:{facts['ops_port']}/metrics", timeout=10) as answer:
            metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
        assert float(metrics["estd_tls_certificate_not_after_seconds"]) == (now + timedelta(days=8)).timestamp()

        settings.write_text(
            text.replace("listen.port = 0", "listen.port = 18443").replace("workers = 1", "workers = 2")
        )
        reload(process, "reloaded")
        (waiting,) = lines("changed settings want a restart")
        assert waiting["settings"] == ["listen.port"]


def test_settings_that_cannot_work_are_told_before_anything_starts(tmp_path: Path) -> None:
    settings = tmp_path / "estd.toml"
    (tmp_path / "data").mkdir()
    key = tmp_path / "data/key-encryption.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    for wrong, where in (
        ("listen.port = 18081\nops.port = 18081\n", "ops.port"),
        ('tls.names = ["bad name"]\n', "tls.names"),
        ('database.url = "mysql://db/estd"\n', "database.url"),
    ):
        settings.write_text('data_directory = "data"\n' + wrong)
        for check in ((), ("--check",)):
            status, error = refusal("serve", "--config", settings, *check)
            assert (status, error["problems"][0]["where"]) == (2, f"{settings}: {where}")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["key-encryption.key"]


def test_a_look_at_a_server_that_runs(live: Live) -> None:
    text = tell("serve", "--check", "--dir", live.directory)
    assert text.startswith(f"{live.directory / 'estd.toml'}: nothing is wrong\n")
    assert "the private PostgreSQL answers" in text
