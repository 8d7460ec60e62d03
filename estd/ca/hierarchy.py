"""The issuers of an ecosystem: who signs, under whom, for how long, within which names.

An `IssuerSpec` says what an issuer has to be; the certificate and the key that make it real are in the store. Reading
finds every break in the tree at once: parents that are missing or go in circles, paths longer than an issuer above allows
(RFC 5280 §4.2.1.9), authorities that outlive the one above, imports that nobody in the document signed.

Must not import anything of the floors above, and knows no clock or randomness.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from estd.asn1.spki import KEY_TYPES
from estd.ca.certificates import ImportedIssuer, ReadFile, is_signed_by, read_import, write_pem
from estd.ca.constraints import NameConstraints, write_subtree
from estd.ca.document import INFINITE, Problems, Table, suggest
from estd.ca.profile import KEY_ID_METHODS
from estd.ca.validity import Validity, outlasts, read_validity_key, write_validity
from estd.errors import Refused
from estd.keys.software import SoftwareKey
from estd.names import EMPTY_NAME, read_name, write_name, write_rdns

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What issuers, anchors and profiles may be called."""


@dataclass(frozen=True, slots=True)
class IssuerSpec:
    """One issuer; names are those of the document (``docs/profiles.md``)."""

    name: str
    subject: bytes
    """DER Name."""
    key: str
    """Its key type."""
    validity: Validity
    parent: str | None
    """None for a root."""
    path_length: int | None
    """None for no limit."""
    key_id: str
    generation: int
    """Counting up makes a new key and certificate for an otherwise unchanged issuer."""
    offline: bool
    """Its key is not here: it signs nothing, and stands in the document for the chain."""
    crl_url: str | None
    ocsp_url: str | None
    ca_issuers_url: str | None
    name_constraints: NameConstraints | None
    imported: ImportedIssuer | None
    imported_key: SoftwareKey | None = field(default=None, repr=False, compare=False)
    """The private key of an import while it is being applied; no document ever holds it."""


def read_issuers(
    tables: Sequence[Table],
    problems: Problems,
    label: str,
    organization: str | None,
    read_file: ReadFile | None,
) -> tuple[IssuerSpec, ...]:
    """The ``[[issuer]]`` tables. Always returns values; whether they may be used is for `problems` to say."""
    parents = [inner.peek("parent") for inner in tables]
    names = [inner.peek("name") for inner in tables]
    issuers = []
    for inner in tables:
        depth = _count_below(inner.peek("name"), names, parents)
        issuers.append(_read_issuer(inner, depth, label, organization, read_file))
    by_name: dict[str, IssuerSpec] = {}
    for issuer, inner in zip(issuers, tables, strict=True):
        if issuer.name in by_name:
            inner.complain("name", f"{issuer.name!r} is taken", "Give each issuer its own name.")
        if any(issuer.subject == other.subject for other in by_name.values()):
            # RFC 5280 §4.1.2.4 names the issuer by subject alone; two of one name cannot be told apart.
            inner.complain("subject", "is that of another issuer", "Give each issuer its own subject.")
        by_name.setdefault(issuer.name, issuer)
    for issuer, inner in zip(issuers, tables, strict=True):
        _check_place(issuer, by_name, inner)
    if not issuers:
        problems.add("issuer", "is missing", "Add at least one [[issuer]] with a name.")
    return tuple(issuers)


def write_issuer(issuer: IssuerSpec) -> dict[str, Any]:
    """The issuer as a JSON-ready table that spells out every key; a private key is not in it."""
    content: dict[str, Any] = {
        "name": issuer.name,
        "parent": issuer.parent,
        "offline": issuer.offline,
        "crl_url": issuer.crl_url,
        "ocsp_url": issuer.ocsp_url,
        "ca_issuers_url": issuer.ca_issuers_url,
    }
    if issuer.imported is not None:
        content["import"] = {"certificate": write_pem(issuer.imported.certificate)}
    else:
        constraints = issuer.name_constraints
        content |= {
            "subject": read_name(issuer.subject).text,
            "key": issuer.key,
            "validity": write_validity(issuer.validity),
            "path_length": "any" if issuer.path_length is None else issuer.path_length,
            "key_id": issuer.key_id,
            "generation": issuer.generation,
            "name_constraints": None
            if constraints is None
            else {"permitted": list(constraints.permitted), "excluded": list(constraints.excluded)},
        }
    return {key: value for key, value in content.items() if value is not None}


