"""Rows of certificates that were never issued, to see what a full table costs: the shape and order of real ones.

One real certificate, its intent and its audit event are the model. Serials ascend with time as real ones do, request keys
and hashes are spread evenly as SHA-256 is, all indexes are in place while the rows come, and the audit trail's chain has
a link for each group (its digests are no digests: such a database is for measuring only).
"""

from __future__ import annotations

from collections.abc import Callable

from ours import Database

_CHUNK = 100_000
_SPAN = 2000 * 3600 * 256
"""The time over which they are spread, in the unit of serial numbers: 256ths of a second."""
_GROUP = 20
"""Certificates that share an audit link, as in a group under load."""

# $1 is the first number of the chunk, $2 the last; each number makes one row.
_INTENTS = """
INSERT INTO intent (
    created_at, issuer_id, ecosystem_id, ecosystem_version, node_id, serial, request_key, csr_sha256, spki_sha256,
    tbs_sha256, profile, operation, identity, device, journal
)
SELECT
    seed.at, model.issuer_id, model.ecosystem_id, model.ecosystem_version, model.node_id, seed.serial,
    sha256(seed.serial || '\\x01'), sha256(seed.serial || '\\x02'), sha256(seed.serial || '\\x03'),
    sha256(seed.serial || '\\x04'), model.profile, model.operation, 'x509:' || encode(sha256(seed.serial || '\\x05'), 'hex'),
    'seed-' || seed.number, model.journal
FROM seed CROSS JOIN (SELECT * FROM intent WHERE device NOT LIKE 'seed-%' AND ecosystem_id = {ecosystem} LIMIT 1) AS model
ORDER BY seed.number
"""
_CERTIFICATES = """
INSERT INTO certificate (not_before, not_after, issued_at, issuer_id, ecosystem_id, serial, der)
SELECT
    seed.at, seed.at + interval '90 days', seed.at, model.issuer_id, model.ecosystem_id, seed.serial,
    overlay(
        overlay(model.der PLACING seed.serial FROM 15 FOR 20)
        PLACING sha256(seed.serial || '\\x06') || sha256(seed.serial || '\\x07') FROM length(model.der) - 63 FOR 64
    )
FROM seed CROSS JOIN (SELECT * FROM certificate WHERE ecosystem_id = {ecosystem} ORDER BY issued_at DESC LIMIT 1) AS model
ORDER BY seed.number
"""
_EVENTS = """
INSERT INTO event (
    at, ecosystem_id, issuer_id, kind, outcome, ecosystem, detail, identity, address, request_id, serial, extra
)
SELECT
    seed.at, model.ecosystem_id, model.issuer_id, model.kind, model.outcome, model.ecosystem, model.detail,
    'x509:' || encode(sha256(seed.serial || '\\x05'), 'hex'), model.address,
    encode(substr(sha256(seed.serial || '\\x08'), 1, 8), 'hex'), encode(seed.serial, 'hex'),
    jsonb_build_object('device', 'seed-' || seed.number, 'profile', 'device')
FROM seed CROSS JOIN (SELECT * FROM event WHERE kind = 'est.simpleenroll' AND outcome = 'granted' LIMIT 1) AS model
ORDER BY seed.number
"""
_LINKS = """
INSERT INTO audit_link (event_ids, previous, digest)
SELECT
    array(SELECT newest.event_id - {chunk} + n FROM generate_series(first, first + {group} - 1) AS n),
    array(SELECT newest.link_id + first / {group} - n FROM generate_series(1, 3) AS n),
    sha256(int8send(newest.event_id + first))
FROM
    generate_series(1, {chunk}, {group}) AS first,
    (SELECT (SELECT max(event_id) FROM event) AS event_id, (SELECT max(link_id) FROM audit_link) AS link_id) AS newest
"""


def grow(database: Database, superuser: Database, count: int, tell: Callable[[int], None]) -> None:
    """Add so many rows; at least one certificate has to be there. Leaves the tables vacuumed and analyzed.

    Args:
        database: as the owner of the tables.
        superuser: of the same database, for a checkpoint.
        tell: told how many are there.
    """
    ecosystem = database.fetch("SELECT ecosystem_id FROM certificate ORDER BY issued_at DESC LIMIT 1")
    prefix = database.fetch("SELECT substr(serial, 1, 6) FROM certificate ORDER BY issued_at DESC LIMIT 1")
    newest = int.from_bytes(prefix, "big")
    database.execute("SET synchronous_commit = off; SET enable_seqscan = on; ALTER TABLE event DISABLE TRIGGER chained")
    for first in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - first)
        database.execute(
            "BEGIN; CREATE TEMPORARY TABLE seed ON COMMIT DROP AS SELECT number, "
            f"substr(int8send({newest} - {_SPAN} + number * {_SPAN} / {count}), 3) "
            f"|| substr(sha256(int8send(number)), 1, 14) AS serial, "
            f"now() - interval '1 second' * (({_SPAN} - number * {_SPAN} / {count}) / 256.0) AS at "
            f"FROM generate_series({first}::bigint, {first + rows - 1}) AS number;"
            + ";".join(
                part.format(ecosystem=ecosystem, chunk=rows, group=_GROUP)
                for part in (_INTENTS, _CERTIFICATES, _EVENTS, _LINKS)
            )
            + ";COMMIT"
        )
        tell(first + rows)
    database.execute("ALTER TABLE event ENABLE TRIGGER chained; RESET synchronous_commit")
    for table in ("intent", "certificate", "event", "audit_link"):
        database.execute(f"VACUUM (ANALYZE) {table}")
    superuser.execute("CHECKPOINT")
