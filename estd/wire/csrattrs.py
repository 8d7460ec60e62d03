"""CSR attributes (RFC 7030 §4.5.2, RFC 8951 §3.2, RFC 9908): what a server wants to find in a request.

Writes both forms RFC 9908 knows: the list of identifiers and attributes that every client reads, and the template that
newer clients read instead (RFC 9908 §4). All extensions go into one extensionRequest attribute with one value
(RFC 9908 §3.2), key types become attributes with their curve or size as value. Reading is for our own client: it takes
the template where there is one, and ignores what it does not know (RFC 7030 §4.5.2).

A template cannot ask for an attribute without giving its value. Where challengePassword or one of its kind is wanted
(RFC 7030 §3.5, RFC 7894), there is only the list: a client that reads nothing but the template would leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.asn1.spki import ALGORITHMS, KEY_TYPES, RSA, key_type
from estd.errors import Code, Refused
from estd.names import write_attribute

SIGNATURE_ALGORITHMS = MappingProxyType(
    {
        "rsa-2048": OIDS["sha256WithRSAEncryption"],
        "rsa-3072": OIDS["sha256WithRSAEncryption"],
        "rsa-4096": OIDS["sha256WithRSAEncryption"],
        "ec-p256": OIDS["ecdsaWithSHA256"],
        "ec-p384": OIDS["ecdsaWithSHA384"],
        "ec-p521": OIDS["ecdsaWithSHA512"],
        "ed25519": OIDS["ed25519"],
        "ml-dsa-44": OIDS["mlDsa44"],
        "ml-dsa-65": OIDS["mlDsa65"],
        "ml-dsa-87": OIDS["mlDsa87"],
    }
)
"""The usual algorithm for a request's signature by each type of key, dotted."""