# --- private ---------------------------------------------------------------------------------------------------------

_IN_THE_CERTIFICATE: Final = ("subject", "key", "validity", "path_length", "key_id", "generation", "name_constraints")
_PATH_LENGTH_MAX: Final = 10


def _read_issuer(
    table: Table, levels_below: int, label: str, organization: str | None, read_file: ReadFile | None
) -> IssuerSpec:
    name = table.text("name")
    if name and NAME.fullmatch(name) is None:
        table.complain("name", f"{name!r} is not a name", "Use small letters, digits, dots and hyphens.")
    parent = table.optional_text("parent")
    if "import" in table:
        return _read_imported(table, name, parent, read_file)
    constraints = _read_constraints(table)
    spec = IssuerSpec(
        name=name,
        subject=_read_subject(table, name, label, organization),
        key=table.text("key", "ec-p256", KEY_TYPES),
        validity=read_validity_key(table, "20y" if parent is None else "10y"),
        parent=parent,
        path_length=_read_path_length(table, None if parent is None else levels_below),
        key_id=table.text("key_id", "sha256-160", KEY_ID_METHODS),
        generation=table.number("generation", 1, 1, 1_000_000),
        offline=table.flag("offline", False),
        crl_url=_read_url(table, "crl_url"),
        ocsp_url=_read_url(table, "ocsp_url"),
        ca_issuers_url=_read_url(table, "ca_issuers_url"),
        name_constraints=constraints,
        imported=None,
    )
    if spec.offline:
        table.complain(
            "offline", "is for issuers that exist already", "Add import = { certificate = … }, or remove it."
        )
    table.finish()
    return spec


def _read_imported(table: Table, name: str, parent: str | None, read_file: ReadFile | None) -> IssuerSpec:
    for key in _IN_THE_CERTIFICATE:
        if key in table:
            table.ignore(key)
            table.complain(key, "is fixed by the imported certificate", "Remove it.")
    inner = table.table("import")
    # One that cannot be read is complained of as such, and is no reason to find fault with whoever relies on it.
    has_key = "key" in inner
    imported, imported_key = read_import(inner, read_file)
    # A stored document never has the private key and says in so many words whether there is one.
    offline = table.flag("offline", not has_key and read_file is not None)
    if read_file is not None and offline is has_key:
        table.complain("offline", "contradicts import.key", "Keep one of them.")
    spec = IssuerSpec(
        name=name,
        subject=b"" if imported is None else imported.subject,
        key="ec-p256" if imported is None else imported.key_type,
        validity=Validity(None, INFINITE if imported is None else imported.ends),
        parent=parent,
        path_length=None if imported is None else imported.path_length,
        key_id=KEY_ID_METHODS[0],
        generation=1,
        offline=offline,
        crl_url=_read_url(table, "crl_url"),
        ocsp_url=_read_url(table, "ocsp_url"),
        ca_issuers_url=_read_url(table, "ca_issuers_url"),
        name_constraints=None,
        imported=imported,
        imported_key=imported_key,
    )
    table.finish()
    return spec


def _read_subject(table: Table, name: str, label: str, organization: str | None) -> bytes:
    try:
        if "subject" not in table:
            table.ignore("subject")
            pairs = [] if organization is None else [("O", organization)]
            return write_rdns([*pairs, ("CN", f"{label} {name}"[:64])])
        subject = write_name(table.text("subject"))
    except Refused as refusal:
        table.complain("subject", refusal.detail, 'Write it like "CN=Plant Root CA,O=Acme".')
        return EMPTY_NAME
    if subject == EMPTY_NAME:
        # RFC 5280 §4.1.2.6: a CA's subject is never empty.
        table.complain("subject", "is empty", 'Write it like "CN=Plant Root CA,O=Acme".')
    return subject


