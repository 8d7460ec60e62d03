"""The ecosystems' own tables, versions and issuers, against the events that say how each came to be.

One event stands for each version that was applied; version and issuers bear its time. Since it names the hashes of document
and certificates as well, an edited document or an issuer that somebody slipped in is told by it. All of them are kept in
memory: a system has few.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from estd.auditor.findings import Findings, Invariant

Connection = asyncpg.Connection


@dataclass(frozen=True, slots=True)
class Issuer:
    """One row of the table of issuers."""

    issuer_id: int
    ecosystem_id: int
    parent_id: int | None
    name: str
    created_at: datetime
    der: bytes
    certificate: x509.Certificate | None
    """None where it cannot be read."""


@dataclass(frozen=True, slots=True)
class _Version:
    applied_at: datetime
    applied_by: str
    digest: str
    label: str


class Ecosystems:
    """All versions and issuers as the tables have them."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.issuers: dict[int, Issuer] = {}
        self._versions: dict[tuple[int, int], _Version] = {}
        self._windows: dict[tuple[int, str], timedelta] = {}
        self._applied: dict[tuple[int, datetime], set[tuple[str, str]] | None] = {}
        """Name and hash of the issuers that were made then; None where an event, of an older version, does not say."""
        """Ecosystem and time → certificates of the issuers that were made then; None where the event does not say."""
        self._heard: set[tuple[int, int]] = set()

    async def read(self, connection: Connection, *, with_signatures: bool) -> None:
        """Learn them, and hold each issuer's certificate against its parent's."""
        for row in await connection.fetch(_ISSUERS):
            certificate = None
            try:
                certificate = x509.load_der_x509_certificate(row["certificate"])
            except ValueError:
                self._complain(f"issuer {row['issuer_id']}", "its certificate cannot be read", Invariant.ON_RECORD)
            self.issuers[row["issuer_id"]] = Issuer(
                issuer_id=row["issuer_id"],
                ecosystem_id=row["ecosystem_id"],
                parent_id=row["parent_id"],
                name=row["name"],
                created_at=row["created_at"],
                der=row["certificate"],
                certificate=certificate,
            )
        if with_signatures:
            for issuer in self.issuers.values():
                self._check_signature(issuer)
        for row in await connection.fetch(_VERSIONS):
            key, document = (row["ecosystem_id"], row["version"]), json.loads(row["document"])
            self._versions[key] = _Version(row["applied_at"], row["applied_by"], write_digest(document), row["label"])
            for name, window in _read_windows(document):
                shortest = self._windows.get((key[0], name), window)
                self._windows[key[0], name] = min(window, shortest)

    def find_retry_window(self, ecosystem_id: int, profile: str) -> timedelta:
        """The shortest time for which any version of a profile repeats a certificate; nothing where that is not known."""
        return self._windows.get((ecosystem_id, profile), timedelta())

    def hear(self, event: Any, extra: Mapping[str, Any]) -> None:
        """Take an event that says that a version was applied."""
        version, ecosystem_id = extra.get("version"), event["ecosystem_id"]
        where = f"ecosystem_version {ecosystem_id}/{version}"
        if not isinstance(version, int) or ecosystem_id is None:
            return
        self._heard.add((ecosystem_id, version))
        issuers = extra.get("issuers")
        place = ecosystem_id, event["at"]
        before = self._applied.get(place, set())  # two versions may be applied in one second
        if before is None or not isinstance(issuers, dict):
            self._applied[place] = None
        else:
            self._applied[place] = before | {(name, str(digest)) for name, digest in issuers.items()}
        found = self._versions.get((ecosystem_id, version))
        if found is None:
            self._complain(where, f"is missing; event {event['event_id']} says that it was applied")
            return
        said = {
            "applied_at": (found.applied_at, event["at"]),
            "applied_by": (found.applied_by, event["identity"]),
            "document": (found.digest, extra.get("document_sha256", found.digest)),
            "its ecosystem's label": (found.label, event["ecosystem"] or found.label),
        }
        for column, (stored, told) in said.items():
            if stored != told:
                self._complain(where, f"{column} is not what event {event['event_id']} says")

    def finish(self) -> None:
        """Look for versions and issuers that no event speaks of; after the whole trail was heard."""
        for ecosystem_id, version in self._versions.keys() - self._heard:
            self._complain(f"ecosystem_version {ecosystem_id}/{version}", "no audit event says that it was applied")
        for issuer in self.issuers.values():
            where, place = f"issuer {issuer.issuer_id}", (issuer.ecosystem_id, issuer.created_at)
            if place not in self._applied:
                self._complain(where, "no audit event of its ecosystem is of the time at which it was made")
                continue
            told = self._applied[place]
            if told is not None and (issuer.name, hashlib.sha256(issuer.der).hexdigest()) not in told:
                self._complain(where, "the event of its time does not name its certificate")
        made = {(one.ecosystem_id, one.created_at, one.name) for one in self.issuers.values()}
        for (ecosystem_id, at), told in self._applied.items():
            for name, _ in sorted(told or ()):
                if (ecosystem_id, at, name) not in made:
                    what = f"is missing; an event of {at:%Y-%m-%d %H:%M:%S}Z says that it was made"
                    self._complain(f"issuer {name!r} of ecosystem {ecosystem_id}", what)

    # --- private -----------------------------------------------------------------------------------------------------

    def _check_signature(self, issuer: Issuer) -> None:
        parent = self.issuers.get(issuer.issuer_id if issuer.parent_id is None else issuer.parent_id)
        if issuer.certificate is None or parent is None or parent.certificate is None:
            return
        try:
            issuer.certificate.verify_directly_issued_by(parent.certificate)
        except InvalidSignature:
            what = "its own certificate is not signed by itself or by its parent"
            self._complain(f"issuer {issuer.issuer_id}", what, Invariant.ON_RECORD)
        except ValueError as error:
            what = f"its own certificate is not one of its parent's ({error})"
            self._complain(f"issuer {issuer.issuer_id}", what, Invariant.ON_RECORD)
        except (UnsupportedAlgorithm, TypeError):
            self._findings.counts["signatures_not_verified"] += 1

    def _complain(self, where: str, what: str, invariant: Invariant = Invariant.UNBROKEN) -> None:
        self._findings.add(invariant, where, what)


def write_digest(document: Any) -> str:
    """The hash of a document, whichever way its members are ordered and its numbers written."""
    text = json.dumps(_plain(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- private -------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """With numbers as PostgreSQL gives them back: 2.0 and 2 are the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return value


def _read_windows(document: Any) -> list[tuple[str, timedelta]]:
    profiles = document.get("profile") if isinstance(document, dict) else None
    if not isinstance(profiles, dict):
        return []
    return [
        (name, timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))))
        for name, profile in profiles.items()
        if isinstance(profile, dict) and isinstance(text := profile.get("retry_window"), str)
    ]


_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_PART: Final = re.compile(r"([0-9]{1,9})(s|min|h|d|w|y)")
_ISSUERS: Final = (
    "SELECT issuer_id, ecosystem_id, parent_id, name, created_at, certificate FROM issuer ORDER BY issuer_id"
)
_VERSIONS: Final = """
SELECT
    ecosystem_version.ecosystem_id, ecosystem_version.version, ecosystem_version.document::text AS document,
    ecosystem_version.applied_at, ecosystem_version.applied_by, ecosystem.label
FROM ecosystem_version JOIN ecosystem USING (ecosystem_id)
"""
