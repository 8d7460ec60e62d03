"""What applying one document comes to, held against what exists, before anything is written.

Over rules that this version cannot read it is applied as well, as long as their issuers can be told from one another: who
stays and who is made anew is decided there as it is anywhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from estd.app.new_issuers import make_issuers
from estd.app.sealed_keys import check_key, check_renewed
from estd.app.submitted import Submitted
from estd.audit import Event
from estd.ca.changes import decide_changes, decide_new_issuers, describe_anew
from estd.ca.ecosystem import Ecosystem, load_document, load_issuers, peek_profiles, write_document
from estd.ca.prospects import find_hindrances
from estd.errors import Invalid, Problem
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import EcosystemRecord, NewIssuer, NewVersion, Store

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


class Plan:
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
                check_renewed(kek, self._old, self._rules, self._current)
            else:
                check_key(kek, [record for record in records if record.label == INTERNAL_LABEL] or records)
        except Invalid as invalid:
            # Of the key-encryption key, which is that of all documents.
            return self._locate(invalid.problems) if new_key else invalid.problems
        if self._is_unread:
            self.changes = describe_anew(() if self._old is None else self._old.issuers, self._rules)
        else:
            self.changes = decide_changes(self._old, self._rules)
        self._issuers, problems = make_issuers(kek, self._old, self._rules, self._current, self._now)
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


def _write_gone(profile: str, certificates: int) -> str:
    are = "1 certificate of it is" if certificates == 1 else f"{certificates} certificates of it are"
    return (
        f"profile {profile!r} is gone, and {are} in use: renewing is refused from now on (not-authorized). "
        "Keep the profile until they have ended, or enroll those devices anew."
    )
