"""tamper: journal and audit trail are changed at random, and every change has to be found.

A real server issues some certificates, refuses some requests and is stopped in order. Then, again and again, one thing is
changed on a copy and the auditor (what ``estd audit verify`` runs) looks at it:

  journal   bits flipped, octets overwritten, removed or added, blocks removed, swapped, repeated, files cut off, removed or
            exchanged; and a history written anew with every hash and both copies of the head recomputed
  trail     events and links edited, removed, exchanged, added behind estd's back, the newest ones cut off; and a history
            written anew with every digest recomputed
  ledger    every column of certificates and intents that a journal, a certificate or an event speaks of; rows of them and
            of revocations removed, moved or slipped in; spent codes made good again; ecosystems' versions and issuers

Journals are copied; tables are changed in a transaction that is rolled back, with the triggers that refuse changes off, as
whoever owns the database can have them. Before, after, and now and then between, what was not touched has to be clean.

  python tests/chaos/tamper.py --n 200
  python tests/chaos/tamper.py --n 1000 --json tamper.json

Needs no privileges. Stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import csv
import hashlib
import random  # noqa: TID251 - choices that a seed can repeat; nothing secret hangs on them
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
from claims import Report, make_parser, perform
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from stage import ESTD, Stage, fleet

from estd.app.playground import LABELS
from estd.auditor.auditing import Scope, audit
from estd.auditor.findings import Findings
from estd.auditor.trail import write_event_text
from estd.signer.blocks import Block, Head, Kind, read_chain, read_head, write_block, write_head
from estd.store.cluster import SUPERUSER
from estd.store.private import PrivatePostgres, url_of

REQUESTS: Final = 24
REFUSALS: Final = 12
CODES: Final = 6
REVOCATIONS: Final = 3
ROUNDS: Final = 5
"""How often some of each are made, so that there is something between any two."""


class NothingToDo(Exception):
    """This change would change nothing here; another is tried."""


@dataclass(frozen=True, slots=True)
class Records:
    """Everything an auditor reads."""

    journals: Path
    connection: asyncpg.Connection

    async def audit(self, journals: Path | None = None) -> Findings:
        """What the auditor says; inside a transaction."""
        scope = Scope([journals or self.journals])
        return await audit(self.connection, self.connection, scope, datetime.now(UTC), lambda _what, _count: None)


# --- the journal -----------------------------------------------------------------------------------------------------


def flip_bits(copy: Path, choose: random.Random) -> str:
    path, content = _pick_file(copy, choose)
    at = choose.randrange(len(content))
    content[at] ^= choose.randrange(1, 256)
    path.write_bytes(content)
    return f"{path.name}: octet {at}"


def overwrite(copy: Path, choose: random.Random) -> str:
    path, content = _pick_file(copy, choose)
    at, length = choose.randrange(len(content)), choose.randrange(1, 100)
    content[at : at + length] = choose.randbytes(len(content[at : at + length]))
    path.write_bytes(content)
    return f"{path.name}: {length} octets from {at}"


def remove_octets(copy: Path, choose: random.Random) -> str:
    path, content = _pick_file(copy, choose)
    at, length = choose.randrange(len(content)), choose.randrange(1, 500)
    del content[at : at + length]
    path.write_bytes(content)
    return f"{path.name}: {length} octets from {at} gone"


def add_octets(copy: Path, choose: random.Random) -> str:
    path, content = _pick_file(copy, choose)
    at = choose.randrange(len(content) + 1)
    content[at:at] = choose.randbytes(choose.randrange(1, 300))
    path.write_bytes(content)
    return f"{path.name}: octets added at {at}"


def cut_off(copy: Path, choose: random.Random) -> str:
    path, content = _pick_file(copy, choose)
    at = choose.randrange(len(content))
    path.write_bytes(content[:at])
    return f"{path.name}: cut off at {at}"


def remove_file(copy: Path, choose: random.Random) -> str:
    path = choose.choice(_files(copy))
    path.unlink()
    return f"{path.name}: removed"


def exchange_files(copy: Path, choose: random.Random) -> str:
    kind = choose.choice((".log", ".head"))
    files = [path for path in _files(copy) if path.suffix == kind]
    if len(files) < 2:
        raise NothingToDo
    one, other = choose.sample(files, 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"{one.name} and {other.name}: exchanged"


def remove_block(copy: Path, choose: random.Random) -> str:
    path, blocks = _pick_blocks(copy, choose)
    gone = choose.randrange(len(blocks))
    path.write_bytes(b"".join(_octets(path, block) for at, block in enumerate(blocks) if at != gone))
    return f"{path.name}: block {blocks[gone].sequence} gone"


def repeat_block(copy: Path, choose: random.Random) -> str:
    path, blocks = _pick_blocks(copy, choose)
    octets = [_octets(path, block) for block in blocks]
    octets.insert(choose.randrange(len(octets) + 1), choose.choice(octets))
    path.write_bytes(b"".join(octets))
    return f"{path.name}: a block stands twice"


def swap_blocks(copy: Path, choose: random.Random) -> str:
    path, blocks = _pick_blocks(copy, choose)
    if len(blocks) < 2:
        raise NothingToDo
    octets = [_octets(path, block) for block in blocks]
    one, other = choose.sample(range(len(octets)), 2)
    octets[one], octets[other] = octets[other], octets[one]
    path.write_bytes(b"".join(octets))
    return f"{path.name}: blocks {blocks[one].sequence} and {blocks[other].sequence} swapped"


def forget_the_end(copy: Path, choose: random.Random) -> str:
    """The end is cut off at a block, and the head is made to agree."""
    path, blocks = _pick_blocks(copy, choose)
    ends = [at for at in range(1, len(blocks)) if any(block.kind in _TELLING for block in blocks[at:])]
    if not ends:
        raise NothingToDo
    at = choose.choice(ends)
    _write_anew(path, blocks[:at])
    return f"{path.name}: ends before block {blocks[at].sequence}, with a head that agrees"


def rewrite_history(copy: Path, choose: random.Random) -> str:
    """One block that says something is left out, every hash behind it and the head are made to agree."""
    path, blocks = _pick_blocks(copy, choose)
    telling = [at for at, block in enumerate(blocks) if block.kind is Kind.ENTRIES]
    if not telling:
        raise NothingToDo
    at = choose.choice(telling)
    _write_anew(path, blocks[:at] + blocks[at + 1 :])
    return f"{path.name}: a history without block {blocks[at].sequence}"


# --- the audit trail and the tables ----------------------------------------------------------------------------------

Change = Callable[[asyncpg.Connection, random.Random], Awaitable[str]]


async def edit_event(connection: asyncpg.Connection, choose: random.Random) -> str:
    event_id = await _pick_id(connection, choose, "event")
    column, value = choose.choice(
        (
            ("at", "at + interval '1 second'"),
            ("kind", "kind || 'x'"),
            ("outcome", "CASE outcome WHEN 'granted' THEN 'refused' ELSE 'granted' END"),
            ("detail", "detail || '.'"),
            ("identity", "'somebody else'"),
            ("address", "'192.0.2.99'"),
            ("request_id", "reverse(request_id) || 'x'"),
            ("serial", "coalesce(serial, '') || '00'"),
            ("code", "coalesce(code, '') || 'x'"),
            ("ecosystem", "coalesce(ecosystem, '') || 'x'"),
            ("ecosystem_id", "coalesce(ecosystem_id, 0) + 1"),
            ("issuer_id", "coalesce(issuer_id, 0) + 1"),
            ("extra", "coalesce(extra, '{}') || '{\"x\": 1}'"),
        )
    )
    await connection.execute(f"UPDATE event SET {column} = {value} WHERE event_id = $1", event_id)
    return f"event {event_id}: {column}"


async def remove_event(connection: asyncpg.Connection, choose: random.Random) -> str:
    event_id = await _pick_id(connection, choose, "event")
    await connection.execute("DELETE FROM event WHERE event_id = $1", event_id)
    return f"event {event_id}: gone"


async def exchange_events(connection: asyncpg.Connection, choose: random.Random) -> str:
    ids = [row[0] for row in await connection.fetch("SELECT event_id FROM event ORDER BY event_id")]
    one, other = choose.sample(ids, 2)
    await connection.execute("UPDATE event SET event_id = -event_id WHERE event_id = $1", one)
    await connection.execute("UPDATE event SET event_id = $2 WHERE event_id = $1", other, one)
    await connection.execute("UPDATE event SET event_id = $2 WHERE event_id = $1", -one, other)
    return f"events {one} and {other}: exchanged"


async def add_event(connection: asyncpg.Connection, choose: random.Random) -> str:
    event_id = choose.choice((0, -5, 10**6))
    await connection.execute(
        "INSERT INTO event (event_id, at, kind, outcome, detail, identity, address, request_id)"
        " VALUES ($1, now(), 'est.simpleenroll', 'refused', '', '', '', '')",
        event_id,
    )
    return f"event {event_id}: added"


async def cut_off_events(connection: asyncpg.Connection, choose: random.Random) -> str:
    """The newest events go, with the links that bind them."""
    links = await connection.fetch("SELECT link_id, event_ids FROM audit_link ORDER BY link_id DESC")
    gone = links[: choose.randrange(1, len(links) // 2)]
    await connection.execute("DELETE FROM audit_link WHERE link_id = ANY($1)", [row["link_id"] for row in gone])
    events = [event_id for row in gone for event_id in row["event_ids"]]
    await connection.execute("DELETE FROM event WHERE event_id = ANY($1)", events)
    return f"the newest {len(gone)} links and their {len(events)} events: gone"


async def remove_link(connection: asyncpg.Connection, choose: random.Random) -> str:
    link_id = await _pick_id(connection, choose, "audit_link")
    with_events = choose.random() < 0.5
    if with_events:
        await connection.execute(
            "DELETE FROM event WHERE event_id = ANY(SELECT unnest(event_ids) FROM audit_link WHERE link_id = $1)",
            link_id,
        )
    await connection.execute("DELETE FROM audit_link WHERE link_id = $1", link_id)
    return f"audit_link {link_id}: gone{', and what it binds' if with_events else ''}"


async def edit_link(connection: asyncpg.Connection, choose: random.Random) -> str:
    link_id = await _pick_id(connection, choose, "audit_link")
    value = choose.choice(
        (
            "digest = sha256(digest)",
            "event_ids = event_ids || 999999::bigint",
            "event_ids = event_ids[2:]",
            "previous = previous || 999999::bigint",
            "link_id = -link_id",
        )
    )
    await connection.execute(f"UPDATE audit_link SET {value} WHERE link_id = $1", link_id)
    return f"audit_link {link_id}: {value}"


async def rewrite_trail(connection: asyncpg.Connection, choose: random.Random) -> str:
    """An event is changed or removed, and every digest behind it recomputed: the trail agrees with itself."""
    event_id = await _pick_id(connection, choose, "event")
    if choose.random() < 0.5:
        await connection.execute("UPDATE event SET identity = 'somebody else' WHERE event_id = $1", event_id)
        what = "changed"
    else:
        await connection.execute("DELETE FROM event WHERE event_id = $1", event_id)
        await connection.execute("UPDATE audit_link SET event_ids = array_remove(event_ids, $1)", event_id)
        what = "gone"
    digests: dict[int, bytes] = {}
    events = {
        row["event_id"]: hashlib.sha256(write_event_text(row)).digest()
        for row in await connection.fetch("SELECT *, extra::text AS extra FROM event")
    }
    for row in await connection.fetch("SELECT link_id, event_ids, previous FROM audit_link ORDER BY link_id"):
        parts = [digests[one] for one in row["previous"]] + [events[one] for one in row["event_ids"]]
        digests[row["link_id"]] = hashlib.sha256(b"".join(parts)).digest()
    await connection.executemany("UPDATE audit_link SET digest = $2 WHERE link_id = $1", list(digests.items()))
    return f"event {event_id}: {what}, and every digest made to agree"


async def edit_certificate(connection: asyncpg.Connection, choose: random.Random) -> str:
    return await _edit(connection, choose, "certificate", await _pick_serial(connection, choose), CERTIFICATE)


async def edit_intent(connection: asyncpg.Connection, choose: random.Random) -> str:
    return await _edit(connection, choose, "intent", await _pick_serial(connection, choose), INTENT)


async def remove_row(connection: asyncpg.Connection, choose: random.Random) -> str:
    serial = await _pick_serial(connection, choose)
    tables = choose.choice((("certificate",), ("intent",), ("certificate", "intent")))
    for table in tables:
        await connection.execute(f"DELETE FROM {table} WHERE serial = $1", serial)
    return f"{' and '.join(tables)} {serial.hex()}: gone"


async def change_revocation(connection: asyncpg.Connection, choose: random.Random) -> str:
    serials = [row[0] for row in await connection.fetch("SELECT serial FROM revocation ORDER BY serial")]
    serial = choose.choice(serials)
    others = [row[0] for row in await connection.fetch("SELECT serial FROM certificate ORDER BY serial")]
    other = choose.choice([one for one in others if one not in serials])
    what = choose.choice(("gone", "all gone", "reason", "date", "moved", "added"))
    if what == "gone":
        await connection.execute("DELETE FROM revocation WHERE serial = $1", serial)
    elif what == "all gone":
        await connection.execute("TRUNCATE revocation")
    elif what == "reason":
        await connection.execute("UPDATE revocation SET reason = 'privilegeWithdrawn' WHERE serial = $1", serial)
    elif what == "date":
        await connection.execute(
            "UPDATE revocation SET revoked_at = revoked_at + interval '1 s' WHERE serial = $1", serial
        )
    elif what == "moved":
        await connection.execute("UPDATE revocation SET serial = $2 WHERE serial = $1", serial, other)
    else:
        await connection.execute(
            "INSERT INTO revocation SELECT now(), issuer_id, serial, 'keyCompromise' FROM certificate WHERE serial = $1",
            other,
        )
    return f"revocation {serial.hex()}: {what}"


async def unspend_code(connection: asyncpg.Connection, choose: random.Random) -> str:
    rows = await connection.fetch("SELECT serial FROM intent WHERE held_code_id IS NOT NULL ORDER BY serial")
    serial = choose.choice(rows)[0]
    change = choose.choice(
        (
            "held_code_id = NULL",
            "held_code_id = NULL, code_id = NULL",
            "code_id = NULL",
            "held_code_id = held_code_id + 100000",
            "held_code_id = held_code_id + 100000, code_id = code_id + 100000",
        )
    )
    await connection.execute(f"UPDATE intent SET {change} WHERE serial = $1", serial)
    return f"intent {serial.hex()}: {change}"


async def change_unresolved(connection: asyncpg.Connection, choose: random.Random) -> str:
    """For a certificate, or for a serial that nobody intended."""
    serial = await _pick_serial(connection, choose)
    named = choose.choice((serial, b"\x01\x02\x03"))
    await connection.execute(
        "INSERT INTO unresolved_intent SELECT created_at, issuer_id, ecosystem_id, $2 FROM intent WHERE serial = $1",
        serial,
        named,
    )
    return f"unresolved_intent {named.hex()}: added"


async def change_ecosystem(connection: asyncpg.Connection, choose: random.Random) -> str:
    table, change = choose.choice(ECOSYSTEM)
    key = {"ecosystem": "ecosystem_id", "ecosystem_version": "ecosystem_id", "issuer": "issuer_id"}[table]
    ids = [row[0] for row in await connection.fetch(f"SELECT {key} FROM {table} ORDER BY 1")]
    one = choose.choice(ids)
    await connection.execute(f"{change} WHERE {key} = $1", one)
    return f"{table} {one}: {change}"


CERTIFICATE: Final = (
    "der = set_byte(der, 60, get_byte(der, 60) # 1)",
    "der = set_byte(der, length(der) - 3, get_byte(der, length(der) - 3) # 1)",
    "der = overlay(der placing '\\x00ff' from 99)",
    "not_before = not_before + interval '1 s'",
    "not_after = not_after + interval '10 years'",
    "not_after = now() - interval '1 day'",
    "issued_at = issued_at - interval '1 s'",
    "ecosystem_id = ecosystem_id + 1",
    "issuer_id = issuer_id + 1",
    "serial = set_byte(serial, 19, get_byte(serial, 19) # 1)",
)
INTENT: Final = (
    "closed = 'void'",
    "closed = 'orphan'",
    "closed = 'superseded'",
    "created_at = created_at - interval '1 year'",
    "code_id = coalesce(code_id, 0) + 1",
    "held_code_id = coalesce(held_code_id, 0) + 100000",
    "issuer_id = issuer_id + 1",
    "ecosystem_id = ecosystem_id + 1",
    "ecosystem_version = ecosystem_version + 1",
    "node_id = node_id + 1",
    "serial = set_byte(serial, 19, get_byte(serial, 19) # 1)",
    "request_key = sha256(request_key)",
    "csr_sha256 = sha256(csr_sha256)",
    "spki_sha256 = sha256(spki_sha256)",
    "tbs_sha256 = sha256(tbs_sha256)",
    "profile = profile || 'x'",
    "operation = 'simplereenroll'",
    "identity = 'somebody else'",
    "device = 'another'",
    "journal = reverse(journal)",
    "journal = overlay(journal placing '0000' from length(journal) - 3)",
    "journal = '7-0123456789abcdef' || substr(journal, position('.' IN journal))",
)
ECOSYSTEM: Final = (
    ("ecosystem", "UPDATE ecosystem SET label = label || 'x'"),
    ("ecosystem_version", "UPDATE ecosystem_version SET document = document || '{\"evil\": 1}'"),
    ("ecosystem_version", "UPDATE ecosystem_version SET applied_by = applied_by || 'x'"),
    ("ecosystem_version", "UPDATE ecosystem_version SET applied_at = applied_at - interval '1 day'"),
    ("ecosystem_version", "UPDATE ecosystem_version SET version = version + 1"),
    ("ecosystem_version", "DELETE FROM ecosystem_version"),
    (
        "issuer",
        "UPDATE issuer SET certificate ="
        " set_byte(certificate, length(certificate) - 3, get_byte(certificate, length(certificate) - 3) # 1)",
    ),
    ("issuer", "UPDATE issuer SET ecosystem_id = ecosystem_id + 1"),
    ("issuer", "UPDATE issuer SET created_at = created_at + interval '1 s'"),
    ("issuer", "UPDATE issuer SET name = name || 'x'"),
    ("issuer", "DELETE FROM issuer"),
)


JOURNAL: Final[dict[str, Callable[[Path, random.Random], str]]] = {
    "edit": flip_bits,
    "overwrite": overwrite,
    "remove octets": remove_octets,
    "add octets": add_octets,
    "truncate": cut_off,
    "remove a file": remove_file,
    "exchange files": exchange_files,
    "remove a block": remove_block,
    "repeat a block": repeat_block,
    "reorder blocks": swap_blocks,
    "truncate with its head": forget_the_end,
    "rewrite": rewrite_history,
}
TABLES: Final[dict[str, Change]] = {
    "edit an event": edit_event,
    "remove an event": remove_event,
    "reorder events": exchange_events,
    "add an event": add_event,
    "truncate the trail": cut_off_events,
    "remove a link": remove_link,
    "edit a link": edit_link,
    "rewrite the trail": rewrite_trail,
    "edit a certificate": edit_certificate,
    "edit an intent": edit_intent,
    "remove a row": remove_row,
    "change a revocation": change_revocation,
    "unspend a code": unspend_code,
    "add an unresolved intent": change_unresolved,
    "change an ecosystem": change_ecosystem,
}


async def tamper_once(records: Records, choose: random.Random) -> tuple[str, str, Findings]:
    """One change on a copy: its kind, what it was, and what the auditor says."""
    while True:
        try:
            if choose.random() < 0.5:
                kind = choose.choice(list(JOURNAL))
                with tempfile.TemporaryDirectory(prefix="estd-tamper-") as temporary:
                    copy = Path(temporary) / "journal"
                    shutil.copytree(records.journals, copy)
                    before = _digest(copy)
                    what = JOURNAL[kind](copy, choose)
                    if _digest(copy) == before:
                        raise NothingToDo
                    async with records.connection.transaction():
                        return f"journal: {kind}", what, await records.audit(copy)
            kind = choose.choice(list(TABLES))
            transaction = records.connection.transaction()
            await transaction.start()
            try:
                await records.connection.execute(_DISARM)
                what = await TABLES[kind](records.connection, choose)
                return f"tables: {kind}", what, await records.audit()
            finally:
                await transaction.rollback()
        except (NothingToDo, asyncpg.IntegrityConstraintViolationError):
            continue  # nothing was changed, or the table does not take it


async def make_records(stage: Stage, say: Callable[[str], None]) -> None:
    """Certificates and refusals, until there is enough to tamper with; then the server is stopped in order."""
    stage.start()
    devices = stage.devices(REQUESTS, 1)
    for number in range(ROUNDS):
        for device in devices[number::ROUNDS]:
            connection = fleet.Connection(stage.address, stage.trust, device)
            status, _ = connection.request("POST", stage.path(), device.bodies[0])
            assert status == 200, status
            connection.close()
        for device in devices[number:REFUSALS:ROUNDS]:
            connection = fleet.Connection(stage.address, stage.trust, device)
            status, _ = connection.request("POST", stage.path(), b"AAAA")
            assert status == 400, status
            connection.close()
    bootstrap = stage.place.bootstrap(LABELS[0])
    with bootstrap.codes.open(encoding="utf-8", newline="") as file:
        codes = [(row["device"], row["code"]) for row in csv.DictReader(file)][:CODES]
    for name, code in codes:
        credential = base64.b64encode(f"{name}:{code}".encode())
        body = fleet.make_body(x509.Name([]), ec.generate_private_key(ec.SECP256R1()))
        connection = fleet.Connection(stage.address, stage.trust, None)
        status, _ = connection.request("POST", stage.path(), body, b"Authorization: Basic " + credential + b"\r\n")
        assert status == 200, status
        connection.close()
    for name, _ in codes[:REVOCATIONS]:
        place = ["--dir", stage.place.directory, "--ecosystem", LABELS[0]]
        revoke = [ESTD, "cert", "revoke", "--device", name, "--reason", "keyCompromise", "--yes", *place]
        subprocess.run(revoke, check=True, capture_output=True)
    stage.stop()
    say(f"{REQUESTS + CODES} certificates, {REFUSALS} refusals and {REVOCATIONS} revocations are on record")


async def tamper(stage: Stage, n: int, seed: int, report: Report) -> None:
    """All changes of one run."""
    await make_records(stage, report.say)
    choose = random.Random(seed)
    missed: list[str] = []
    unclean: list[str] = []
    done, invariants = Counter[str](), Counter[str]()
    private = PrivatePostgres(stage.place.data / "postgres")
    socket = (await asyncio.to_thread(private.start)).partition("?host=")[2]
    try:
        connection = await asyncpg.connect(url_of(socket, role=SUPERUSER))
        records = Records(stage.journals, connection)
        started = time.monotonic()
        for number in range(n + 1):
            if number % _CLEAN_EVERY == 0 or number == n:
                async with connection.transaction():
                    found = await records.audit()
                unclean += [f"{one.where} {one.what}" for one in found.breaches]
                report.say(f"{number} changes, {len(missed)} not found")
                if number == n:
                    break
            kind, what, found = await tamper_once(records, choose)
            done[kind] += 1
            invariants.update({one.invariant.value for one in found.breaches})
            if found.clean:
                missed.append(f"{kind}: {what}")
        report.figures["seconds"] = round(time.monotonic() - started, 1)
        await connection.close()
    finally:
        await asyncio.to_thread(private.stop)
    report.figures["changes"] = dict(sorted(done.items()))
    report.figures["invariants named"] = dict(sorted(invariants.items()))
    report.claim(f"each of {n} changes is found", missed)
    report.claim("what was not touched is clean", unclean)


def act(report: Report, options: argparse.Namespace) -> None:
    """One run."""
    report.say(f"seed {options.seed}")
    with Stage(workers=1, signers=2) as stage:
        stage.keep = options.keep
        asyncio.run(tamper(stage, options.n, options.seed, report))
        stage.keep |= not report.holds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument("--n", type=int, default=200, metavar="N", help="changes, one at a time (200)")
    options = parser.parse_args(arguments)
    return perform("tamper", options, lambda report: act(report, options))


# --- private -------------------------------------------------------------------------------------------------------

_CLEAN_EVERY: Final = 100
_DISARM: Final = """
SET LOCAL session_replication_role = replica;
ALTER TABLE event ALTER COLUMN event_id DROP IDENTITY;
ALTER TABLE audit_link ALTER COLUMN link_id DROP IDENTITY;
"""
_TELLING: Final = (Kind.ENTRIES,)


def _files(copy: Path) -> list[Path]:
    return sorted(path for path in copy.iterdir() if path.suffix in (".log", ".head"))


def _pick_file(copy: Path, choose: random.Random) -> tuple[Path, bytearray]:
    path = choose.choice(_files(copy))
    return path, bytearray(path.read_bytes())


def _pick_blocks(copy: Path, choose: random.Random) -> tuple[Path, list[Block]]:
    path = choose.choice([path for path in _files(copy) if path.suffix == ".log"])
    return path, list(read_chain(path.read_bytes(), None, None))


def _octets(path: Path, block: Block) -> bytes:
    return path.read_bytes()[block.offset : block.end]


def _write_anew(path: Path, blocks: list[Block]) -> None:
    """These blocks as a journal that agrees with itself."""
    sequence, digest, octets = 0, bytes(32), b""
    for block in blocks:
        sequence += 1
        written, digest = write_block(block.kind, sequence, sequence - 1, block.time, digest, block.body)
        octets += written
    path.write_bytes(octets)
    head_path = path.with_name(path.name.rsplit("-", 1)[0] + ".head")
    head = read_head(head_path.read_bytes())
    assert head is not None
    head_path.write_bytes(write_head(Head(head.journal, sequence, digest)) * 2)


def _digest(directory: Path) -> bytes:
    parts = [path.name.encode() + hashlib.sha256(path.read_bytes()).digest() for path in _files(directory)]
    return hashlib.sha256(b"".join(parts)).digest()


async def _pick_serial(connection: asyncpg.Connection, choose: random.Random) -> bytes:
    return bytes(
        choose.choice([row[0] for row in await connection.fetch("SELECT serial FROM certificate ORDER BY serial")])
    )


async def _edit(
    connection: asyncpg.Connection, choose: random.Random, table: str, serial: bytes, changes: Sequence[str]
) -> str:
    change = choose.choice(changes)
    key = f"SELECT serial, md5(one::text) FROM {table} AS one WHERE serial = $1"
    before = await connection.fetch(key, serial)
    await connection.execute(f"UPDATE {table} SET {change} WHERE serial = $1", serial)
    if await connection.fetch(key, serial) == before:
        raise NothingToDo
    return f"{table} {serial.hex()}: {change}"


async def _pick_id(connection: asyncpg.Connection, choose: random.Random, table: str) -> int:
    column = {"event": "event_id", "audit_link": "link_id"}[table]
    ids: list[Any] = [row[0] for row in await connection.fetch(f"SELECT {column} FROM {table} ORDER BY 1")]
    return int(choose.choice(ids))


if __name__ == "__main__":
    sys.exit(main())
