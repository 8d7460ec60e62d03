"""An ecosystem as its operator describes it: issuers, makers' anchors, profiles, limits.

`read_document` turns an operator's TOML into an `Ecosystem` or refuses it with every problem it has; `write_document`
turns the value into the canonical document the store keeps (every key spelled out, certificates inlined, no private
key), and `load_document` reads that one back for workers and signers. Both ways in go through the same reader, so what
was accepted once means the same everywhere.

Labels obey RFC 7030 §3.2.2. Must not import anything of the floors above; files are read through the function given.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from estd.asn1.oids import OIDS
from estd.ca.certificates import ReadFile, read_anchor, write_pem
from estd.ca.document import Problems, Table, suggest
from estd.ca.hierarchy import NAME, IssuerSpec, read_issuers, write_issuer
from estd.ca.profile import Profile, write_profile
from estd.ca.profile_reader import read_profile
from estd.ca.validity import outlasts
from estd.ca.vocabulary import OPERATION_NAMES, name_attribute_type

FORMAT: Final = 1
"""The version of the document format this code writes and reads."""

WRAPS: Final = ("auto", "always", "never")
LABEL: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_BYTE_ORDER_MARK: Final = "\ufeff"
"""Some editors begin a file with it."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A maker whose birth certificates may be trusted for enrollment."""

    name: str
    certificates: tuple[bytes, ...]
    """DER of CA certificates; a path may end at any of them."""
    ignore_expiry: bool
    """RFC 8995 §2.6.2: whether an expired birth certificate of this maker still counts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an ecosystem may ask of the server; None leaves it to the server's own setting."""

    requests_per_second: int | None
    requests_per_second_per_source: int | None
    in_flight: int | None


@dataclass(frozen=True, slots=True)
class Ecosystem:
    """One trust domain; names are those of the document (``docs/profiles.md``)."""

    label: str
    name: str
    organization: str | None
    default_profile: str | None
    """The profile that the ecosystem's own label leads to."""
    wrap: str
    """Whether base64 in answers is wrapped: one of `WRAPS`."""
    limits: Limits
    issuers: tuple[IssuerSpec, ...]
    anchors: tuple[Anchor, ...]
    profiles: Mapping[str, Profile]

    def get_issuer(self, name: str) -> IssuerSpec:
        """The issuer of that name, which must exist."""
        return next(issuer for issuer in self.issuers if issuer.name == name)


def read_document(text: str, file_name: str, read_file: ReadFile) -> Ecosystem:
    """An operator's TOML document.

    Args:
        text: the document.
        file_name: what problems call it.
        read_file: the content of a file that the document names, relative to it; raises OSError.

    Raises:
        Invalid: with every problem found.
    """
    problems = Problems(file_name)
    content: dict[str, Any] = {}
    try:
        content = tomllib.loads(text.removeprefix(_BYTE_ORDER_MARK))
    except tomllib.TOMLDecodeError as error:
        problems.add("", f"is not TOML: {error}", "Mend the line named.")
    except RecursionError:
        problems.add("", "has lists or tables nested too deeply to be read", "Nest them as docs/profiles.md shows.")
    problems.check()
    return _read(content, problems, read_file)


def load_document(document: Mapping[str, Any]) -> Ecosystem:
    """A document as `write_document` wrote it.

    Raises:
        Invalid: it was not written by this or an earlier version.
    """
    return _read(document, Problems("stored document"), None)


def load_issuers(document: Mapping[str, Any]) -> tuple[IssuerSpec, ...]:
    """The issuers of a stored document, also of one in which this version cannot read something else.

    Raises:
        Invalid: its issuers it cannot read either.
    """
    problems = Problems("stored document")
    tables = Table({key: document[key] for key in ("issuer",) if key in document}, "", problems).tables(
        "issuer", "name"
    )
    issuers = read_issuers(tables, problems, "", None, None)  # a stored document spells out every subject
    problems.check()
    return issuers


def peek_profiles(document: Mapping[str, Any]) -> set[str]:
    """The names of the profiles in a stored document, also in one of which this version can read nothing else."""
    profiles = document.get("profile")
    return set(profiles) if isinstance(profiles, Mapping) else set()


def peek_labels(document: Mapping[str, Any]) -> set[str]:
    """The labels in a stored document, also in one of which this version can read nothing else."""
    profiles = document.get("profile")
    tables = [document.get("ecosystem"), *(profiles.values() if isinstance(profiles, Mapping) else ())]
    labels = (table.get("label") for table in tables if isinstance(table, Mapping))
    return {label for label in labels if isinstance(label, str)}


