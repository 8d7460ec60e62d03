"""New versions of ecosystems into PostgreSQL, inside one transaction of `estd.store.postgres`.

Whoever applies takes one lock for all ecosystems first. Labels are claimed by ecosystems and by profiles inside
documents, so no unique index knows them; and applying is seldom enough to go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from estd.errors import Broken
from estd.store import rows
from estd.store.contract import Conflict, EcosystemRecord, NewVersion
from estd.store.pool import Connection
from estd.store.queries import sql_of


async def write_versions(connection: Connection, versions: Sequence[NewVersion]) -> list[EcosystemRecord]:
    """Write these versions and answer with the records, in order.

    Raises:
        Conflict, Broken: see `estd.store.contract.Store.record_versions`; the transaction has to be rolled back.
    """
    # At READ COMMITTED each statement after this one sees what others committed before they gave the lock back.
    await connection.fetch(_LOCK_LABELS)
    records = [await _write_version(connection, version) for version in versions]
    contested = await connection.fetch(_FIND_CONTESTED_LABELS, [version.label for version in versions])
    if contested:
        raise Conflict("; ".join(f"the label {row['label']} leads to {row['ecosystem']} too" for row in contested))
    return records


# --- private -------------------------------------------------------------------------------------------------------


async def _write_version(connection: Connection, new: NewVersion) -> EcosystemRecord:
    label, expected_version = new.label, new.expected_version
    ecosystem_id = await connection.fetchval(_LOCK_ECOSYSTEM, label)
    if ecosystem_id is not None:
        (present,) = rows.read_ecosystems(await connection.fetch(_FIND_ECOSYSTEMS, label))
        if present.version == expected_version + 1 and rows.repeats(
            present, new.document, new.new_issuers, new.applied_by
        ):
            return present
        if present.version != expected_version:
            raise Conflict(f"{label} is at version {present.version}, not {expected_version}")
    elif expected_version != 0:
        raise Conflict(f"{label} does not exist")
    else:
        ecosystem_id = await connection.fetchval(_INSERT_ECOSYSTEM, label)
    at = new.event.at
    for issuer in new.new_issuers:
        parent_id = await connection.fetchval(
            _INSERT_ISSUER, ecosystem_id, issuer.name, issuer.parent, issuer.certificate, issuer.sealed_key, at
        )
        if parent_id is None and issuer.parent is not None:
            raise Broken(f"issuer {issuer.name} of {label} names the parent {issuer.parent}, which does not exist")
    columns = [ecosystem_id, expected_version + 1, rows.write_json(new.document), at, new.applied_by]
    await connection.fetch(_INSERT_VERSION, *columns, *rows.write_event(new.event))
    (record,) = rows.read_ecosystems(await connection.fetch(_FIND_ECOSYSTEMS, label))
    return record


_LOCK_LABELS = sql_of("lock_labels")
_FIND_CONTESTED_LABELS = sql_of("find_contested_labels")
_FIND_ECOSYSTEMS = sql_of("find_ecosystems")
_LOCK_ECOSYSTEM = sql_of("lock_ecosystem")
_INSERT_ECOSYSTEM = sql_of("insert_ecosystem")
_INSERT_ISSUER = sql_of("insert_issuer")
_INSERT_VERSION = sql_of("insert_version")
