"""Lint: for each finding a certificate that has it and one that has not, and bytes that are no certificate at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from estd.asn1 import der
from estd.asn1.spki import read_spki
from estd.ca.lint.findings import FINDINGS
from estd.ca.lint.linter import Linter
from estd.ca.template import KEY_IDS
from estd.keys.software import generate
from estd.names import EMPTY_NAME, write_name

STARTS = datetime(2031, 5, 17, 11, 30, 0, tzinfo=UTC)
ENDS = STARTS + timedelta(days=365) - timedelta(seconds=1)
KEY = generate("ec-p256")
RSA_KEY = generate("rsa-2048")
ED_KEY = generate("ed25519")


def extension(name: str, value: bytes, critical: bool = False) -> bytes:
    return der.sequence(der.oid(name), der.boolean(True) if critical else b"", der.octet_string(value))


def usage(*bits: int) -> bytes:
    return extension("keyUsage", der.named_bits(bits), True)


def purposes(*names: str) -> bytes:
    return extension("extKeyUsage", der.sequence(*map(der.oid, names)))


def names(*general_names: bytes, critical: bool = False) -> bytes:
    return extension("subjectAltName", der.sequence(*general_names), critical)


def key_id(spki: bytes, method: str = "sha256-160") -> bytes:
    return extension("subjectKeyIdentifier", der.octet_string(KEY_IDS[method](read_spki(spki)[1])))


@dataclass(frozen=True)
class Draft:
    """The parts of a TBSCertificate; good as they are, and each may be replaced."""

    issuer: bytes
    aki: bytes
    version: bytes = der.explicit(0, der.integer(2))
    serial: bytes = der.tlv(der.INTEGER, b"\x01" + bytes(19))
    algorithm: bytes = der.sequence(der.oid("ecdsaWithSHA256"))
    validity: bytes = der.sequence(der.time(STARTS), der.time(ENDS))
    subject: bytes = field(default_factory=lambda: write_name("CN=device-1,O=Acme"))
    spki: bytes = KEY.spki
    bc: bytes = extension("basicConstraints", der.sequence(), True)
    ku: bytes = usage(0)
    eku: bytes = purposes("clientAuth")
    more: bytes = b""
    ski: bytes = field(default_factory=lambda: key_id(KEY.spki))
    san: bytes = b""
    ids: bytes = b""
    after: bytes = b""

    def tbs(self) -> bytes:
        extensions = self.bc + self.ku + self.eku + self.aki + self.more + self.ski + self.san
        wrapped = der.explicit(3, der.sequence(extensions)) if extensions else b""
        return der.sequence(
            self.version + self.serial + self.algorithm + self.issuer + self.validity + self.subject + self.spki,
            self.ids + wrapped + self.after,
        )


def altered(draft: Draft, **changes: bytes) -> Draft:
    return Draft(**{name: getattr(draft, name) for name in Draft.__dataclass_fields__} | changes)


@pytest.fixture(scope="module")
def good(hierarchy: Any) -> Draft:
    authority = hierarchy.devices
    aki = extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, authority.key_id)))
    return Draft(issuer=authority.subject, aki=aki)


def linter(hierarchy: Any, **options: Any) -> Linter:
    (profile,) = hierarchy.ecosystem.profiles.values()
    return Linter(hierarchy.devices.certificate, profile, [hierarchy.root.certificate], 72, **options)


def codes(one: Linter, tbs: bytes) -> set[str]:
    return {finding.code for finding in one.lint(tbs)}


def utc(text: str) -> bytes:
    return der.tlv(der.UTC_TIME, text.encode())


def general(text: str) -> bytes:
    return der.tlv(der.GENERALIZED_TIME, text.encode())


def attribute(kind: str, element: bytes) -> bytes:
    return der.sequence(der.oid(kind), element)


def name_of(*attributes: bytes) -> bytes:
    return der.sequence(*(der.tlv(der.SET, one) for one in attributes))


UNSORTED = name_of(attribute("organizationName", der.utf8("b")) + attribute("commonName", der.utf8("a")))
GOOD_DNS = der.tlv(0x82, b"a.example.com")
HARDWARE = der.explicit(0, der.sequence(der.oid("1.2.3"), der.octet_string(b"\x01")))

# finding → what in the good certificate to replace, in each of these ways.
LEAF: dict[str, list[dict[str, bytes]]] = {
    "x690.10.1.malformed": [
        {"version": b"\x05\x00"},
        {"serial": b"\x02\x00"},
        {"serial": b"\x02\x02\x00\x01"},
        {"serial": b"\x04\x01\x01"},
        {"validity": der.sequence(der.time(STARTS))},
        {"validity": der.sequence(der.time(STARTS), der.time(ENDS), der.NULL)},
        {"after": der.NULL},
        {"more": der.NULL},
        {"more": der.sequence(der.oid("1.2.3"))},
        {"more": der.sequence(der.oid("1.2.3"), b"\x01\x01\x01", der.octet_string(b""))},
        {"more": der.sequence(b"\x06\x01\x80", der.octet_string(b""))},
    ],
    "x690.11.2.2.bits_not_minimal": [{"ku": extension("keyUsage", bytes.fromhex("03020080"), True)}],
    "x690.11.5.default_encoded": [
        {"bc": extension("basicConstraints", der.sequence(der.boolean(False)), True)},
        {
            "eku": der.sequence(
                der.oid("extKeyUsage"), der.boolean(False), der.octet_string(der.sequence(der.oid("clientAuth")))
            )
        },
    ],
    "x690.11.6.set_not_sorted": [{"subject": UNSORTED}],
    "rfc5280.4.1.1.2.algorithm_differs": [
        {"algorithm": der.sequence(der.oid("ecdsaWithSHA384"))},
        {"algorithm": der.sequence(der.oid("ecdsaWithSHA256"), der.NULL)},
    ],
    "rfc5280.4.1.2.1.version_not_3": [{"version": b""}, {"version": der.explicit(0, der.integer(1))}],
    "rfc5280.4.1.2.2.serial_not_positive": [
        {"serial": der.integer(0)},
        {"serial": der.tlv(der.INTEGER, b"\x80" + bytes(19))},
    ],
    "rfc5280.4.1.2.2.serial_too_long": [{"serial": der.tlv(der.INTEGER, b"\x01" + bytes(20))}],
    "rfc5280.4.1.2.4.issuer_differs": [{"issuer": write_name("CN=other")}, {"issuer": EMPTY_NAME}],
    "rfc5280.4.1.2.4.issuer_empty": [{"issuer": EMPTY_NAME}],
    "rfc5280.4.1.2.5.ends_before_start": [
        {"validity": der.sequence(der.time(ENDS), der.time(STARTS))},
        {"validity": der.sequence(der.time(STARTS), der.time(STARTS))},
    ],
    "rfc5280.4.1.2.5.time_choice": [{"validity": der.sequence(der.time(STARTS), general("20310601000000Z"))}],
    "rfc5280.4.1.2.5.time_malformed": [
        {"validity": der.sequence(der.time(STARTS), one)}
        for one in (
            utc("320101000000"),
            utc("3201010000Z"),
            utc("321301000000Z"),
            general("20320101000000.0Z"),
            der.NULL,
        )
    ],
    "rfc5280.4.1.2.6.subject_malformed": [
        {"subject": der.sequence(der.set_of([]))},
        {"subject": der.sequence(der.sequence())},
        {"subject": der.sequence(der.set_of([der.NULL]))},
        {"subject": name_of(attribute("commonName", der.utf8("a") + der.NULL))},
        {"subject": name_of(der.sequence(der.NULL, der.utf8("a")))},
    ],
    "rfc5280.4.1.2.6.subject_string_type": [
        {"subject": name_of(one)}
        for one in (
            attribute("countryName", der.utf8("CH")),
            attribute("serialNumber", der.utf8("1")),
            attribute("emailAddress", der.utf8("a@b")),
            attribute("commonName", der.ia5("a")),
            attribute("commonName", der.tlv(der.PRINTABLE_STRING, b"a@b")),
            attribute("commonName", der.tlv(der.UTF8_STRING, b"\xff")),
            attribute("commonName", der.utf8("a\0b")),
            attribute("commonName", der.tlv(der.BMP_STRING, b"\0a")),
            attribute("domainComponent", der.tlv(der.IA5_STRING, b"\xe9")),
        )
    ],
    "rfc5280.a.1.attribute_length": [
        {"subject": name_of(attribute("commonName", der.utf8("")))},
        {"subject": name_of(attribute("commonName", der.utf8("é" * 65)))},
        {"subject": name_of(attribute("countryName", der.printable("C")))},
    ],
    "rfc5280.4.1.2.7.key_malformed": [
        {
            "spki": der.sequence(
                der.sequence(der.oid("ecPublicKey"), der.oid("secp256r1")), der.bit_string(b"\x04" + bytes(63))
            )
        },
        {
            "spki": der.sequence(
                der.sequence(der.oid("ecPublicKey"), der.oid("secp256r1")), der.bit_string(b"\x02" + bytes(64))
            )
        },
        {"spki": der.sequence(der.sequence(der.oid("ed25519"), der.NULL), der.bit_string(bytes(32)))},
        {"spki": der.sequence(der.sequence(der.oid("1.2.3")), der.bit_string(bytes(32)))},
        {"spki": der.sequence(der.sequence(der.oid("rsaEncryption")), der.bit_string(read_spki(RSA_KEY.spki)[1]))},
        *(
            {"spki": der.sequence(der.sequence(der.oid("rsaEncryption"), der.NULL), der.bit_string(octets))}
            for octets in (
                der.sequence(der.integer(2**1023 + 1), der.integer(65537)),
                der.sequence(der.integer(2**2047), der.integer(65537)),
                der.sequence(der.integer(2**2047 + 1), der.integer(1)),
                der.sequence(der.integer(-(2**2047) + 1), der.integer(65537)),
                der.sequence(der.integer(2**2047 + 1)),
                b"",
            )
        ),
    ],
    "rfc5280.4.1.2.8.unique_id_present": [{"ids": der.tlv(0x81, b"\0a")}, {"ids": der.tlv(0x82, b"\0a")}],
    "rfc5280.4.1.2.9.extensions_missing": [
        dict.fromkeys(("bc", "ku", "eku", "aki", "ski"), b""),
        dict.fromkeys(("bc", "ku", "eku", "aki", "ski"), b"") | {"after": der.explicit(3, der.sequence())},
    ],
    "rfc5280.4.2.critical_unknown": [{"more": extension("1.2.3", der.NULL, True)}],
    "rfc5280.4.2.extension_malformed": [
        {"more": extension("1.2.3", b"\x05")},
        {"more": extension("1.2.3", b"\x30\x02\x05\x01")},
        {"bc": extension("basicConstraints", der.NULL, True)},
        {"bc": extension("basicConstraints", der.sequence(der.integer(-1)), True)},
        {"bc": extension("basicConstraints", der.sequence(der.NULL), True)},
        {"ku": extension("keyUsage", der.octet_string(b"\x80"), True)},
        {"ku": extension("keyUsage", bytes.fromhex("03020880"), True)},
        {"ku": extension("keyUsage", bytes.fromhex("03020781"), True)},
        {"eku": extension("extKeyUsage", der.sequence())},
        {"eku": extension("extKeyUsage", der.sequence(der.NULL))},
        {"eku": extension("extKeyUsage", der.sequence(b"\x06\x02\x80\x01"))},
        {"more": extension("certificatePolicies", der.sequence())},
        {"more": extension("certificatePolicies", der.sequence(der.oid("1.2.3")))},
        {"more": extension("cRLDistributionPoints", der.sequence())},
        {"more": extension("cRLDistributionPoints", der.sequence(der.sequence()))},
        {"more": extension("authorityInfoAccess", der.sequence())},
        {"more": extension("authorityInfoAccess", der.sequence(der.NULL))},
        {"more": extension("authorityInfoAccess", der.sequence(der.sequence(der.oid("ocsp"), der.tlv(0x86, b""))))},
        {"ski": extension("subjectKeyIdentifier", der.NULL)},
        {"aki": extension("authorityKeyIdentifier", der.NULL)},
    ],
    "rfc5280.4.2.extension_repeated": [{"more": usage(0)}, {"san": names(GOOD_DNS) + names(GOOD_DNS)}],
    "rfc5280.4.2.1.1.authority_key_id_missing": [{"aki": b""}],
    "rfc5280.4.2.1.1.authority_key_id_differs": [
        {"aki": extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, bytes(20))))},
        {"aki": extension("authorityKeyIdentifier", der.sequence())},
    ],
    "rfc5280.4.2.1.1.authority_key_id_critical": [
        {"aki": extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, bytes(20))), True)}
    ],
    "rfc5280.4.2.1.2.subject_key_id_missing": [{"ski": b""}],
    "rfc5280.4.2.1.2.subject_key_id_differs": [{"ski": key_id(RSA_KEY.spki)}, {"ski": key_id(ED_KEY.spki, "sha1-64")}],
    "rfc5280.4.2.1.2.subject_key_id_critical": [
        {"ski": extension("subjectKeyIdentifier", der.octet_string(bytes(20)), True)}
    ],
    "rfc5280.4.2.1.3.key_cert_sign_without_ca": [{"ku": usage(0, 5)}],
    "rfc5280.4.2.1.3.key_usage_empty": [
        {"ku": extension("keyUsage", bytes.fromhex("030100"), True)},
        {"ku": extension("keyUsage", bytes.fromhex("03020000"), True)},
    ],
    "rfc5280.4.2.1.3.key_usage_unfit": [
        {"ku": usage(0, 2)},
        {"ku": usage(0, 4), "spki": RSA_KEY.spki, "ski": key_id(RSA_KEY.spki)},
        {"ku": usage(0, 4), "spki": ED_KEY.spki, "ski": key_id(ED_KEY.spki)},
    ],
    "rfc5280.4.2.1.3.only_without_agreement": [{"ku": usage(0, 7)}, {"ku": usage(0, 8)}],
    "rfc5280.4.2.1.4.policy_repeated": [
        {"more": extension("certificatePolicies", der.sequence(*[der.sequence(der.oid("1.2.3"))] * 2))}
    ],
    "rfc5280.4.2.1.6.san_missing": [{"subject": EMPTY_NAME}],
    "rfc5280.4.2.1.6.san_not_critical": [{"subject": EMPTY_NAME, "san": names(GOOD_DNS)}],
    "rfc5280.4.2.1.6.san_empty": [{"san": names()}],
    "rfc5280.4.2.1.6.dns_name_malformed": [
        {"san": names(der.tlv(0x82, one))}
        for one in (
            b"",
            b" ",
            b"a.example.com.",
            b"a..b",
            b"-a",
            b"a_b",
            b"a\0b",
            b"*",
            b"a.*.b",
            b"\xe9",
            b"a" * 64,
            b"a." * 127 + b"a",
        )
    ],
    "rfc5280.4.2.1.6.ip_address_length": [{"san": names(der.tlv(0x87, bytes(size)))} for size in (0, 3, 8, 32)],
    "rfc5280.4.2.1.6.mailbox_malformed": [
        {"san": names(der.tlv(0x81, one))} for one in (b"", b"a", b"@b", b"a@", b"a@b@c", b"a b@c", b"A <a@b>")
    ],
    "rfc5280.4.2.1.6.uri_not_absolute": [
        {"san": names(der.tlv(0x86, one))}
        for one in (b"", b"a", b"/a", b"http:", b"http://a b", b"http://\xe9", b"a:%zz")
    ],
    "rfc5280.4.2.1.6.name_malformed": [
        {"san": names(one)}
        for one in (
            der.tlv(0xA3, b""),
            der.tlv(0xA4, EMPTY_NAME),
            der.tlv(0xA4, der.NULL),
            der.tlv(0xA4, name_of(attribute("countryName", der.utf8("CH")))),
            der.tlv(0x88, b"\x80"),
            der.tlv(0xA0, der.oid("1.2.3")),
            der.tlv(0xA0, der.oid("1.2.3") + der.NULL),
            der.tlv(0xA0, der.oid("1.2.3") + der.explicit(0, b"")),
        )
    ],
    "rfc4108.5.hardware_module_name_malformed": [
        {"san": names(der.tlv(0xA0, der.oid("hardwareModuleName") + der.explicit(0, one)))}
        for one in (
            der.NULL + b"",
            der.sequence(der.oid("1.2.3")),
            der.sequence(der.octet_string(b"1"), der.oid("1.2.3")),
        )
        if one != der.NULL
    ],
    "rfc5280.4.2.1.9.path_length_without_ca": [
        {"bc": extension("basicConstraints", der.sequence(der.integer(0)), True)}
    ],
    "rfc5280.4.2.1.9.unexpected_ca": [{"bc": extension("basicConstraints", der.sequence(der.boolean(True)), True)}],
    "rfc5280.4.2.1.9.ca_not_critical": [{"bc": extension("basicConstraints", der.sequence(der.boolean(True)))}],
    "rfc5280.4.2.1.10.name_constraints_misplaced": [{"more": extension("nameConstraints", der.sequence(), True)}],
    "rfc5280.4.2.1.12.any_purpose_critical": [
        {"eku": extension("extKeyUsage", der.sequence(der.oid("anyExtendedKeyUsage")), True)}
    ],
    "rfc5280.4.2.1.12.purpose_repeated": [{"eku": purposes("clientAuth", "clientAuth")}],
    "rfc5280.4.2.1.12.purpose_without_usage": [{"ku": usage(1)}],
    "rfc5280.4.2.1.13.crl_points_critical": [
        {
            "more": extension(
                "cRLDistributionPoints",
                der.sequence(der.sequence(der.explicit(0, der.explicit(0, der.tlv(0x86, b"http://a"))))),
                True,
            )
        }
    ],
    "rfc5280.4.2.2.1.access_critical": [
        {
            "more": extension(
                "authorityInfoAccess", der.sequence(der.sequence(der.oid("ocsp"), der.tlv(0x86, b"http://a"))), True
            )
        }
    ],
    "rfc9525.6.3.server_without_san": [{"eku": purposes("serverAuth")}],
    "estd.serial_too_short": [{"serial": der.tlv(der.INTEGER, b"\x01" + bytes(size))} for size in (7, 18)],
    "estd.outside_issuer": [
        {"validity": der.sequence(der.time(STARTS - timedelta(days=1)), der.time(STARTS + timedelta(days=9)))},
        {"validity": der.sequence(der.time(STARTS), general("20600101000000Z"))},
    ],
    "estd.validity_too_long": [{"validity": der.sequence(der.time(STARTS), der.time(ENDS + timedelta(seconds=1)))}],
    "estd.extension_unexpected": [
        {"more": extension("1.2.3", der.NULL)},
        {"bc": b""},
        {"bc": extension("basicConstraints", der.sequence())},
        {"more": extension("certificatePolicies", der.sequence(der.sequence(der.oid("1.2.3"))))},
    ],
    "estd.key_usage_differs": [{"ku": b""}, {"ku": usage(0, 1)}],
    "estd.purposes_differ": [{"eku": b""}, {"eku": purposes("clientAuth", "codeSigning")}],
    "estd.policies_differ": [{"more": extension("certificatePolicies", der.sequence(der.sequence(der.oid("1.2.3"))))}],
}

GOOD: list[dict[str, bytes]] = [
    {},
    {"san": names(GOOD_DNS, der.tlv(0x82, b"*.example.com"), der.tlv(0x87, bytes(4)), der.tlv(0x87, bytes(16)))},
    {
        "san": names(
            der.tlv(0x86, b"urn:a:b"), der.tlv(0x86, b"https://a.b/c?d=%20#e"), der.tlv(0x81, b"a.b@example.com")
        )
    },
    {"san": names(der.tlv(0xA0, der.oid("hardwareModuleName") + HARDWARE), der.tlv(0x88, b"\x2a\x03"))},
    {"san": names(der.tlv(0xA4, write_name("CN=x,C=CH")), critical=True)},
    {"subject": EMPTY_NAME, "san": names(GOOD_DNS, critical=True)},
    {"subject": write_name("CN=é,C=CH,serialNumber=1,DC=a,emailAddress=a@b.c,1.2.3=x")},
    {
        "subject": der.sequence(
            der.set_of([attribute("commonName", der.utf8("a")), attribute("organizationName", der.utf8("b"))])
        )
    },
    {"spki": RSA_KEY.spki, "ski": key_id(RSA_KEY.spki)},
    {"spki": ED_KEY.spki, "ski": key_id(ED_KEY.spki, "sha1-160")},
    {"ski": key_id(KEY.spki, "sha1-64")},
    {"validity": der.sequence(der.time(STARTS), der.time(STARTS + timedelta(seconds=1)))},
]


@pytest.mark.parametrize("changes", GOOD)
def test_good_certificates_have_no_findings(changes: dict[str, bytes], good: Draft, hierarchy: Any) -> None:
    assert codes(linter(hierarchy), altered(good, **changes).tbs()) == set()


@pytest.mark.parametrize(("code", "changes"), [(code, one) for code, ways in LEAF.items() for one in ways])
def test_each_finding_is_found(code: str, changes: dict[str, bytes], good: Draft, hierarchy: Any) -> None:
    assert code in codes(linter(hierarchy), altered(good, **changes).tbs())


def test_the_kept_verdict_is_for_its_own_octets(good: Draft, hierarchy: Any) -> None:
    # One linter, good and bad in turn: what it keeps of one must never speak for another.
    one = linter(hierarchy)
    drafts = [({}, set[str]())] + [
        (changes, codes(linter(hierarchy), altered(good, **changes).tbs()))
        for ways in LEAF.values()
        for changes in ways
    ]
    for _ in range(2):
        for changes, expected in drafts:
            assert codes(one, altered(good, **changes).tbs()) == expected
            assert codes(one, good.tbs()) == set()


# --- CA certificates -------------------------------------------------------------------------------------------------

CA_BC = extension("basicConstraints", der.sequence(der.boolean(True), der.integer(0)), True)
CA = {"bc": CA_BC, "ku": usage(5, 6), "eku": b"", "validity": der.sequence(der.time(STARTS), der.time(ENDS))}


@pytest.fixture(scope="module")
def ca(good: Draft, hierarchy: Any) -> Draft:
    root = hierarchy.root
    aki = extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, root.key_id)))
    return altered(good, issuer=root.subject, aki=aki, **CA)


AUTHORITY: dict[str, list[dict[str, bytes]]] = {
    "rfc5280.4.1.2.6.ca_subject_empty": [{"subject": EMPTY_NAME, "san": names(GOOD_DNS, critical=True)}],
    "rfc5280.4.2.1.9.basic_constraints_missing": [
        {"bc": b""},
        {"bc": extension("basicConstraints", der.sequence(), True)},
    ],
    "rfc5280.4.2.1.3.ca_without_key_cert_sign": [{"ku": b""}, {"ku": usage(6)}],
    "rfc5280.4.2.1.2.subject_key_id_missing": [{"ski": b""}],
    "rfc5280.4.2.1.10.name_constraints_misplaced": [
        {"more": extension("nameConstraints", der.sequence(der.tlv(0xA0, der.sequence(GOOD_DNS))))}
    ],
    "estd.extension_unexpected": [{"more": extension("1.2.3", der.NULL)}, {"eku": purposes("clientAuth")}],
}


def test_a_good_authority(ca: Draft, hierarchy: Any) -> None:
    one = Linter(hierarchy.root.certificate, None)
    assert codes(one, ca.tbs()) == set()
    constrained = extension("nameConstraints", der.sequence(der.tlv(0xA0, der.sequence(GOOD_DNS))), True)
    assert codes(one, altered(ca, more=constrained).tbs()) == set()


@pytest.mark.parametrize(("code", "changes"), [(code, one) for code, ways in AUTHORITY.items() for one in ways])
def test_what_an_authority_must_have(code: str, changes: dict[str, bytes], ca: Draft, hierarchy: Any) -> None:
    assert code in codes(Linter(hierarchy.root.certificate, None), altered(ca, **changes).tbs())


def test_an_issuer_of_leaves_makes_no_authorities(ca: Draft, good: Draft, hierarchy: Any) -> None:
    draft = altered(ca, issuer=good.issuer, aki=good.aki)
    found = codes(Linter(hierarchy.devices.certificate, None), draft.tbs())
    assert found == {"rfc5280.4.2.1.9.path_length_exceeded"}


def test_a_root_answers_for_itself(ca: Draft) -> None:
    root = altered(ca, issuer=ca.subject, aki=b"")
    own = extension(
        "authorityKeyIdentifier", der.sequence(der.tlv(0x80, KEY_IDS["sha256-160"](read_spki(KEY.spki)[1])))
    )
    one = Linter(None, None)
    assert codes(one, root.tbs()) == set()
    assert codes(one, altered(root, aki=own).tbs()) == set()
    assert codes(one, altered(root, aki=ca.aki).tbs()) == {"rfc5280.4.2.1.1.authority_key_id_differs"}
    assert codes(one, ca.tbs()) >= {"rfc5280.4.1.2.4.issuer_differs"}
    other = altered(root, algorithm=der.sequence(der.oid("ecdsaWithSHA384")))
    assert codes(one, other.tbs()) == {"rfc5280.4.1.1.2.algorithm_differs"}


# --- what depends on the profile and the issuers above ---------------------------------------------------------------


def test_names_stay_inside_what_every_issuer_above_may_name(
    make_hierarchy: Callable[..., Any], minimal: str, good: Draft
) -> None:
    text = minimal.replace(
        'name = "root"\n', 'name = "root"\nname_constraints = { permitted = ["dns:example.com"] }\n', 1
    )
    hierarchy = make_hierarchy(text)
    aki = extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, hierarchy.devices.key_id)))
    inside = altered(good, issuer=hierarchy.devices.subject, aki=aki, san=names(GOOD_DNS))
    outside = altered(inside, san=names(der.tlv(0x82, b"a.example.org")))
    assert codes(linter(hierarchy), inside.tbs()) == set()
    assert codes(linter(hierarchy), outside.tbs()) == {"rfc5280.4.2.1.10.name_outside"}
    unreadable = altered(inside, san=names(der.tlv(0x82, b"\xff")))
    assert "rfc5280.4.2.1.10.name_outside" in codes(linter(hierarchy), unreadable.tbs())


def test_the_profile_limits_size_and_adds_extensions(
    make_hierarchy: Callable[..., Any], minimal: str, good: Draft
) -> None:
    hierarchy = make_hierarchy(minimal + 'max_der_bytes = 500\nextension = [{ oid = "1.2.3", value = "0500" }]\n')
    aki = extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, hierarchy.devices.key_id)))
    draft = altered(good, issuer=hierarchy.devices.subject, aki=aki, more=extension("1.2.3", der.NULL))
    assert codes(linter(hierarchy), draft.tbs()) == set()
    for missing in (b"", extension("1.2.3", der.NULL, True), extension("1.2.3", der.boolean(True))):
        assert "estd.extension_unexpected" in codes(linter(hierarchy), altered(draft, more=missing).tbs())
    long = altered(draft, subject=write_name("O=" + "a" * 64 + ",OU=" + "a" * 64))
    assert codes(linter(hierarchy), long.tbs()) == {"estd.too_large"}


def test_an_end_set_by_the_profile(make_hierarchy: Callable[..., Any], minimal: str, good: Draft) -> None:
    for text, ends, expected in (
        ('validity = "until 2031-06-01"\n', "310601000000Z", set()),
        ('validity = "until 2031-06-01"\n', "310601000001Z", {"estd.validity_too_long"}),
        ('validity = "1d"\nalign = "issuer"\n', "400101000000Z", set()),
    ):
        hierarchy = make_hierarchy(minimal + text)
        aki = extension("authorityKeyIdentifier", der.sequence(der.tlv(0x80, hierarchy.devices.key_id)))
        validity = der.sequence(der.time(STARTS), utc(ends))
        draft = altered(good, issuer=hierarchy.devices.subject, aki=aki, validity=validity)
        assert codes(linter(hierarchy), draft.tbs()) == expected


# --- all of it -------------------------------------------------------------------------------------------------------


def test_every_finding_has_a_failing_vector() -> None:
    elsewhere = {
        "rfc5280.4.2.1.9.path_length_exceeded",
        "rfc5280.4.2.1.10.name_outside",
        "estd.too_large",
    }
    assert LEAF.keys() | AUTHORITY.keys() | elsewhere == FINDINGS.keys()


def test_no_truncation_and_no_flipped_bit_is_a_fault(good: Draft, hierarchy: Any) -> None:
    one = linter(hierarchy)
    tbs = altered(good, san=names(GOOD_DNS)).tbs()
    assert codes(one, tbs) == set()
    for cut in range(len(tbs)):
        assert codes(one, tbs[:cut]) == {"x690.10.1.malformed"}
    assert codes(one, tbs + b"\0") == {"x690.10.1.malformed"}
    for index in range(len(tbs)):
        for bit in (0, 3, 7):
            flipped = bytearray(tbs)
            flipped[index] ^= 1 << bit
            one.lint(bytes(flipped))
    assert codes(one, tbs) == set()
