"""Applying an ecosystem: from a checked document to one atomic new version in the store.

Issuers that the document names and the store lacks are made here: a key, a CA certificate signed by its parent, the key
sealed under the key-encryption key. They are stored in the same transaction as the version that first names them, so
there is never an issuer without rules or rules without their issuer. A key is unsealed only to sign a new issuer below it.

All keys of a database are sealed under one key-encryption key, since the signers have one: with another nothing is applied,
unless the operator says that it takes the place of one that was lost or stolen.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from estd.audit import Event
from estd.ca.authority import read_authority
from estd.ca.changes import decide_changes, decide_new_issuers
from estd.ca.ecosystem import Ecosystem, load_document, peek_labels, write_document
from estd.ca.hierarchy import IssuerSpec
from estd.ca.issuer import RANDOM_BYTES, issue_authority
from estd.errors import Invalid, Problem
from estd.keys.software import SoftwareKey, generate, is_sealed_under, seal, unseal
from estd.names import write_name
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import Conflict, EcosystemRecord, NewIssuer, Store

_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a document did, or would do."""

    label: str
    version: int
    changes: list[str]
    """One line for each difference to the version before, for a person to read."""
    changed: bool


async def apply_document(
    store: Store,
    kek: bytes,
    rules: Ecosystem,
    applied_by: str,
    *,
    dry_run: bool = False,
    internal: bool = False,
    new_key: bool = False,
) -> Applied:
    """Make these rules the newest version of their ecosystem, unless they are that already.

    Args:
        store: where it is recorded.
        kek: the key-encryption key, under which the keys of new issuers are sealed.
        rules: what is to be in force.
        applied_by: who applies them, for the record.
        dry_run: only say what would change.
        internal: the rules are those of the server's own ecosystem.
        new_key: the key-encryption key takes the place of another; then every issuer has to become a new one.

    Raises:
        Invalid: the rules do not fit what exists (a label in use elsewhere, a key that cannot be unsealed, another
            key-encryption key).
        Unavailable: the store did not answer; applying again is safe.
    """
    if (rules.label == INTERNAL_LABEL) is not internal:
        raise Invalid([Problem(f"label {rules.label!r}", "belongs to the server itself", "Choose another label.")])
    for attempt in range(1, _ATTEMPTS + 1):
        records = await store.find_ecosystems()
        _check_labels(rules, records)
        current = next((record for record in records if record.label == rules.label), None)
        old = None if current is None else load_document(current.document)
        if new_key:
            _check_renewed(kek, old, rules, current)
        else:
            check_key(kek, [record for record in records if record.label == INTERNAL_LABEL] or records)
        changes = decide_changes(old, rules)
        version = 0 if current is None else current.version
        if not changes:
            return Applied(rules.label, version, [], changed=False)
        if dry_run:
            return Applied(rules.label, version + 1, changes, changed=True)
        now = datetime.now(UTC).replace(microsecond=0)
        document, issuers = write_document(rules), _make_issuers(kek, old, rules, current, now)
        event = Event(
            at=now,
            kind="ecosystem.apply",
            outcome="granted",
            ecosystem=rules.label,
            identity=applied_by,
            # With these the audit trail binds what stands in the tables of versions and issuers.
            extra={
                "version": version + 1,
                "changes": changes,
                "document_sha256": write_digest(document),
                "issuers": {issuer.name: hashlib.sha256(issuer.certificate).hexdigest() for issuer in issuers},
            },
        )
        try:
            record = await store.record_ecosystem(rules.label, document, issuers, version, applied_by, event)
        except Conflict:
            if attempt == _ATTEMPTS:
                raise
            continue  # somebody else applied in the meantime: compare with what is there now
        return Applied(rules.label, record.version, changes, changed=True)
    raise AssertionError("the last attempt returns or raises")


async def replace_own_issuer(store: Store, kek: bytes, applied_by: str) -> None:
    """Give the server's own ecosystem new issuers, if the keys of the present ones are not sealed under this key.

    Raises:
        Unavailable: the store did not answer; calling again is safe.
    """
    for record in await store.find_ecosystems():
        sealed = _find_keys(record).values()
        if record.label == INTERNAL_LABEL and not any(is_sealed_under(one, kek) for one in sealed):
            rules = load_document(record.document)
            # Another subject: clients that trust the root before must be able to tell the two apart.
            issuers = tuple(
                replace(one, subject=write_name(f"CN=estd server {one.name} {secrets.token_hex(4)}"))
                for one in rules.issuers
            )
            rules = replace(rules, issuers=issuers)
            await apply_document(store, kek, rules, applied_by, internal=True, new_key=True)


