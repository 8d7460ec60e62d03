"""How an operator's document says the rules of a profile, and every way in which it can contradict itself.

Each contradiction is told with the rule it breaks: key usages no key of the type may have (RFC 5480 §3, RFC 8410 §5,
RFC 9881 §5), an authority's usage on a leaf (RFC 5280 §4.2.1.3), purposes without a usage that serves them
(RFC 5280 §4.2.1.12), an empty subject without a subjectAltName (RFC 5280 §4.2.1.6). What one profile must agree on with
its issuer and its neighbours is `estd.ca.ecosystem`'s affair.

Must not import anything of the floors above, and knows no file, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.asn1.spki import KEY_TYPES
from estd.ca.document import Problems, Table
from estd.ca.ecosystems import READY
from estd.ca.pattern import Pattern
from estd.ca.profile import (
    CSRATTRS,
    KEY_ID_METHODS,
    PURPOSE_NAMES,
    RENEWALS,
    SAN_SOURCES,
    SERIAL_MIN_BYTES,
    STRING_TYPES,
    SUBJECT_SOURCES,
    AttributeRule,
    ExtraExtension,
    Profile,
    SanRule,
)
from estd.ca.validity import ALIGNMENTS, read_validity_key
from estd.ca.vocabulary import (
    EXTENDED_KEY_USAGES,
    KEY_USAGES,
    NOT_FOR_KEY,
    SAN_KINDS,
    USAGES_FOR_PURPOSE,
    find_attribute_type,
    find_oid,
    key_family,
)
from estd.errors import Code, Refused
from estd.names import EMPTY_NAME, write_attribute


def read_profile(name: str, content: Mapping[str, object], path: str, problems: Problems, strict: bool) -> Profile:
    """One ``[profile.NAME]`` table. Always returns a value; whether it may be used is for `problems` to say."""
    table = Table(_with_base(content, path, problems), path, problems)
    table.optional_text("base")
    subject = table.text("subject", "credential", SUBJECT_SOURCES)
    attributes = _read_attributes(table)
    san = table.text("san", "none", SAN_SOURCES)
    profile = Profile(
        name=name,
        issuer=table.text("issuer"),
        label=table.optional_text("label"),
        enroll=table.texts("enroll", ("code",)),
        registration_authorities=table.texts("registration_authorities"),
        renew=table.text("renew", "either", RENEWALS),
        treat_as_reenroll=table.flag("treat_as_reenroll", False),
        keys=_read_keys(table),
        subject=subject,
        subject_attributes=attributes,
        fixed_subject=_read_fixed_subject(table, subject, attributes),
        san=san,
        san_rule=_read_san_rule(table, san),
        key_usage=_read_key_usage(table),
        key_usage_critical=table.flag("key_usage_critical", True),
        extended_key_usage=_read_oids(table, "extended_key_usage", ("clientAuth",), EXTENDED_KEY_USAGES),
        extended_key_usage_critical=table.flag("extended_key_usage_critical", False),
        policies=_read_oids(table, "policies", (), ()),
        policies_critical=table.flag("policies_critical", False),
        basic_constraints=table.flag("basic_constraints", True),
        basic_constraints_critical=table.flag("basic_constraints_critical", True),
        subject_key_id=table.flag("subject_key_id", True),
        key_id=table.text("key_id", "sha256-160", KEY_ID_METHODS),
        aia=table.flag("aia", True),
        cdp=table.flag("cdp", True),
        extensions=_read_extensions(table),
        validity=read_validity_key(table, "1y"),
        backdate=table.duration("backdate", "1h"),
        align=table.text("align", "clamp", ALIGNMENTS),
        serial_bytes=table.number("serial_bytes", 20, SERIAL_MIN_BYTES, 20),
        max_der_bytes=table.optional_number("max_der_bytes", 200, 65_536),
        strict=table.flag("strict", strict),
        require_binding=table.flag("require_binding", False),
        csrattrs=table.text("csrattrs", "list", CSRATTRS),
        retry_window=table.duration("retry_window", "1h"),
    )
    _check_profile(profile, table)
    table.finish()
    return profile


# --- private: keys one by one ----------------------------------------------------------------------------------------

_SAN_MAX: Final = 20
_DEFAULT_KEYS: Final = ("ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096")
_OWN_EXTENSIONS: Final[Mapping[str, str]] = {
    OIDS["subjectKeyIdentifier"]: "subject_key_id",
    OIDS["keyUsage"]: "key_usage",
    OIDS["subjectAltName"]: "san",
    OIDS["basicConstraints"]: "basic_constraints",
    OIDS["cRLDistributionPoints"]: "the issuer's crl_url",
    OIDS["certificatePolicies"]: "policies",
    OIDS["authorityKeyIdentifier"]: "nothing: every certificate has it",
    OIDS["extKeyUsage"]: "extended_key_usage",
    OIDS["authorityInfoAccess"]: "the issuer's ocsp_url and ca_issuers_url",
}
_CA_EXTENSIONS: Final = ("nameConstraints", "policyConstraints", "policyMappings", "inhibitAnyPolicy")


def _with_base(content: Mapping[str, object], path: str, problems: Problems) -> Mapping[str, object]:
    base = content.get("base")
    if not isinstance(base, str):
        return content
    if base not in READY:
        problems.add(f"{path}.base", f"{base!r} is not a ready-made profile", f"Known here: {', '.join(READY)}.")
        return content
    return {**READY[base], **content}


def _read_keys(table: Table) -> tuple[str, ...]:
    keys = table.texts("keys", _DEFAULT_KEYS, KEY_TYPES)
    if "keys" in table and not keys:
        table.complain("keys", "allows no key type", f"Name at least one of {', '.join(KEY_TYPES)}.")
    return keys


def _read_key_usage(table: Table) -> tuple[str, ...]:
    usages = table.texts("key_usage", ("digitalSignature",), (*KEY_USAGES, "contentCommitment"))
    # X.509 calls bit 1 contentCommitment, RFC 5280 §4.2.1.3 nonRepudiation; it is one bit.
    named = {"nonRepudiation" if usage == "contentCommitment" else usage for usage in usages}
    return tuple(usage for usage in KEY_USAGES if usage in named)


def _read_oids(table: Table, key: str, default: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    oids: list[str] = []
    for text in table.texts(key, default):
        oid = find_oid(text) if text in names or text[:1].isdigit() else None
        if oid is None:
            known = f"one of {', '.join(names)}, or " if names else ""
            table.complain(
                key, f"{text!r} is not known here", f"Use {known}an object identifier such as 1.3.6.1.4.1.1."
            )
        elif oid in oids:
            table.complain(key, f"names {text!r} twice", "Keep one of them.")
        else:
            oids.append(oid)
    return tuple(oids)


def _read_attributes(table: Table) -> tuple[AttributeRule, ...]:
    rules: list[AttributeRule] = []
    for inner in table.tables("subject_attribute", "type"):
        text = inner.text("type")
        oid = find_attribute_type(text)
        if oid is None:
            if text:
                inner.complain(
                    "type", f"{text!r} is not an attribute type", "Use CN, O, OU, C, serialNumber, or numbers."
                )
            oid = OIDS["commonName"]
        string_type = inner.text("string_type", "any", ("any", *STRING_TYPES))
        rule = AttributeRule(
            type=oid,
            required=inner.flag("required", False),
            pattern=inner.pattern("pattern"),
            value=inner.optional_text("value"),
            string_type=None if string_type == "any" else string_type,
        )
        inner.finish()
        if rule.pattern is not None and rule.value is not None and not rule.pattern.matches(rule.value):
            inner.complain("value", "does not match the rule's own pattern", "Keep one of value and pattern.")
        if any(other.type == oid and None in (other.value, rule.value) for other in rules):
            inner.complain("type", "has a rule already", "Keep one rule for a type, unless each names a value.")
        rules.append(rule)
    return tuple(rules)


def _read_fixed_subject(table: Table, subject: str, rules: tuple[AttributeRule, ...]) -> bytes:
    if subject == "empty" and rules:
        table.complain(
            "subject_attribute", "says something of an empty subject", "Remove it, or choose another subject."
        )
    if subject == "request" and not rules:
        table.complain(
            "subject",
            "lets a device choose any name it likes",
            "Add [[" + table.at("subject_attribute") + "]] for each attribute that a request may carry.",
        )
    if subject != "fixed":
        return EMPTY_NAME
    if not rules or any(rule.value is None for rule in rules):
        table.complain(
            "subject", "is fixed, but not every attribute has a value", "Give each subject_attribute a value."
        )
        return EMPTY_NAME
    try:
        return der.sequence(
            *(der.set_of([_write_fixed(rule.type, rule.value or "", rule.string_type)]) for rule in rules)
        )
    except Refused as refusal:
        table.complain("subject_attribute", f"makes no valid name: {refusal.detail}", "Change the value.")
        return EMPTY_NAME


def _write_fixed(attribute_type: str, value: str, string_type: str | None) -> bytes:
    attribute = write_attribute(attribute_type, value)
    if string_type is None:
        return attribute
    if string_type == "printable" and not der.is_printable(value):
        raise Refused(Code.SUBJECT_REFUSED, f"{value!r} does not fit a PrintableString", "X.680 §41.4")
    if string_type == "ia5" and not value.isascii():
        raise Refused(Code.SUBJECT_REFUSED, f"{value!r} does not fit an IA5String", "X.680 §41")
    write = {"utf8": der.utf8, "printable": der.printable, "ia5": der.ia5}[string_type]
    return der.sequence(der.oid(attribute_type), write(value))


def _read_san_rule(table: Table, san: str) -> SanRule:
    inner = table.table("san_rule")
    rule = SanRule(
        types=_read_san_types(inner, "types"),
        required=_read_san_types(inner, "required"),
        patterns=_read_san_patterns(inner.table("patterns")),
        maximum=inner.number("max", _SAN_MAX, 1, 100),
        critical=inner.flag("critical", False),
    )
    inner.finish()
    if san == "none" and (rule.types or rule.required or rule.patterns):
        table.complain("san_rule", "says something of names that no certificate will have", "Choose a source with san.")
    if san == "request" and not rule.types:
        table.complain(
            "san", "lets a device choose any name it likes", "Name the kinds it may ask for: san_rule.types = [...]."
        )
    for kind in (*rule.required, *(kind for kind, _ in rule.patterns)):
        if rule.types and kind not in rule.types:
            table.complain("san_rule", f"mentions {kind!r}, which types does not allow", f"Add {kind!r} to types.")
    return rule


def _read_san_types(table: Table, key: str) -> tuple[str, ...]:
    return tuple(_read_san_type(table, key, text) for text in table.texts(key))


def _read_san_patterns(table: Table) -> tuple[tuple[str, Pattern], ...]:
    patterns = {_read_san_type(table, key, key): table.pattern(key) for key in table.take_keys()}
    table.finish()
    return tuple((kind, pattern) for kind, pattern in patterns.items() if pattern is not None)


def _read_san_type(table: Table, key: str, text: str) -> str:
    if text in SAN_KINDS:
        return text
    kind, colon, name = text.partition(":")
    oid = find_oid(name) if kind == "other" and colon else None
    if oid is None:
        remedy = f"Use {', '.join(SAN_KINDS)}, or other:TYPE such as other:hardwareModuleName."
        table.complain(key, f"{text!r} is not a kind of name", remedy)
        return text
    return f"other:{oid}"


def _read_extensions(table: Table) -> tuple[ExtraExtension, ...]:
    extensions: list[ExtraExtension] = []
    for inner in table.tables("extension", "oid"):
        text = inner.text("oid")
        oid = find_oid(text) if text else ""
        value = inner.text("value")
        extension = ExtraExtension(oid or "", inner.flag("critical", False), _read_hex(inner, value))
        inner.finish()
        if oid is None:
            inner.complain("oid", f"{text!r} is not an object identifier", "Write it in numbers.")
        elif oid in _OWN_EXTENSIONS:
            inner.complain("oid", "is an extension that estd writes itself", f"Set {_OWN_EXTENSIONS[oid]}.")
        elif oid in {OIDS[name] for name in _CA_EXTENSIONS}:
            inner.complain("oid", "belongs into CA certificates only", "Remove it.")
        if oid and any(other.oid == oid for other in extensions):
            # RFC 5280 §4.2: not more than one instance of a particular extension.
            inner.complain("oid", "has an extension already", "Keep one extension for each identifier.")
        extensions.append(extension)
    return tuple(extensions)


def _read_hex(table: Table, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
        if text:
            der.check_der(value)
    except (ValueError, Refused):
        table.complain("value", "is not DER in hexadecimal", "Write the DER of the extension's value, such as 0500.")
        return b"\x05\x00"
    return value


# --- private: what has to fit together -------------------------------------------------------------------------------


def _check_profile(profile: Profile, table: Table) -> None:
    _check_usages(profile, table)
    if profile.subject == "empty" and profile.san == "none":
        # RFC 5280 §4.2.1.6: a certificate without a subject needs a subjectAltName.
        table.complain("san", "is none although the subject is empty", "Choose a source for san, or for subject.")
    if profile.validity.duration is not None and profile.validity.duration <= profile.backdate:
        table.complain("validity", "is over before it begins", "Make it longer than backdate.")
    if profile.backdate > _BACKDATE_MAX:
        table.complain("backdate", "is more than a year", "Use a few hours or days: it covers slow clocks.")
    if profile.retry_window > _RETRY_WINDOW_MAX:
        table.complain("retry_window", "is more than 30 days", "Use hours: it covers answers that got lost.")
    if profile.csrattrs == "off" and profile.require_binding:
        # RFC 7030 §4.5.2: a server that requires the linking must say so there.
        table.complain("csrattrs", "is off although require_binding is on", 'Use csrattrs = "list".')
    if profile.csrattrs == "both" and profile.require_binding:
        # RFC 9908 §3.4: a template cannot ask for a value that only the channel knows.
        table.complain("csrattrs", "has a template, which cannot ask for a binding", 'Use csrattrs = "list".')


def _check_usages(profile: Profile, table: Table) -> None:
    usages = set(profile.key_usage)
    if "keyCertSign" in usages:
        # RFC 5280 §4.2.1.3: keyCertSign goes with cA TRUE, and CA certificates come from [[issuer]] alone.
        table.complain("key_usage", "would let a device sign certificates", "Remove keyCertSign.")
    if usages & {"encipherOnly", "decipherOnly"} and "keyAgreement" not in usages:
        table.complain("key_usage", "has encipherOnly or decipherOnly without keyAgreement", "Add keyAgreement.")
    for key_type in profile.keys:
        clause, unfit = NOT_FOR_KEY[key_family(key_type)]
        for usage in sorted(usages & unfit):
            table.complain(
                "key_usage",
                f"{usage} is not for {key_type} keys ({clause})",
                "Remove it, or remove the key type, or write one profile for each.",
            )
    purposes = {PURPOSE_NAMES.get(oid, oid) for oid in profile.extended_key_usage}
    for purpose in sorted(purposes & USAGES_FOR_PURPOSE.keys()):
        serving = USAGES_FOR_PURPOSE[purpose]
        if usages and not usages & serving:
            table.complain(
                "extended_key_usage",
                f"{purpose} needs a key usage that serves it",
                f"Add {' or '.join(sorted(serving))}.",
            )
    if "serverAuth" in purposes and profile.san == "none":
        # RFC 9525 §6.3: clients look for a server's name in the subjectAltName and nowhere else.
        table.complain("san", "is none although serverAuth is allowed", "Choose a source for san: clients check it.")
    if "anyExtendedKeyUsage" in purposes and profile.extended_key_usage_critical:
        table.complain("extended_key_usage_critical", "does not go with anyExtendedKeyUsage", "Set it to false.")


_BACKDATE_MAX: Final = timedelta(days=366)
_RETRY_WINDOW_MAX: Final = timedelta(days=30)