@dataclass(frozen=True, slots=True)
class WantedExtension:
    """An extension the request shall carry; without a value, the client fills it in."""

    oid: str
    """Dotted."""
    critical: bool = False
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request shall contain. Everything is optional; nothing at all means: as the client likes."""

    key_types: tuple[str, ...] = ()
    """Out of `KEY_TYPES`, the preferred one first; a template names only that one."""
    extensions: tuple[WantedExtension, ...] = ()
    attributes: tuple[str, ...] = ()
    """Dotted: attributes of the request (challengePassword …) and attribute types of its subject (serialNumber …)."""
    signature_algorithms: tuple[str, ...] = ()
    """Dotted."""
    subject: tuple[tuple[str, str | None], ...] | None = None
    """For the template: RDNs outermost first, (dotted type, text or None for the client to fill in)."""
    use_template: bool = False
    """Write the template beside the list, unless a challenge is wanted; read: it came from a template."""


def write_csrattrs(wanted: Wanted) -> bytes:
    """CsrAttrs. The empty SEQUENCE when nothing is wanted, which RFC 7030 §4.5.2 makes equal to no answer."""
    challenges = [kind for kind in wanted.attributes if kind in _CHALLENGES]
    others = [kind for kind in wanted.attributes if kind not in _CHALLENGES]
    return der.sequence(
        *map(der.oid, challenges),
        *_write_key_types(wanted.key_types),
        *map(der.oid, others),
        *([_write_extensions(wanted.extensions)] if wanted.extensions else []),
        *map(der.oid, dict.fromkeys(wanted.signature_algorithms)),
        *([_attribute(_TEMPLATE, _write_template(wanted))] if wanted.use_template and not challenges else []),
    )


def read_csrattrs(data: bytes) -> Wanted:
    """What another server wants."""
    start, stop = der.read_whole(data, der.SEQUENCE)
    bare: list[str] = []
    attributes: dict[str, list[bytes]] = {}
    for tag, at, inner, after in der.read_members(data, start, stop):
        der.check_der(data, at, after)
        if tag == der.OID:
            bare.append(der.read_oid(data[inner:after]))
        else:
            kind, values = _read_attribute(data, at, after)
            attributes.setdefault(kind, []).extend(values)
    template = attributes.get(_TEMPLATE)
    if template:
        return _read_template(template[0])
    return Wanted(
        key_types=tuple(dict.fromkeys(_read_key_types(bare, attributes))),
        extensions=_read_extensions(attributes.get(_EXTENSION_REQUEST, ())),
        attributes=tuple(kind for kind in bare if kind not in _KEYS and kind not in _SIGNATURES),
        signature_algorithms=tuple(kind for kind in bare if kind in _SIGNATURES),
    )


# --- private: writing ------------------------------------------------------------------------------------------------

_EXTENSION_REQUEST = OIDS["extensionRequest"]
_TEMPLATE = OIDS["certificationRequestInfoTemplate"]
_EXTENSION_TEMPLATE = OIDS["extensionReqTemplate"]
_CHALLENGES = frozenset(
    OIDS[name] for name in ("challengePassword", "otpChallenge", "revocationChallenge", "estIdentityLinking")
)
_CURVES = {"ec-p256": "secp256r1", "ec-p384": "secp384r1", "ec-p521": "secp521r1"}
_SIGNATURES = frozenset(SIGNATURE_ALGORITHMS.values())
_BARE_KEYS = {OIDS["ed25519"]: "ed25519"} | {OIDS[f"mlDsa{level}"]: f"ml-dsa-{level}" for level in (44, 65, 87)}
_KEYS = frozenset((OIDS["ecPublicKey"], OIDS["rsaEncryption"]))


def _attribute(kind: str, *values: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of(values))


def _write_key_types(key_types: Iterable[str]) -> list[bytes]:
    """One attribute for each algorithm with all its curves or sizes; a bare identifier for one without parameters."""
    curves = [der.oid(_CURVES[kind]) for kind in key_types if kind in _CURVES]
    sizes = [der.integer(_rsa_bits(kind)) for kind in key_types if kind.startswith("rsa-")]
    return [
        *([_attribute("ecPublicKey", *curves)] if curves else []),
        *([_attribute("rsaEncryption", *sizes)] if sizes else []),
        *(der.oid(dotted) for dotted, kind in _BARE_KEYS.items() if kind in key_types),
    ]


def _write_extensions(extensions: Iterable[WantedExtension]) -> bytes:
    """RFC 9908 §3.2. An empty extnValue leaves the value to the client."""
    return _attribute(
        _EXTENSION_REQUEST,
        der.sequence(*(_write_extension(one, der.octet_string(one.value or b"")) for one in extensions)),
    )


def _write_extension(extension: WantedExtension, value: bytes) -> bytes:
    return der.sequence(der.oid(extension.oid), der.boolean(True) if extension.critical else b"", value)


def _write_template(wanted: Wanted) -> bytes:
    """CertificationRequestInfoTemplate, RFC 9908 §3.4: a value that is absent is the client's to fill in."""
    attributes = []
    if any(one.value is None for one in wanted.extensions):
        templates = (
            _write_extension(one, b"" if one.value is None else der.octet_string(one.value))
            for one in wanted.extensions
        )
        attributes.append(_attribute(_EXTENSION_TEMPLATE, der.sequence(*templates)))
    elif wanted.extensions:
        attributes.append(_write_extensions(wanted.extensions))
    return der.sequence(
        der.integer(0),
        b"" if wanted.subject is None else der.sequence(*(_write_rdn(*rdn) for rdn in wanted.subject)),
        der.implicit(0, _write_spki_template(wanted.key_types[0])) if wanted.key_types else b"",
        der.set_of(attributes, 0xA1),
    )


def _write_rdn(kind: str, value: str | None) -> bytes:
    return der.tlv(der.SET, der.sequence(der.oid(kind)) if value is None else write_attribute(kind, value))


def _write_spki_template(kind: str) -> bytes:
    """RFC 9908 §3.4: a placeholder key only where it must tell the size of an RSA key."""
    if kind in ALGORITHMS:
        return der.sequence(ALGORITHMS[kind])
    placeholder = der.sequence(der.integer(1 << _rsa_bits(kind) - 1 | 1), der.integer(65537))
    return der.sequence(RSA, der.bit_string(placeholder))


def _rsa_bits(kind: str) -> int:
    return int(kind.removeprefix("rsa-"))


# --- private: reading ------------------------------------------------------------------------------------------------


def _malformed(detail: str) -> Refused:
    return Refused(Code.MALFORMED_REQUEST, f"these CSR attributes cannot be read: {detail}", "RFC 9908 §3.2")


def _read_attribute(data: bytes, at: int, end: int) -> tuple[str, list[bytes]]:
    start, stop = der.read_tagged(data, at, end, der.SEQUENCE)
    kind_start, kind_stop = der.read_tagged(data, start, stop, der.OID)
    values_start, values_stop = der.read_tagged(data, kind_stop, stop, der.SET)
    if values_stop != stop:
        raise _malformed("an attribute is more than a type and its values")
    values = [data[one:after] for _, one, _, after in der.read_members(data, values_start, values_stop)]
    return der.read_oid(data[kind_start:kind_stop]), values


