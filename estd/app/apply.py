"""Applying ecosystems: from checked documents to new versions in the store, all of them or none.

Issuers that the document names and the store lacks are made here: a key, a CA certificate signed by its parent, the key
sealed under the key-encryption key. They are stored in the same transaction as the version that first names them, so
there is never an issuer without rules or rules without their issuer. A key is unsealed only to sign a new issuer below it.

Over rules that this version cannot read they are applied as well, as long as their issuers can be told from one another:
who stays and who is made anew is decided there as it is anywhere else.

Before anything is written all documents are held against each other, what exists and the time (`estd.ca.prospects`); what
others write meanwhile the store notices.

All keys of a database are sealed under one key-encryption key, since the signers have one: with another nothing is applied,
unless the operator says that it takes the place of one that was lost or stolen.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from estd.app.submitted import Submitted, submit
from estd.audit import Event
from estd.ca.authority import read_authority
from estd.ca.changes import decide_changes, decide_new_issuers, describe_anew
from estd.ca.ecosystem import Ecosystem, load_document, load_issuers, peek_labels, peek_profiles, write_document
from estd.ca.hierarchy import IssuerSpec
from estd.ca.issuer import RANDOM_BYTES, issue_authority
from estd.ca.prospects import find_hindrances
from estd.errors import Invalid, Problem, Refused, Unavailable
from estd.keys.software import SoftwareKey, generate, is_sealed_under, seal, unseal
from estd.names import write_name
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import Conflict, EcosystemRecord, NewIssuer, NewVersion, Store

_ATTEMPTS: Final = 3
_COUNTED: Final = 20_000
"""Among how many of the newest certificates those of a profile that goes are looked for."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a document did, or would do."""

    label: str
    version: int
    changes: list[str]
    """One line for each difference to the version before, for a person to read."""
    changed: bool
    warnings: tuple[str, ...] = ()
    """What the operator should know besides, one line each."""


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
    """Make these rules the newest version of their ecosystem: see `apply_documents`."""
    options = {"dry_run": dry_run, "internal": internal, "new_key": new_key}
    return (await apply_documents(store, kek, [submit(rules)], applied_by, **options))[0]