def write_document(ecosystem: Ecosystem) -> dict[str, Any]:
    """The canonical document: JSON-ready, complete in itself, the same for equal ecosystems."""
    limits = {
        "requests_per_second": ecosystem.limits.requests_per_second,
        "requests_per_second_per_source": ecosystem.limits.requests_per_second_per_source,
        "in_flight": ecosystem.limits.in_flight,
    }
    head = {
        "label": ecosystem.label,
        "name": ecosystem.name,
        "organization": ecosystem.organization,
        "default_profile": ecosystem.default_profile,
        "wrap": ecosystem.wrap,
        "limits": {key: value for key, value in limits.items() if value is not None},
    }
    return {
        "format": FORMAT,
        "ecosystem": {key: value for key, value in head.items() if value is not None},
        "issuer": [write_issuer(issuer) for issuer in ecosystem.issuers],
        "anchor": [
            {
                "name": anchor.name,
                "certificates": [write_pem(certificate) for certificate in anchor.certificates],
                "ignore_expiry": anchor.ignore_expiry,
            }
            for anchor in ecosystem.anchors
        ],
        "profile": {name: write_profile(profile) for name, profile in sorted(ecosystem.profiles.items())},
    }


# --- private: reading ------------------------------------------------------------------------------------------------


def _read(content: Mapping[str, Any], problems: Problems, read_file: ReadFile | None) -> Ecosystem:
    document = Table(content, "", problems)
    document.number("format", FORMAT, FORMAT, FORMAT)
    head = document.table("ecosystem")
    label = head.text("label")
    if "label" in head and head.content["label"] == "":
        head.complain("label", "is empty", _LABEL_REMEDY)
    name = head.text("name", label)
    if read_file is not None and not name.isprintable():  # what was stored once stays readable
        head.complain("name", f"{name!r} holds a control or invisible character", "Use characters that print.")
    organization = head.optional_text("organization")
    strict = head.flag("strict", False)
    issuers = read_issuers(document.tables("issuer", "name"), problems, label, organization, read_file)
    anchors = _read_anchors(document, read_file)
    profile_table = document.table("profile")
    profiles = {
        key: read_profile(key, inner.content, inner.path, problems, strict)
        for key, inner in profile_table.take_tables()
    }
    default = head.optional_text("default_profile")
    if default is None and len(profiles) == 1:
        (default,) = profiles
    ecosystem = Ecosystem(
        label=label,
        name=name,
        organization=organization,
        default_profile=default,
        wrap=head.text("wrap", "auto", WRAPS),
        limits=_read_limits(head.table("limits")),
        issuers=issuers,
        anchors=anchors,
        profiles=profiles,
    )
    head.finish()
    document.finish()
    _check_labels(ecosystem, problems)
    for profile in profiles.values():
        _check_profile(ecosystem, profile, problems)
    if not profiles:
        problems.add("profile", "is missing", "Add at least one [profile.NAME] with an issuer.")
    problems.check()
    return ecosystem


def _read_anchors(document: Table, read_file: ReadFile | None) -> tuple[Anchor, ...]:
    anchors: list[Anchor] = []
    for inner in document.tables("anchor", "name"):
        name = inner.text("name")
        if name and NAME.fullmatch(name) is None:
            inner.complain("name", f"{name!r} is not a name", "Use small letters, digits, dots and hyphens.")
        if any(anchor.name == name for anchor in anchors):
            inner.complain("name", f"{name!r} is taken", "Give each anchor its own name.")
        texts = inner.texts("certificates")
        if not texts:
            inner.complain("certificates", "is missing", 'Name the maker\'s CA certificates: ["maker-ca.pem"].')
        certificates = read_anchor(inner, "certificates", texts, read_file)
        for certificate in certificates:
            if any(certificate in anchor.certificates for anchor in anchors):
                inner.complain("certificates", "holds a certificate of another anchor", "Keep it in one of them.")
        anchors.append(Anchor(name, certificates, inner.flag("ignore_expiry", False)))
        inner.finish()
    return tuple(anchors)


def _read_limits(table: Table) -> Limits:
    limits = Limits(
        table.optional_number("requests_per_second", 1, 1_000_000),
        table.optional_number("requests_per_second_per_source", 1, 1_000_000),
        table.optional_number("in_flight", 1, 100_000),
    )
    table.finish()
    return limits


# --- private: what has to fit together -------------------------------------------------------------------------------


_LABEL_REMEDY: Final = "Use up to 63 small letters, digits, dots and hyphens."


