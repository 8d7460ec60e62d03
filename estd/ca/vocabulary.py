"""The words of an ecosystem document, and the rules that tie them to each other.

Key usages by the names of RFC 5280 §4.2.1.3, key purposes of RFC 5280 §4.2.1.12, the kinds of GeneralName of
RFC 5280 §4.2.1.6, attribute types by any name `estd.names` knows. Object identifiers may always be given in numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from estd.asn1.der import oid_contents, read_oid
from estd.errors import Refused
from estd.names import read_name, write_rdns

KEY_USAGES: Final[tuple[str, ...]] = (
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
)
"""In the order of their bits, from bit 0."""

EXTENDED_KEY_USAGES: Final[tuple[str, ...]] = (
    "serverAuth",
    "clientAuth",
    "codeSigning",
    "emailProtection",
    "timeStamping",
    "OCSPSigning",
    "ipsecIKE",
    "eapOverLAN",
    "cmcRA",
    "documentSigning",
    "anyExtendedKeyUsage",
)
"""Key purposes that a document may call by name; all others are given as object identifiers."""

SAN_KINDS: Final[tuple[str, ...]] = ("dns", "ip", "uri", "email", "dirname", "rid")
"""Kinds of GeneralName, as `estd.names.GeneralName.kind` calls them; ``other:TYPE`` is an otherName of that type."""

NOT_FOR_KEY: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    # Key family → the clause, and the usages it forbids.
    "rsa": ("RFC 3279 §2.3.1", frozenset({"keyAgreement", "encipherOnly", "decipherOnly"})),
    "ec": ("RFC 5480 §3", frozenset({"keyEncipherment", "dataEncipherment"})),
    "ed25519": (
        "RFC 8410 §5",
        frozenset({"keyEncipherment", "dataEncipherment", "keyAgreement", "encipherOnly", "decipherOnly"}),
    ),
    "ml-dsa": (
        "RFC 9881 §5",
        frozenset({"keyEncipherment", "dataEncipherment", "keyAgreement", "encipherOnly", "decipherOnly"}),
    ),
}

USAGES_FOR_PURPOSE: Final[Mapping[str, frozenset[str]]] = {
    # RFC 5280 §4.2.1.12: usages of which at least one must be there for the purpose to make sense.
    "serverAuth": frozenset({"digitalSignature", "keyEncipherment", "keyAgreement"}),
    "clientAuth": frozenset({"digitalSignature", "keyAgreement"}),
    "codeSigning": frozenset({"digitalSignature"}),
    "emailProtection": frozenset({"digitalSignature", "nonRepudiation", "keyEncipherment", "keyAgreement"}),
    "timeStamping": frozenset({"digitalSignature", "nonRepudiation"}),
    "OCSPSigning": frozenset({"digitalSignature", "nonRepudiation"}),
}

OPERATION_NAMES: Final[frozenset[str]] = frozenset(
    {
        # RFC 7030 §3.2.2: a label must not equal the name of an operation. Those of RFC 7030 §4,
        *("cacerts", "simpleenroll", "simplereenroll", "serverkeygen", "fullcmc", "csrattrs"),
        # RFC 8295 §1.1, RFC 9148 §4.1, RFC 8995 §5,
        *("pal", "eecerts", "crls", "symmetrickeys", "firmware", "tamp"),
        *("crts", "sen", "sren", "skg", "skc", "att"),
        *("requestvoucher", "voucher_status", "requestauditlog", "enrollstatus", "rv", "vs", "es"),
        # and those that drafts propose.
        *("renewal-info", "ucacerts", "usimpleenroll", "usimplereenroll", "userverkeygen", "ucrl"),
    }
)
"""Names that a label may never have."""


def find_oid(text: str) -> str | None:
    """The object identifier in numbers, of one given in numbers or by its name in `estd.asn1.oids`; None if neither."""
    try:
        return read_oid(oid_contents(text))
    except Refused:
        return None


def find_attribute_type(text: str) -> str | None:
    """The object identifier of an attribute type given by keyword (RFC 4514 §3), name or numbers; None if unknown."""
    try:
        ((dotted, _),) = read_name(_sample(text)).rdns[0]
    except (Refused, IndexError):
        return None
    return dotted


def name_attribute_type(dotted: str) -> str:
    """The keyword an operator knows that attribute type by, or the numbers."""
    return read_name(_sample(dotted)).text.partition("=")[0]


def _sample(attribute_type: str) -> bytes:
    # A value that every attribute type may have, so that only the type can be at fault.
    return write_rdns([(attribute_type, "AB")])


def key_family(key_type: str) -> str:
    """``rsa``, ``ec``, ``ed25519`` or ``ml-dsa``."""
    for family in NOT_FOR_KEY:
        if key_type.startswith(family):
            return family
    raise KeyError(key_type)
