"""Foreign TLS clients that say what the exporter gives (RFC 9266): OpenSSL's s_client and GnuTLS's gnutls-cli.

Either holds a connection on which one request is written by hand, with the channel binding of that connection or of
another (RFC 7030 §3.5).
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import select
import subprocess
import time
from pathlib import Path

import pytest
from live_server import NAME, Device, Live, judge, run

_LABEL = "EXPORTER-Channel-Binding"
_SECONDS = 20.0


class Client:
    """A TLS connection held by a foreign program, to whose input and output one talks."""

    def __init__(self, argv: list[str | Path], exported: bytes) -> None:
        self._process = subprocess.Popen(
            [judge(str(argv[0])), *map(str, argv[1:])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._exported = re.compile(exported + rb"([0-9A-Fa-f]{64})")
        self._seen = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=_SECONDS)

    def binding(self) -> bytes:
        """What the exporter gave, as soon as the handshake is done."""
        return bytes.fromhex(self._expect(self._exported)[1].decode())

    def enroll(self, binding: bytes, folder: Path, device: Device) -> tuple[int, bytes]:
        """Send a request that carries this binding; status and body of the answer."""
        assert self._process.stdin is not None
        body = bound_request(folder, device, binding)
        head = (
            "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/pkcs10\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._process.stdin.write(head.encode() + body)
        self._process.stdin.flush()
        answer = self._expect(
            re.compile(rb"HTTP/1\.1 (\d+) .*?\r\nContent-Length: (\d+)\r\n(?:.*?\r\n)?\r\n", re.DOTALL)
        )
        whole = self._expect(re.compile(re.escape(answer[0]) + b"(.{%d})" % int(answer[2]), re.DOTALL))
        return int(answer[1]), whole[1]

    def _expect(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _SECONDS
        while (found := pattern.search(self._seen)) is None:
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._process.stdout.fileno(), 65_536) if readable else b""
            if not more:
                pytest.fail(f"{pattern.pattern!r} did not come: {self._seen!r}")
            self._seen += more
        return found


def bound_request(folder: Path, device: Device, binding: bytes) -> bytes:
    """A request for a new key, with challengePassword, where RFC 7030 §3.5 wants the channel binding."""
    name = secrets.token_hex(4)
    config = folder / f"{name}.cnf"
    config.write_text(
        f"[req]\ndistinguished_name = dn\nattributes = attributes\nprompt = no\n[dn]\nserialNumber = {device.name}\n"
        f"[attributes]\nchallengePassword = {base64.b64encode(binding).decode()}\n",
        encoding="ascii",
    )
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / f"{name}.key")
    return base64.b64encode(run("openssl", "req", "-new", *key, "-config", config, "-outform", "DER"))


def connect_openssl(live: Live, device: Device, version: str) -> Client:
    """A connection of s_client, with the TLS version ``1.2`` or ``1.3``."""
    return Client(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{live.port}", "-servername", NAME),
            *("-CAfile", live.trust, "-verify_return_error", "-nocommands", f"-tls{version.replace('.', '_')}"),
            *("-cert", device.certificate, "-key", device.key),
            *("-keymatexport", _LABEL, "-keymatexportlen", "32"),
        ],
        b"Keying material: ",
    )


def connect_gnutls(live: Live, device: Device, version: str) -> Client:
    """The same with gnutls-cli."""
    return Client(
        [
            *("gnutls-cli", "--port", str(live.port), "--x509cafile", live.trust, "127.0.0.1"),
            *("--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{version}"),
            *("--x509certfile", device.certificate, "--x509keyfile", device.key),
            *("--keymatexport", _LABEL, "--keymatexportsize", "32"),
        ],
        b"Key material: ",
    )