def _check_labels(ecosystem: Ecosystem, problems: Problems) -> None:
    labels = [("ecosystem.label", ecosystem.label)]
    labels += [
        (f"profile.{profile.name}.label", profile.label)
        for profile in ecosystem.profiles.values()
        if profile.label is not None
    ]
    seen: set[str] = set()
    for path, label in labels:
        if label in OPERATION_NAMES:
            # RFC 7030 §3.2.2: the path segment must not equal an operation's name.
            problems.add(path, f"{label!r} is the name of an EST operation", "Choose another label (RFC 7030 §3.2.2).")
        elif LABEL.fullmatch(label) is None and (label or path != "ecosystem.label"):
            problems.add(path, f"{label!r} is not a label", _LABEL_REMEDY)
        if label in seen:
            problems.add(path, f"{label!r} is taken", "Give each its own label.")
        seen.add(label)
    default = ecosystem.default_profile
    if default is not None and default not in ecosystem.profiles:
        remedy = suggest(default, ecosystem.profiles)
        problems.add("ecosystem.default_profile", f"{default!r} is not a profile", remedy)


def _check_profile(ecosystem: Ecosystem, profile: Profile, problems: Problems) -> None:
    path = f"profile.{profile.name}"
    if NAME.fullmatch(profile.name) is None:
        problems.add(path, "is not a name", "Use small letters, digits, dots and hyphens.")
    _check_enroll(ecosystem, profile, path, problems)
    _check_registration_authorities(ecosystem, profile, path, problems)
    issuer = next((issuer for issuer in ecosystem.issuers if issuer.name == profile.issuer), None)
    if issuer is None:
        if profile.issuer:
            remedy = suggest(profile.issuer, [issuer.name for issuer in ecosystem.issuers])
            problems.add(f"{path}.issuer", f"{profile.issuer!r} is not an issuer", remedy)
        return
    if issuer.offline:
        problems.add(
            f"{path}.issuer", f"{issuer.name!r} is offline and cannot sign", "Name an issuer whose key is here."
        )
    if profile.align != "issuer" and outlasts(profile.validity, issuer.validity):
        problems.add(
            f"{path}.validity",
            f"is longer than that of its issuer {issuer.name!r}",
            'Make it shorter, or set align = "issuer".',
        )


def _check_enroll(ecosystem: Ecosystem, profile: Profile, path: str, problems: Problems) -> None:
    known = [
        "code",
        *(f"anchor:{anchor.name}" for anchor in ecosystem.anchors),
        *(f"issued:{name}" for name in ecosystem.profiles),
    ]
    for way in profile.enroll:
        if way not in known:
            problems.add(f"{path}.enroll", f"{way!r} is no way to enroll here", suggest(way, known))
    if "code" not in profile.enroll:
        return
    # An enrollment code brings a device's name, which becomes the CN, and no subjectAltName.
    if profile.san == "credential" and profile.san_rule.required:
        problems.add(f"{path}.san_rule.required", "asks for names that no code brings", "Take the san from elsewhere.")
    required = {rule.type for rule in profile.subject_attributes if rule.required} - {OIDS["commonName"]}
    if profile.subject == "credential" and required:
        names = ", ".join(sorted(name_attribute_type(oid) for oid in required))
        remedy = 'Remove "code" from enroll, do not require it, or take the subject from elsewhere.'
        problems.add(f"{path}.subject_attribute", f"requires {names}, which no code brings", remedy)


def _check_registration_authorities(ecosystem: Ecosystem, profile: Profile, path: str, problems: Problems) -> None:
    """RFC 7030 §3.7: who may ask for others says so in its certificate (RFC 6402 §2.10), and is named here besides."""
    where = f"{path}.registration_authorities"
    purpose = OIDS["cmcRA"]
    if profile.registration_authorities and purpose in profile.extended_key_usage:
        problems.add(
            where,
            "lets a registration authority make others of its kind",
            'Remove "cmcRA" from extended_key_usage, or leave this out.',
        )
    known = [
        *(f"issued:{name}" for name, other in ecosystem.profiles.items() if purpose in other.extended_key_usage),
        *(f"anchor:{anchor.name}" for anchor in ecosystem.anchors),
    ]
    for way in profile.registration_authorities:
        if way in known:
            continue
        if way.removeprefix("issued:") in ecosystem.profiles:
            remedy = 'Give that profile extended_key_usage = ["clientAuth", "cmcRA"].'
            problems.add(where, f"{way!r} are no certificates of registration authorities", remedy)
        else:
            problems.add(where, f"{way!r} is no source of registration authorities here", suggest(way, known))