def check_key(kek: bytes, records: Iterable[EcosystemRecord], source: str = "") -> None:
    """Whether any key in use in these ecosystems is sealed under this key-encryption key, or there is none at all.

    Args:
        kek: the key-encryption key.
        records: the ecosystems.
        source: where the key comes from, for the message.

    Raises:
        Invalid: all of them are sealed under another one.
    """
    sealed = [one for record in records for one in _find_keys(record).values()]
    if not sealed or any(is_sealed_under(one, kek) for one in sealed):
        return
    what = "is not the one that the issuer keys in this database are sealed under"
    remedy = (
        "Name that one in the settings ([keys]). If it is lost or stolen, docs/operations.md says how another one takes "
        "its place (estd apply --new-key)."
    )
    raise Invalid([Problem(f"the key-encryption key{source and f' ({source})'}", what, remedy)])


def write_digest(document: Mapping[str, Any]) -> str:
    """The hash of a document as an audit event names it: SHA-256 of its JSON, members in order, without spaces.

    A number without fraction is written as an integer, for PostgreSQL does not keep such apart.
    """
    text = json.dumps(_plain(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- private -------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return value


def _check_labels(rules: Ecosystem, records: list[EcosystemRecord]) -> None:
    taken: dict[str, str] = {}
    for record in records:
        if record.label != rules.label:
            taken |= dict.fromkeys({record.label, *peek_labels(record.document)}, record.label)
    mine = {"ecosystem.label": rules.label}
    mine |= {f"profile.{name}.label": p.label for name, p in rules.profiles.items() if p.label is not None}
    problems = [
        Problem(where, f"{label!r} leads to the ecosystem {taken[label]!r}", "Choose another label.")
        for where, label in mine.items()
        if label in taken
    ]
    if problems:
        raise Invalid(problems)


def _find_keys(record: EcosystemRecord) -> dict[str, bytes]:
    """The sealed keys in use, by issuer: the newest of each name."""
    newest = {issuer.name: issuer.sealed_key for issuer in record.issuers}
    return {name: sealed for name, sealed in newest.items() if sealed is not None}


def _check_renewed(kek: bytes, old: Ecosystem | None, rules: Ecosystem, current: EcosystemRecord | None) -> None:
    """Whether no issuer keeps a key that is sealed under another key-encryption key: a signer has one."""
    wanted = decide_new_issuers(old, rules)
    keys = {} if current is None else _find_keys(current)
    kept = {spec.name: keys[spec.name] for spec in rules.issuers if spec.name in keys and spec.name not in wanted}
    problems = [
        Problem(
            f"issuer {name!r}",
            "would keep a key that is sealed under another key-encryption key",
            "Raise its generation, so that it gets a new key; or import it again with its private key.",
        )
        for name, sealed in kept.items()
        if not is_sealed_under(sealed, kek)
    ]
    if problems:
        raise Invalid(problems)


@dataclass(frozen=True, slots=True)
class _Made:
    certificate: bytes
    key: SoftwareKey | None


def _make_issuers(
    kek: bytes, old: Ecosystem | None, rules: Ecosystem, current: EcosystemRecord | None, now: datetime
) -> list[NewIssuer]:
    stored = {} if current is None else {record.name: record for record in current.issuers}
    wanted = decide_new_issuers(old, rules)
    made: dict[str, _Made] = {}

    def get(name: str) -> _Made:
        """The newest certificate and key of that issuer, parents first."""
        if name not in made:
            if name in wanted:
                made[name] = _make_issuer(rules.get_issuer(name), get, now)
            else:
                record = stored[name]
                key = None
                if record.sealed_key is not None:
                    key = unseal(record.sealed_key, kek, read_authority(record.certificate).spki)
                made[name] = _Made(record.certificate, key)
        return made[name]

    new = []
    for name in wanted:
        issuer = get(name)
        # The issuer's own public key is the context: a sealed key moved to another issuer's row does not open.
        sealed = None if issuer.key is None else seal(issuer.key, kek, issuer.key.spki)
        new.append(NewIssuer(name, rules.get_issuer(name).parent, issuer.certificate, sealed))
    return new


def _make_issuer(spec: IssuerSpec, get: Callable[[str], _Made], now: datetime) -> _Made:
    if spec.imported is not None:
        return _Made(spec.imported.certificate, spec.imported_key)
    key = generate(spec.key)
    randomness = secrets.token_bytes(RANDOM_BYTES)
    if spec.parent is None:
        return _Made(issue_authority(spec, key, None, None, now, randomness), key)
    parent = get(spec.parent)
    if parent.key is None:
        raise Invalid(
            [
                Problem(
                    f"issuer {spec.name!r}",
                    f"cannot be signed: the key of {spec.parent!r} is not here",
                    "Sign it where that key is, and import the certificate and key.",
                )
            ]
        )
    authority = read_authority(parent.certificate)
    return _Made(issue_authority(spec, key, authority, parent.key, now, randomness), key)
