"""What applying a new version of an ecosystem changes, for a person to read before it happens.

Compares canonical documents, so that two spellings of one rule are no change. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd.ca.ecosystem import Ecosystem, write_document
from estd.ca.hierarchy import IssuerSpec

_MADE_OF = (
    "subject",
    "key",
    "validity",
    "parent",
    "path_length",
    "key_id",
    "generation",
    "name_constraints",
    "imported",
)
"""What an issuer's certificate follows from: a change of any of these is a new certificate and a new key."""


def decide_changes(old: Ecosystem | None, new: Ecosystem) -> list[str]:
    """One line for each difference; none when applying would change nothing."""
    before = {} if old is None else _flatten(write_document(old))
    after = _flatten(write_document(new))
    lines = []
    if old is None:
        lines.append(f"new ecosystem {new.label!r}")
        lines += [f"new issuer {issuer.name!r}: {_describe(issuer)}" for issuer in new.issuers]
        lines += [f"new anchor {anchor.name!r}" for anchor in new.anchors]
        lines += [f"new profile {name!r}" for name in new.profiles]
        return lines
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            lines.append(f"{path}: {after[path]} (new)")
        elif path not in after:
            lines.append(f"{path}: {before[path]} (gone)")
        elif before[path] != after[path]:
            lines.append(f"{path}: {before[path]} → {after[path]}")
    lines += _describe_issuers(old, new)
    return lines


def describe_anew(issuers: Sequence[IssuerSpec], new: Ecosystem) -> list[str]:
    """The same over a version of which only the issuers can be read: one line for whatever is in the new one."""
    old = replace(new, issuers=tuple(issuers))
    known, made = {issuer.name for issuer in issuers}, decide_new_issuers(old, new)
    lines = ["the version in force cannot be read here, so all rules are shown as new"]
    lines += [
        f"issuer {one.name!r} stays as it is" for one in new.issuers if one.name in known and one.name not in made
    ]
    lines += _describe_issuers(old, new)
    lines += [f"anchor {anchor.name!r}" for anchor in new.anchors]
    lines += [f"profile {name!r}" for name in new.profiles]
    return lines


def decide_new_issuers(old: Ecosystem | None, new: Ecosystem) -> list[str]:
    """Names of the issuers that need a new certificate and key, parents before those below them."""
    known = {} if old is None else {issuer.name: issuer for issuer in old.issuers}
    names = {issuer.name for issuer in new.issuers if not _is_unchanged(known.get(issuer.name), issuer)}
    return [issuer.name for issuer in sorted(new.issuers, key=lambda one: _depth(new, one)) if issuer.name in names]


# --- private ---------------------------------------------------------------------------------------------------------


def _is_unchanged(old: IssuerSpec | None, new: IssuerSpec) -> bool:
    if old is None:
        return False
    if new.imported is not None and old.imported is not None and new.imported_key is not None and old.offline:
        return False  # its key has come home
    return all(getattr(old, field) == getattr(new, field) for field in _MADE_OF)


def _depth(ecosystem: Ecosystem, issuer: IssuerSpec) -> int:
    return 0 if issuer.parent is None else 1 + _depth(ecosystem, ecosystem.get_issuer(issuer.parent))


def _describe(issuer: IssuerSpec) -> str:
    if issuer.imported is not None:
        return "imported, offline" if issuer.offline else "imported"
    return f"a new {issuer.key} key" + ("" if issuer.parent is None else f", signed by {issuer.parent!r}")


def _describe_issuers(old: Ecosystem, new: Ecosystem) -> list[str]:
    lines = []
    known = {issuer.name for issuer in old.issuers}
    made = decide_new_issuers(old, new)
    for name in made:
        if name in known:
            lines.append(
                f"issuer {name!r} gets a new certificate and key; the old ones stay until what they signed ends"
            )
            lines += [
                f"issuer {below.name!r} keeps its certificate from the previous {name!r}"
                for below in new.issuers
                if below.parent == name and below.name not in made
            ]
        else:
            lines.append(f"new issuer {name!r}: {_describe(new.get_issuer(name))}")
    gone = sorted(known - {issuer.name for issuer in new.issuers})
    lines += [f"issuer {name!r} issues nothing any more; its certificates stay on record" for name in gone]
    return lines


def _flatten(value: Any, path: str = "") -> dict[str, str]:
    """Path → text of every leaf of a document; tables in a list go by their name."""
    if isinstance(value, Mapping):
        lines: dict[str, str] = {}
        for key, inner in value.items():
            lines |= _flatten(inner, f"{path}.{key}" if path else key)
        return lines
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        lines = {}
        for index, item in enumerate(value, 1):
            name = item.get("name") or item.get("type") or item.get("oid") or index
            lines |= _flatten(item, f"{path}[{name}]")
        return lines
    if isinstance(value, list):
        return {path: ", ".join(_write_leaf(item) for item in value)} if value else {}
    return {path: _write_leaf(value)}


def _write_leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if text.startswith("-----BEGIN "):
        certificate = x509.load_pem_x509_certificate(text.encode("ascii"))
        digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
        return f"{certificate.subject.rfc4514_string()} (SHA-256 {digest[:16]}…)"
    return text
