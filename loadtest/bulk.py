"""The bulk lane under load: batches of prepared requests from a registration authority, each on a connection of its own.

`bench.py` drives `make_lines` and `send_all`. Run as a program it starts a quickstart server, sends one round and prints
CPU microseconds per certificate by role, beside the bare cryptography of the same work (`floor.py`): the verification of a
CSR and one signature.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import fleet
import generator
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LABEL = "campus-north"
_PIECE = 64
"""Lines that are sent at once."""


def make_lines(count: int) -> list[bytes]:
    """So many lines of a batch, each with a fresh P-256 key and a name of its own."""
    run = os.urandom(4).hex()
    lines = []
    for index in range(count):
        name = f"line-{run}-{index}"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        body = fleet.make_body(subject, ec.generate_private_key(ec.SECP256R1()))
        lines.append(b"%s,%s\n" % (name.encode(), body))
    return lines


def read_authority(site: Path, label: str = LABEL) -> fleet.Device:
    """The registration authority of a quickstart's ecosystem."""
    directory = site / "bootstrap" / label
    key = serialization.load_pem_private_key((directory / "ra.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate((directory / "ra.pem").read_bytes())
    return fleet.Device(f"{label}-authority-{directory}", certificate, key, (), key)


def send_all(
    address: tuple[str, int],
    trust: x509.Certificate,
    authority: fleet.Device,
    lines: Sequence[bytes],
    *,
    label: str = LABEL,
    batches: int = 2,
    in_flight: int = 512,
) -> generator.Tally:
    """Send every line once, in so many batches at a time with so many unanswered lines each; seconds are per line."""
    fleet.make_context(trust, authority)
    parts = [lines[at::batches] for at in range(batches)]
    tallies = [generator.Tally() for _ in parts]
    threads = [
        threading.Thread(target=_send, args=(address, trust, authority, part, f"/estd/{label}/batch", in_flight, tally))
        for part, tally in zip(parts, tallies, strict=True)
    ]
    wall, cpu = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = generator.Tally(wall_seconds=time.monotonic() - wall, cpu_seconds=time.process_time() - cpu)
    for tally in tallies:
        total.ok += tally.ok
        total.seconds += tally.seconds
        for reason, count in tally.failures.items():
            total.failures[reason] = total.failures.get(reason, 0) + count
    return total


def _send(
    address: tuple[str, int],
    trust: x509.Certificate,
    authority: fleet.Device,
    lines: Sequence[bytes],
    path: str,
    in_flight: int,
    tally: generator.Tally,
) -> None:
    try:
        connection = fleet.Connection(address, trust, authority)
        tls = connection.tls
        length = sum(map(len, lines))
        host = f"{address[0]}:{address[1]}"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/csv\r\nContent-Length: {length}\r\n\r\n"
        tls.sendall(head.encode())
        sent, answered, rest = 0, 0, b""
        times: deque[tuple[int, float]] = deque()
        while True:
            while sent < len(lines) and sent - answered < in_flight:
                piece = lines[sent : sent + _PIECE]
                sent += len(piece)
                times.append((len(piece), time.monotonic()))
                tls.sendall(b"".join(piece))
            rest += tls.recv(65536)
            whole, _, rest = rest.rpartition(b"\n")
            found = whole.count(b'{"n":')
            tally.ok += whole.count(b'"certificate":"')
            answered += found
            now = time.monotonic()
            while found:
                count, at = times[0]
                taken = min(count, found)
                tally.seconds.extend([now - at] * taken)
                found -= taken
                if taken == count:
                    times.popleft()
                else:
                    times[0] = (count - taken, at)
            if b'{"end":' in whole:
                tally.failures.update(_read_end(whole))
                break
        connection.close()
    except Exception as fault:  # noqa: BLE001  # a result like any other
        tally.fail(type(fault).__name__)


def _read_end(text: bytes) -> dict[str, int]:
    at = text.index(b'{"end":')
    end = json.loads(text[at : text.index(b"}", at) + 1])
    failures = {kind: end[kind] for kind in ("refused", "failed") if end.get(kind)}
    return failures if end["end"] == "complete" else {**failures, end["end"]: 1}


def main() -> int:
    """Run, print."""
    import floor  # neither is needed by whoever only sends
    from ours import Server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", type=int, default=4000, help="certificates a round (4000)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (2)")
    parser.add_argument("--batches", type=int, default=2, help="batches at once (2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="estd-bulk-") as name:
        Path(name).chmod(0o755)
        server = Server(Path(name))
        try:
            authority = read_authority(server.site)
            floors = [floor.measure()[1]]
            for _ in range(options.rounds):
                lines = make_lines(options.certificates)
                rows, before = server.rows(), server.cpu_seconds()
                tally = send_all(server.address, server.trust, authority, lines, batches=options.batches)
                after = server.cpu_seconds()
                issued = server.rows() - rows
                floors.append(floor.measure()[1])
                bare = (floors[-1] + floors[-2]) / 2
                cpu = {role: (spent - before.get(role, 0.0)) * 1e6 / max(1, tally.ok) for role, spent in after.items()}
                roles = "  ".join(f"{role} {value:.0f}" for role, value in cpu.items())
                print(
                    f"{tally.ok} certificates, {issued} rows  {tally.ok / tally.wall_seconds:.0f}/s  CPU µs: {roles}  "
                    f"all {sum(cpu.values()):.0f}  bare {bare:.0f}  ratio {sum(cpu.values()) / bare:.2f}  "
                    f"generator {tally.cpu_seconds * 1e6 / max(1, tally.ok):.0f}  failures {tally.failures or 'none'}"
                )
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
