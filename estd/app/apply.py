"""Applying an ecosystem: from a checked document to one atomic new version in the store.

Issuers that the document names and the store lacks are made here: a key, a CA certificate signed by its parent, the key
sealed under the key-encryption key. They are stored in the same transaction as the version that first names them, so
there is never an issuer without rules or rules without their issuer. A key is unsealed only to sign a new issuer below it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from estd.audit import Event
from estd.ca.authority import read_authority
from estd.ca.changes import decide_changes, decide_new_issuers
from estd.ca.ecosystem import Ecosystem, load_document, write_document
from estd.ca.hierarchy import IssuerSpec
from estd.ca.issuer import RANDOM_BYTES, issue_authority
from estd.errors import Invalid, Problem
from estd.keys.software import SoftwareKey, generate, seal, unseal
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
    store: Store, kek: bytes, rules: Ecosystem, applied_by: str, *, dry_run: bool = False, internal: bool = False
) -> Applied:
    """Make these rules the newest version of their ecosystem, unless they are that already.

    Raises:
        Invalid: the rules do not fit what exists (a label in use elsewhere, a key that cannot be unsealed).
        Unavailable: the store did not answer; applying again is safe.
    """
    if (rules.label == INTERNAL_LABEL) is not internal:
        raise Invalid([Problem(f"label {rules.label!r}", "belongs to the server itself", "Choose another label.")])
    for attempt in range(1, _ATTEMPTS + 1):
        records = await store.find_ecosystems()
        _check_labels(rules, records)
        current = next((record for record in records if record.label == rules.label), None)
        old = None if current is None else load_document(current.document)
        changes = decide_changes(old, rules)
        version = 0 if current is None else current.version
        if not changes:
            return Applied(rules.label, version, [], changed=False)
        if dry_run:
            return Applied(rules.label, version + 1, changes, changed=True)
        now = datetime.now(UTC).replace(microsecond=0)
        event = Event(
            at=now,
            kind="ecosystem.apply",
            outcome="granted",
            ecosystem=rules.label,
            identity=applied_by,
            extra={"version": version + 1, "changes": changes},
        )
        issuers = _make_issuers(kek, old, rules, current, now)
        try:
            record = await store.record_ecosystem(
                rules.label, write_document(rules), issuers, version, applied_by, event
            )
        except Conflict:
            if attempt == _ATTEMPTS:
                raise
            continue  # somebody else applied in the meantime: compare with what is there now
        return Applied(rules.label, record.version, changes, changed=True)
    raise AssertionError("the last attempt returns or raises")


# --- private -------------------------------------------------------------------------------------------------------


def _check_labels(rules: Ecosystem, records: list[EcosystemRecord]) -> None:
    taken: dict[str, str] = {}
    for record in records:
        if record.label != rules.label:
            taken[record.label] = record.label
            for profile in load_document(record.document).profiles.values():
                if profile.label is not None:
                    taken[profile.label] = record.label
    mine = {"ecosystem.label": rules.label}
    mine |= {f"profile.{name}.label": p.label for name, p in rules.profiles.items() if p.label is not None}
    problems = [
        Problem(where, f"{label!r} leads to the ecosystem {taken[label]!r}", "Choose another label.")
        for where, label in mine.items()
        if label in taken
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