def _read_key_types(bare: Iterable[str], attributes: dict[str, list[bytes]]) -> Iterable[str]:
    """An algorithm without curve or size stands for all we have of it; other curves and sizes are not ours."""
    for value in attributes.get(OIDS["ecPublicKey"], ()):
        yield from (kind for kind, curve in _CURVES.items() if value == der.oid(curve))
    for value in attributes.get(OIDS["rsaEncryption"], ()):
        yield from (kind for kind in KEY_TYPES if kind.startswith("rsa-") and value == der.integer(_rsa_bits(kind)))
    for dotted in bare:
        if dotted == OIDS["ecPublicKey"]:
            yield from _CURVES
        elif dotted == OIDS["rsaEncryption"]:
            yield from (kind for kind in KEY_TYPES if kind.startswith("rsa-"))
        elif dotted in _BARE_KEYS:
            yield _BARE_KEYS[dotted]


def _read_extensions(values: Iterable[bytes]) -> tuple[WantedExtension, ...]:
    """Extensions or ExtensionReqTemplate; the bare identifiers that RFC 7030's own example puts here mean the same."""
    extensions: list[WantedExtension] = []
    for value in values:
        tag, start, stop = der.read_tlv(value, 0, len(value))
        if tag == der.OID:
            extensions.append(WantedExtension(der.read_oid(value[start:stop])))
        elif tag == der.SEQUENCE:
            extensions += [
                _read_extension(value, inner, after) for _, _, inner, after in der.read_members(value, start, stop)
            ]
        else:
            raise _malformed("an extension request holds no extensions")
    if len({extension.oid for extension in extensions}) != len(extensions):
        raise _malformed("an extension is wanted twice")
    return tuple(extensions)


def _read_extension(data: bytes, at: int, end: int) -> WantedExtension:
    kind_start, kind_stop = der.read_tagged(data, at, end, der.OID)
    critical = data[kind_stop : kind_stop + 3] == b"\x01\x01\xff"
    value = None
    value_at = kind_stop + 3 * critical
    if value_at < end:
        value_start, value_stop = der.read_tagged(data, value_at, end, der.OCTET_STRING)
        if value_stop != end:
            raise _malformed("something follows the value of an extension")
        value = data[value_start:value_stop] or None
    return WantedExtension(der.read_oid(data[kind_start:kind_stop]), critical, value)


def _read_template(data: bytes) -> Wanted:
    start, stop = der.read_whole(data, der.SEQUENCE)
    members = der.read_members(data, start, stop)
    if not members or data[start : members[0][3]] != der.integer(0):
        raise _malformed("the version of the template is not 0")
    subject = None
    key_types: tuple[str, ...] = ()
    extensions: tuple[WantedExtension, ...] = ()
    for tag, _, inner, after in members[1:]:
        if tag == der.SEQUENCE:
            subject = tuple(_read_rdn(data, *rdn) for rdn in der.read_members(data, inner, after))
        elif tag == 0xA0:
            key_types = _read_spki_template(data, inner, after)
        elif tag == 0xA1:
            for _, at, _, end in der.read_members(data, inner, after):
                kind, values = _read_attribute(data, at, end)
                if kind in (_EXTENSION_REQUEST, _EXTENSION_TEMPLATE):
                    if extensions:
                        raise _malformed("the template asks for extensions twice")
                    extensions = _read_extensions(values)
        else:
            raise _malformed("the template has a field that no template has")
    return Wanted(key_types=key_types, extensions=extensions, subject=subject, use_template=True)


def _read_rdn(data: bytes, tag: int, _at: int, inner: int, after: int) -> tuple[str, str | None]:
    if tag != der.SET:
        raise _malformed("the subject of the template is not a name")
    start, stop = der.read_tagged(data, inner, after, der.SEQUENCE)
    kind_start, kind_stop = der.read_tagged(data, start, stop, der.OID)
    kind = der.read_oid(data[kind_start:kind_stop])
    if kind_stop == stop:
        return kind, None
    value_tag, value_start, value_stop = der.read_tlv(data, kind_stop, stop)
    return kind, der.read_string(value_tag, data[value_start:value_stop])


def _read_spki_template(data: bytes, start: int, stop: int) -> tuple[str, ...]:
    algorithm_stop = der.read_tagged(data, start, stop, der.SEQUENCE)[1]
    algorithm = data[start:algorithm_stop]
    for kind, known in ALGORITHMS.items():
        if algorithm == known:
            return (kind,)
    if algorithm != RSA:
        return ()
    if algorithm_stop < stop:
        return (key_type(der.tlv(der.SEQUENCE, data[start:stop])),)
    return tuple(kind for kind in KEY_TYPES if kind.startswith("rsa-"))