async def apply_documents(
    store: Store,
    kek: bytes,
    documents: Sequence[Submitted],
    applied_by: str,
    *,
    dry_run: bool = False,
    internal: bool = False,
    new_key: bool = False,
) -> list[Applied]:
    """Make each of these the newest version of its ecosystem, unless it is that already; all of them or none.

    Args:
        store: where they are recorded, in one transaction.
        kek: the key-encryption key, under which the keys of new issuers are sealed.
        documents: what is to be in force.
        applied_by: who applies them, for the record.
        dry_run: only say what would change; the keys of new issuers are made, and forgotten.
        internal: the rules are those of the server's own ecosystem.
        new_key: the key-encryption key takes the place of another; then every issuer has to become a new one.

    Raises:
        Invalid: with every problem of every document, its own and those with what exists (a label in use elsewhere, a key
            that cannot be unsealed, another key-encryption key, an issuer that has expired). Nothing was applied.
        Unavailable: the store did not answer; either all was applied or nothing, and applying again is safe.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        records = await store.find_ecosystems()
        now = datetime.now(UTC).replace(microsecond=0)
        problems = [problem for document in documents for problem in document.problems]
        problems += _find_label_problems(documents, records, internal=internal)
        plans = []
        for document in documents:
            if document.rules is not None:
                plan = _Plan(document, document.rules, records, now)
                problems += plan.check(kek, records, new_key=new_key)
                plans.append(plan)
        if problems:
            raise Invalid(list(dict.fromkeys(problems)))
        applied = [await plan.describe(store) for plan in plans]
        versions = [plan.write(applied_by) for plan in plans if plan.changes]
        if dry_run or not versions:
            return applied
        try:
            await store.record_versions(versions)
        except Conflict:
            if attempt == _ATTEMPTS:
                raise
            continue  # somebody else applied in the meantime: compare with what is there now
        return applied
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


class _Plan:
    """What one document comes to, held against what exists."""

    def __init__(
        self, document: Submitted, rules: Ecosystem, records: Sequence[EcosystemRecord], now: datetime
    ) -> None:
        self._document = document
        self._rules = rules
        self._now = now
        self._current = next((record for record in records if record.label == rules.label), None)
        self._version = 0 if self._current is None else self._current.version
        self._old: Ecosystem | None = None
        """What is in force; where this version cannot read that, its issuers under the rules that are to come."""
        self._is_unread = False
        self._issuers: list[NewIssuer] = []
        self._warnings: list[str] = []
        self.changes: list[str] = []

    def check(self, kek: bytes, records: Sequence[EcosystemRecord], *, new_key: bool) -> list[Problem]:
        """Why it cannot be applied; the new issuers are made here."""
        try:
            self._read_old()
        except Invalid as invalid:
            return self._locate(invalid.problems)
        try:
            if new_key:
                _check_renewed(kek, self._old, self._rules, self._current)
            else:
                check_key(kek, [record for record in records if record.label == INTERNAL_LABEL] or records)
        except Invalid as invalid:
            # Of the key-encryption key, which is that of all documents.
            return self._locate(invalid.problems) if new_key else invalid.problems
        if self._is_unread:
            self.changes = describe_anew(() if self._old is None else self._old.issuers, self._rules)
        else:
            self.changes = decide_changes(self._old, self._rules)
        self._issuers, problems = _try_issuers(kek, self._old, self._rules, self._current, self._now)
        new = decide_new_issuers(self._old, self._rules)
        known = () if self._current is None else self._current.issuers
        certificates = {issuer.name: issuer.certificate for issuer in known if issuer.name not in new}
        certificates |= {issuer.name: issuer.certificate for issuer in self._issuers}
        hindrances = [
            Problem(self._document.where(one.path), one.what, one.remedy)
            for one in find_hindrances(self._rules, certificates, new, self._now)
        ]
        if self.changes:
            return self._locate(problems) + hindrances
        # These rules are in force already, and were right once: what has become of them is told.
        self._warnings += [str(problem) for problem in hindrances]
        return []

    async def describe(self, store: Store) -> Applied:
        """What applying it does."""
        if not self.changes:
            return Applied(self._rules.label, self._version, [], changed=False, warnings=tuple(self._warnings))
        if self._current is not None:
            gone = sorted(peek_profiles(self._current.document) - self._rules.profiles.keys())
            out = await store.count_certificates(self._current.ecosystem_id, gone, _COUNTED) if gone else {}
            self._warnings += [_write_gone(name, out[name]) for name in gone if name in out]
        return Applied(self._rules.label, self._version + 1, self.changes, changed=True, warnings=tuple(self._warnings))

    def write(self, applied_by: str) -> NewVersion:
        """It, as it is recorded."""
        document = write_document(self._rules)
        event = Event(
            at=self._now,
            kind="ecosystem.apply",
            outcome="granted",
            ecosystem=self._rules.label,
            identity=applied_by,
            # With these the audit trail binds what stands in the tables of versions and issuers.
            extra={
                "version": self._version + 1,
                "changes": self.changes,
                "document_sha256": write_digest(document),
                "issuers": {one.name: hashlib.sha256(one.certificate).hexdigest() for one in self._issuers},
            },
        )
        return NewVersion(self._rules.label, document, self._issuers, self._version, applied_by, event)

    def _read_old(self) -> None:
        if self._current is None:
            return
        try:
            self._old = load_document(self._current.document)
            return
        except Invalid as invalid:
            self._is_unread = True
            why = f"{invalid.problems[0].where}: {invalid.problems[0].what}"
        self._warnings.append(f"version {self._version}, in force so far, cannot be read here ({why})")
        stored = {issuer.name for issuer in self._current.issuers}
        try:
            issuers = load_issuers(self._current.document)
        except Invalid as invalid:
            # Which of them stay cannot be told then, and one that should stay must not be made anew.
            if stored.isdisjoint(spec.name for spec in self._rules.issuers):
                return
            what = f"cannot be read here, and so not which of them stay ({invalid.problems[0]})"
            remedy = "Apply it with the version of estd that wrote the rules in force, or give all issuers other names."
            raise Invalid([Problem("issuer", f"the issuers in force {what}", remedy)]) from None
        self._old = replace(self._rules, issuers=issuers)

    def _locate(self, problems: Iterable[Problem]) -> list[Problem]:
        return [Problem(self._document.where(one.where), one.what, one.remedy) for one in problems]


def _find_label_problems(
    documents: Sequence[Submitted], records: Sequence[EcosystemRecord], *, internal: bool
) -> list[Problem]:
    """Labels that lead elsewhere already, in what exists or in another of these documents."""
    coming = {document.label for document in documents}
    # Label → number of the document (none for what exists), ecosystem and file of each claim.
    taken: dict[str, set[tuple[int, str, str]]] = {}
    for record in records:
        if record.label not in coming:
            for label in {record.label, *peek_labels(record.document)}:
                taken.setdefault(label, set()).add((-1, record.label, ""))
    for number, document in enumerate(documents):
        for label in document.claims.values():
            taken.setdefault(label, set()).add((number, document.label or "", document.file))
    problems = []
    for number, document in enumerate(documents):
        for path, label in document.claims.items():
            where = document.where(path)
            if (label == INTERNAL_LABEL) is not (internal and path == "ecosystem.label"):
                problems.append(Problem(where, f"{label!r} belongs to the server itself", "Choose another label."))
                continue
            for other, ecosystem, file in sorted(taken[label]):
                if other == number:
                    continue
                if ecosystem == document.label:
                    if path == "ecosystem.label":
                        what = f"{label!r} is the ecosystem of {file} too"
                        problems.append(Problem(where, what, "Apply one of them."))
                else:
                    of = f" of {file}" if file else ""
                    what = f"{label!r} leads to the ecosystem {ecosystem!r}{of}"
                    problems.append(Problem(where, what, "Choose another label."))
    return problems


def _write_gone(profile: str, certificates: int) -> str:
    are = "1 certificate of it is" if certificates == 1 else f"{certificates} certificates of it are"
    return (
        f"profile {profile!r} is gone, and {are} in use: renewing is refused from now on (not-authorized). "
        "Keep the profile until they have ended, or enroll those devices anew."
    )


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
    made, problems = _try_issuers(kek, old, rules, current, now)
    if problems:
        raise Invalid(problems)
    return made


def _try_issuers(
    kek: bytes, old: Ecosystem | None, rules: Ecosystem, current: EcosystemRecord | None, now: datetime
) -> tuple[list[NewIssuer], list[Problem]]:
    """The new issuers that could be made, and why others could not."""
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

    new: list[NewIssuer] = []
    problems: list[Problem] = []
    for name in wanted:
        try:
            issuer = get(name)
        except Invalid as invalid:
            problems += invalid.problems
            continue
        # The issuer's own public key is the context: a sealed key moved to another issuer's row does not open.
        sealed = None if issuer.key is None else seal(issuer.key, kek, issuer.key.spki)
        new.append(NewIssuer(name, rules.get_issuer(name).parent, issuer.certificate, sealed))
    return new, list(dict.fromkeys(problems))


def _make_issuer(spec: IssuerSpec, get: Callable[[str], _Made], now: datetime) -> _Made:
    if spec.imported is not None:
        return _Made(spec.imported.certificate, spec.imported_key)
    where, until = f"issuer[{spec.name}]", spec.validity.until
    if until is not None and until <= now:
        remedy = 'Write an end that is to come, such as "until 2050-01-01", or a length, such as "20y".'
        raise Invalid([Problem(f"{where}.validity", f"ends on {until:%Y-%m-%d %H:%M} UTC, which has passed", remedy)])
    parent = None if spec.parent is None else get(spec.parent)
    if parent is not None and parent.key is None:
        raise Invalid(
            [
                Problem(
                    f"issuer {spec.name!r}",
                    f"cannot be signed: the key of {spec.parent!r} is not here",
                    "Sign it where that key is, and import the certificate and key.",
                )
            ]
        )
    key = generate(spec.key)
    randomness = secrets.token_bytes(RANDOM_BYTES)
    try:
        if parent is None:
            return _Made(issue_authority(spec, key, None, None, now, randomness), key)
        authority = read_authority(parent.certificate)
        return _Made(issue_authority(spec, key, authority, parent.key, now, randomness), key)
    except Unavailable as reason:
        what, remedy = f"{spec.parent!r} cannot sign it: {reason.detail}", "Give that one a new certificate first."
        raise Invalid([Problem(f"{where}.parent", what, remedy)]) from None
    except Refused as reason:
        remedy = "Change it, or the issuer above it."
        raise Invalid([Problem(where, f"cannot be made: {reason.detail}", remedy)]) from None
