"""The bare cryptography of one enrollment, for `loadtest.bench` to divide by: P-256 throughout, no I/O.

*fresh* is the server's half of a TLS 1.3 handshake (pyOpenSSL, in memory) with a client certificate that is verified
against its maker's CA, the verification of a CSR and one signature: seven operations on the curve. *kept* is the last two.
Run as a program it prints both in CPU microseconds.

The server under load keeps every core busy, and on most machines a core that shares its silicon with a busy neighbour
needs more CPU time for the same work. So `measure` runs one such program per core at once and takes their mean: the work
and its floor are measured under the same condition.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import fleet
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

_ROUNDS = 15
_TIMES = 60


def measure() -> tuple[float, float]:
    """CPU microseconds of the bare work with every core busy: (fresh, kept)."""
    programs = [
        subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE) for _ in range(os.cpu_count() or 1)
    ]
    answers = [json.loads(program.communicate(timeout=120)[0]) for program in programs]
    return statistics.mean(one[0] for one in answers), statistics.mean(one[1] for one in answers)


def measure_alone() -> tuple[float, float]:
    """The same in this process: the median of several rounds."""
    key = ec.generate_private_key(ec.SECP256R1())
    maker = fleet.make_authority(key, "floor maker")
    device = fleet.make_device(maker, key, "floor", 1)
    csr = x509.load_der_x509_csr(fleet.read_body(device.bodies[0])).public_bytes(serialization.Encoding.DER)
    message = bytes(600)

    def kept() -> None:
        # Parsed anew each time, so that no library keeps the last verdict.
        assert x509.load_der_x509_csr(csr).is_signature_valid
        key.sign(message, ec.ECDSA(hashes.SHA256()))

    kept_us = statistics.median(_cpu_us(kept) for _ in range(_ROUNDS))
    handshake_us = statistics.median(_handshake_us(device, maker) for _ in range(_ROUNDS))
    return handshake_us + kept_us, kept_us


def _cpu_us(work: Callable[[], None]) -> float:
    started = time.thread_time()
    for _ in range(_TIMES):
        work()
    return (time.thread_time() - started) / _TIMES * 1e6


def _handshake_us(device: fleet.Device, maker: x509.Certificate) -> float:
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.use_certificate(device.certificate)
    server.use_privatekey(device.key)
    store = server.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(maker))
    server.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, None)
    server.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    server.set_options(SSL.OP_NO_TICKET)
    client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client.set_min_proto_version(SSL.TLS1_3_VERSION)
    client.use_certificate(device.certificate)
    client.use_privatekey(device.key)
    client.set_verify(SSL.VERIFY_NONE, None)
    spent = 0.0
    for _ in range(_TIMES):
        one = SSL.Connection(client, None)
        one.set_connect_state()
        started = time.thread_time()
        other = SSL.Connection(server, None)
        other.set_accept_state()
        spent += time.thread_time() - started
        for _ in range(3):
            _step(one)
            _move(one, other)
            started = time.thread_time()
            _step(other)
            spent += time.thread_time() - started
            _move(other, one)
    return spent / _TIMES * 1e6


def _step(side: SSL.Connection) -> None:
    try:
        side.do_handshake()
    except SSL.WantReadError:
        return  # the other side's turn


def _move(source: SSL.Connection, target: SSL.Connection) -> None:
    try:
        target.bio_write(source.bio_read(65536))
    except SSL.WantReadError:
        return  # nothing to move


if __name__ == "__main__":
    print(json.dumps(measure_alone()))
