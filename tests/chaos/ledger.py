"""The independent checker: what devices hold against what the database and the signers' journals say.

It shares no code with the road under test. The database is asked with statements of its own, and a journal's blocks are
read by the reader that auditors use. `check` turns every promise into a claim of the report.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from claims import Report
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from stage import ESTD, Stage

from estd.signer.blocks import read_entries
from estd.signer.segments import read_journal


@dataclass(frozen=True, slots=True)
class Row:
    """One intent, and the certificate on record for it."""

    issuer_id: int
    serial: bytes
    request_key: bytes
    csr_sha256: bytes
    closed: str | None
    der: bytes | None
    open: bool
    """Neither issued nor closed yet."""


def check(
    report: Report, stage: Stage, answers: Mapping[bytes, Sequence[bytes]], *, settle_seconds: float = 0.0
) -> None:
    """Hold `answers` (SHA-256 of a CSR → every certificate it got) against what is on record.

    Intents that are still open may be settled by the server itself; wait so long for that.
    """
    rows = asyncio.run(_wait_settled(stage.database_url, settle_seconds))
    journaled = read_journals(stage.journals)
    by_csr: dict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        by_csr[row.csr_sha256].append(row)
    stored = {row.der for row in rows if row.der is not None}
    received = {csr: set(certificates) for csr, certificates in answers.items()}
    held = {der for certificates in received.values() for der in certificates}
    report.figures["on record"] = {
        "requests": len(answers),
        "certificates": len(stored),
        "journaled": sum(len(entries) for entries in journaled.values()),
        "open": sum(row.open for row in rows),
        **{f"{closing} intents": sum(row.closed == closing for row in rows) for closing in ("void", "orphan")},
    }
    report.claim(
        "0 lost: every certificate a device received is in the database, byte for byte",
        [f"serial {read_serial(der)} is not on record" for der in held - stored],
    )
    tbs_of = {tbs for entries in journaled.values() for tbs in entries}
    report.claim(
        "0 unlogged: every certificate, received or on record, is in a signer's journal",
        [
            f"serial {read_serial(der)} is in no journal"
            for der in held | stored
            if x509.load_der_x509_certificate(der).tbs_certificate_bytes not in tbs_of
        ],
    )
    report.claim("0 double serials: no issuer used a serial for two contents", _find_doubles(journaled, held | stored))
    report.claim(
        "0 differing answers: whoever repeated a request got the same bytes",
        [f"request {csr.hex()[:16]} got {len(ders)} certificates" for csr, ders in received.items() if len(ders) > 1],
    )
    standing = {csr: [row.der for row in by_csr[csr] if row.closed is None] for csr in received}
    report.claim(
        "every request that was answered ended with exactly one certificate that stands",
        [
            f"request {csr.hex()[:16]} has {len(standing[csr])}"
            for csr, ders in received.items()
            if len(standing[csr]) != 1 or set(standing[csr]) != ders
        ],
    )
    report.claim(
        "no intent that was closed as never signed is in a journal",
        [
            f"serial {row.serial.hex()}"
            for row in rows
            if row.closed == "void" and (row.issuer_id, row.serial) in journaled
        ],
    )
    report.claim("nothing was closed as an orphan", [row.serial.hex() for row in rows if row.closed == "orphan"])
    report.claim("no intent is left open", [row.serial.hex() for row in rows if row.open] if settle_seconds else True)
    _check_by_command(report, stage, held)


def read_journals(directory: Path) -> dict[tuple[int, bytes], list[bytes]]:
    """Issuer and serial → the to-be-signed bytes of every entry, over the journals of all slots."""
    slots = sorted(int(path.stem.removeprefix("journal-")) for path in directory.glob("journal-*.head"))
    entries: dict[tuple[int, bytes], list[bytes]] = defaultdict(list)
    for slot in slots:
        for block in read_journal(directory, slot):
            for entry in read_entries(block):
                entries[entry.issuer_id, entry.serial].append(entry.tbs)
    return dict(entries)


def read_serial(der: bytes) -> str:
    """The serial of a certificate, in hexadecimal."""
    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


async def fetch_rows(url: str) -> list[Row]:
    """Every intent with its certificate."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        found = await connection.fetch(
            "SELECT i.issuer_id, i.serial, i.request_key, i.csr_sha256, i.closed, c.der,"
            " u.serial IS NOT NULL AS open FROM intent i"
            " LEFT JOIN certificate c ON c.issuer_id = i.issuer_id AND c.serial = i.serial"
            " LEFT JOIN unresolved_intent u ON u.issuer_id = i.issuer_id AND u.serial = i.serial"
        )
    finally:
        await connection.close(timeout=5)
    return [Row(**dict(row)) for row in found]


# --- private -----------------------------------------------------------------------------------------------------------


async def _wait_settled(url: str, seconds: float) -> list[Row]:
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        rows = await fetch_rows(url)
        if not any(row.open for row in rows) or asyncio.get_running_loop().time() > deadline:
            return rows
        await asyncio.sleep(1.0)


def _find_doubles(journaled: Mapping[tuple[int, bytes], Sequence[bytes]], ders: set[bytes]) -> list[str]:
    """Serials with two entries, or two certificates of one issuer and serial; issuers are told apart by key id."""
    doubles = [
        f"serial {serial.hex()} was journaled {len(all_)} times"
        for (_, serial), all_ in journaled.items()
        if len(all_) > 1
    ]
    seen: dict[tuple[bytes | None, int], bytes] = {}
    for der in ders:
        certificate = x509.load_der_x509_certificate(der)
        issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        if seen.setdefault((issuer, certificate.serial_number), der) != der:
            doubles.append(f"serial {certificate.serial_number:x} is in two certificates")
    return doubles


def _check_by_command(report: Report, stage: Stage, held: set[bytes]) -> None:
    """What the operator's own command says of it, given what the devices hold."""
    received = stage.directory / "received.pem"
    received.write_bytes(b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in held))
    done = subprocess.run(
        [ESTD, "audit", "verify", "--config", stage.place.settings, "--received", received],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = (done.stdout + done.stderr).strip().splitlines()
    report.figures["audit verify"] = told[-1] if told else f"status {done.returncode}"
    report.claim("`estd audit verify` finds nothing wrong", [] if done.returncode == 0 else told[-20:])
