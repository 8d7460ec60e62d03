"""The rules of one kind of certificate in one ecosystem, as a value.

A `Profile` is plain data; every way to get one goes through `estd.ca.profile_reader`, which finds all contradictions at
once. Names of fields are those of the document (``docs/profiles.md``).

Must not import anything of the floors above, and knows no file, clock or randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from estd.asn1.oids import NAMES, OIDS
from estd.ca.document import write_duration
from estd.ca.pattern import Pattern
from estd.ca.validity import Validity, write_validity
from estd.ca.vocabulary import EXTENDED_KEY_USAGES, name_attribute_type

SUBJECT_SOURCES: Final = ("credential", "request", "inventory", "fixed", "empty")
SAN_SOURCES: Final = ("none", "credential", "request", "inventory")
RENEWALS: Final = ("either", "rekey", "same-key", "never")
CSRATTRS: Final = ("list", "both", "off")
"""RFC 7030's list of attributes, the list with RFC 9908's template beside it, or nothing."""
KEY_ID_METHODS: Final = ("sha256-160", "sha1-160", "sha1-64")
"""RFC 7093 §2 method 1, and methods 1 and 2 of RFC 5280 §4.2.1.2."""
STRING_TYPES: Final = ("utf8", "printable", "ia5")
SERIAL_MIN_BYTES: Final = 9
"""64 random bits do not fit into 8 octets: one bit is the sign (RFC 5280 §4.1.2.2)."""


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """What a profile says of one attribute type in the subject."""

    type: str
    """Dotted object identifier."""
    required: bool
    pattern: Pattern | None
    """Has to match the whole value."""
    value: str | None
    """The only value it may have."""
    string_type: str | None
    """One of `STRING_TYPES`, where the profile insists."""


@dataclass(frozen=True, slots=True)
class SanRule:
    """What a profile says of the subjectAltName."""

    types: tuple[str, ...]
    """Kinds of name that may stand there; none means any, where the source is trusted anyway."""
    required: tuple[str, ...]
    """Kinds of which at least one name must stand there."""
    patterns: tuple[tuple[str, Pattern], ...]
    """Kind → what the whole name has to match."""
    maximum: int
    critical: bool


@dataclass(frozen=True, slots=True)
class ExtraExtension:
    """An extension the profile adds to every certificate as it stands."""

    oid: str
    critical: bool
    value: bytes
    """DER of the extnValue's contents."""


@dataclass(frozen=True, slots=True)
class Profile:
    """See ``docs/profiles.md`` for what each field means to an operator; names are those of the document."""

    name: str
    issuer: str
    label: str | None
    enroll: tuple[str, ...]
    registration_authorities: tuple[str, ...]
    """Whose registration authorities may ask in bulk, on behalf of devices (RFC 7030 §3.7); none unless named."""
    renew: str
    treat_as_reenroll: bool
    keys: tuple[str, ...]
    subject: str
    subject_attributes: tuple[AttributeRule, ...]
    fixed_subject: bytes
    """DER Name of a ``fixed`` subject; the empty name otherwise."""
    san: str
    san_rule: SanRule
    key_usage: tuple[str, ...]
    key_usage_critical: bool
    extended_key_usage: tuple[str, ...]
    """Dotted object identifiers."""
    extended_key_usage_critical: bool
    policies: tuple[str, ...]
    policies_critical: bool
    basic_constraints: bool
    basic_constraints_critical: bool
    subject_key_id: bool
    key_id: str
    aia: bool
    cdp: bool
    extensions: tuple[ExtraExtension, ...]
    validity: Validity
    backdate: timedelta
    align: str
    serial_bytes: int
    max_der_bytes: int | None
    strict: bool
    require_binding: bool
    csrattrs: str
    retry_window: timedelta


PURPOSE_NAMES: Final = {OIDS[name]: name for name in EXTENDED_KEY_USAGES}
"""Key purposes in numbers, and the names a document calls them by."""


def write_profile(profile: Profile) -> dict[str, Any]:
    """The profile as a JSON-ready table that spells out every key; `read_profile` reads it as the same value."""
    rule = profile.san_rule
    content: dict[str, Any] = {
        "issuer": profile.issuer,
        "label": profile.label,
        "enroll": list(profile.enroll),
        "registration_authorities": list(profile.registration_authorities) or None,
        "renew": profile.renew,
        "treat_as_reenroll": profile.treat_as_reenroll,
        "keys": list(profile.keys),
        "subject": profile.subject,
        "subject_attribute": [_write_attribute(attribute) for attribute in profile.subject_attributes],
        "san": profile.san,
        "san_rule": {
            "types": [_write_san_type(kind) for kind in rule.types],
            "required": [_write_san_type(kind) for kind in rule.required],
            "patterns": {_write_san_type(kind): pattern.text for kind, pattern in rule.patterns},
            "max": rule.maximum,
            "critical": rule.critical,
        },
        "key_usage": list(profile.key_usage),
        "key_usage_critical": profile.key_usage_critical,
        "extended_key_usage": [PURPOSE_NAMES.get(oid, oid) for oid in profile.extended_key_usage],
        "extended_key_usage_critical": profile.extended_key_usage_critical,
        "policies": list(profile.policies),
        "policies_critical": profile.policies_critical,
        "basic_constraints": profile.basic_constraints,
        "basic_constraints_critical": profile.basic_constraints_critical,
        "subject_key_id": profile.subject_key_id,
        "key_id": profile.key_id,
        "aia": profile.aia,
        "cdp": profile.cdp,
        "extension": [
            {"oid": extension.oid, "critical": extension.critical, "value": extension.value.hex()}
            for extension in profile.extensions
        ],
        "validity": write_validity(profile.validity),
        "backdate": write_duration(profile.backdate),
        "align": profile.align,
        "serial_bytes": profile.serial_bytes,
        "max_der_bytes": profile.max_der_bytes,
        "strict": profile.strict,
        "require_binding": profile.require_binding,
        "csrattrs": profile.csrattrs,
        "retry_window": write_duration(profile.retry_window),
    }
    return {key: value for key, value in content.items() if value is not None}


# --- private ---------------------------------------------------------------------------------------------------------


def _write_attribute(rule: AttributeRule) -> dict[str, Any]:
    content = {
        "type": name_attribute_type(rule.type),
        "required": rule.required,
        "pattern": None if rule.pattern is None else rule.pattern.text,
        "value": rule.value,
        "string_type": rule.string_type or "any",
    }
    return {key: value for key, value in content.items() if value is not None}


def _write_san_type(text: str) -> str:
    kind, colon, oid = text.partition(":")
    return f"{kind}{colon}{NAMES.get(oid, oid)}"