def _read_path_length(table: Table, default: int | None) -> int | None:
    if "path_length" not in table:
        table.ignore("path_length")
        return default
    if table.peek("path_length") == "any":
        table.ignore("path_length")
        return None
    return table.optional_number("path_length", 0, _PATH_LENGTH_MAX)


def _read_url(table: Table, key: str) -> str | None:
    url = table.optional_text(key)
    if url is not None and _URL.fullmatch(url) is None:
        # RFC 5280 §8 warns of https here: checking that server's certificate may need this very URL.
        table.complain(key, f"{url!r} is not an http URL", "Write it like http://pki.example.com/devices.crl.")
        return None
    return url


_URL: Final = re.compile(r"http://[!-~]{1,500}")


def _read_constraints(table: Table) -> NameConstraints | None:
    if "name_constraints" not in table:
        table.ignore("name_constraints")
        return None
    inner = table.table("name_constraints")
    constraints = NameConstraints(inner.texts("permitted"), inner.texts("excluded"))
    inner.finish()
    for key, texts in (("permitted", constraints.permitted), ("excluded", constraints.excluded)):
        for text in texts:
            try:
                write_subtree(text)
            except Refused as refusal:
                remedy = "Write dns:example.com, uri:.example.com, email:example.com, ip:10.0.0.0/8 or dirname:O=Acme."
                inner.complain(key, refusal.detail, remedy)
    if constraints == NameConstraints((), ()):
        table.complain("name_constraints", "names no subtree", "Add permitted or excluded, or remove it.")
    return constraints


def _count_below(name: str, names: Sequence[str], parents: Sequence[str]) -> int:
    """How many levels of issuers stand below that one, from 0; circles are somebody else's problem."""
    levels, layer = 0, {name}
    while levels < len(names):
        layer = {child for child, parent in zip(names, parents, strict=True) if parent and parent in layer}
        if not layer:
            break
        levels += 1
    return levels


def _check_place(issuer: IssuerSpec, by_name: Mapping[str, IssuerSpec], table: Table) -> None:
    if issuer.parent is None:
        if issuer.imported is not None and not issuer.imported.self_signed:
            remedy = "Import the issuer above it too (its certificate is enough) and name it as parent."
            table.complain("parent", "is missing, and the imported certificate is not self-signed", remedy)
        return
    parent = by_name.get(issuer.parent)
    if parent is None:
        table.complain("parent", f"{issuer.parent!r} is not an issuer", suggest(issuer.parent, by_name))
        return
    seen = {issuer.name}
    above: IssuerSpec | None = parent
    while above is not None:
        if above.name in seen:
            table.complain("parent", "leads in a circle", "Let one of these issuers be a root, without a parent.")
            return
        seen.add(above.name)
        above = by_name.get(above.parent) if above.parent is not None else None
    if issuer.imported is not None:
        if parent.imported is None:
            table.complain("parent", f"{parent.name!r} is made here and cannot have signed an import", "Import it too.")
        elif not is_signed_by(issuer.imported.certificate, parent.imported.certificate):
            table.complain("parent", f"{parent.name!r} did not sign the imported certificate", "Name its real issuer.")
    elif parent.offline:
        table.complain(
            "parent",
            f"{parent.name!r} is offline and cannot sign",
            "Have that issuer sign a certificate elsewhere and import it here, or import the key of its issuer.",
        )
    if parent.path_length is not None:
        _check_path_length(issuer, parent, parent.path_length, table)
    if issuer.imported is None and outlasts(issuer.validity, parent.validity):
        table.complain("validity", f"is longer than that of {parent.name!r}", "An issuer must not outlive its parent.")


def _check_path_length(issuer: IssuerSpec, parent: IssuerSpec, allowed: int, table: Table) -> None:
    # RFC 5280 §4.2.1.9: pathLenConstraint counts the CA certificates that may follow.
    if allowed == 0:
        table.complain(
            "parent", f"{parent.name!r} has path_length 0: it signs no issuers", "Raise it, or move this one."
        )
    elif issuer.imported is None and (issuer.path_length is None or issuer.path_length >= allowed):
        table.complain("path_length", f"must be less than {allowed}, that of {parent.name!r}", "Lower it.")
