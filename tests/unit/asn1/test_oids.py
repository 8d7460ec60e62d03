"""One identifier for each name and one name for each identifier, as two libraries that know some of them have it."""

from __future__ import annotations

import re
import ssl

import pytest
from cryptography import x509

from estd.asn1 import der
from estd.asn1.oids import NAMES, OIDS

ALIASES = {
    "deltacrlindicator": "deltacrl",
    "ecpublickey": "idecpublickey",
    "extkeyusage": "extendedkeyusage",
    "cpsuri": "idqtcps",
    "usernotice": "idqtunotice",
    "ocspbasic": "basicocspresponse",
    "secp256r1": "prime256v1",
    "smartcardlogon": "mssmartcardlogin",
    "userprincipalname": "msupn",
    "data": "pkcs7data",
    "signeddata": "pkcs7signeddata",
    "envelopeddata": "pkcs7envelopeddata",
}
"""What others call it."""

ARCS = {
    "1.2.840.113549.1.9.16.2": "decryptKeyIdentifier asymmetricDecryptKeyIdentifier otpChallenge revocationChallenge"
    " estIdentityLinking certificationRequestInfoTemplate extensionReqTemplate",  # id-aa
    "1.3.6.1.4.1.37244.1": "matterNodeId matterFirmwareSigningId matterIcacId matterRcacId matterFabricId matterNocCat",
    "1.3.6.1.4.1.37244.2": "matterVendorId matterProductId",
    "1.3.6.1.5.5.7.1": "mudURL masaURL",  # id-pe
    "1.3.6.1.5.5.7.3": "eapOverPPP eapOverLAN documentSigning",  # id-kp
    "1.3.6.1.5.5.7.7": "changeSubjectName",  # id-cmc
    "1.3.6.1.5.5.7.8": "hardwareModuleName acpNodeName",  # id-on
}
"""Whoever assigned them → those that a library may not know."""


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def what_others_say(dotted: str) -> set[str]:
    """What `cryptography` and OpenSSL call it; empty where neither knows it."""
    found = {x509.ObjectIdentifier(dotted)._name} - {"Unknown OID"}
    try:
        known = ssl._ASN1Object(dotted)
    except ValueError:
        return {plain(one) for one in found}
    return {plain(one) for one in (*found, known.shortname, known.longname)}


def test_no_identifier_has_two_names() -> None:
    assert len(NAMES) == len(OIDS)
    assert all(OIDS[NAMES[dotted]] == dotted for dotted in OIDS.values())


@pytest.mark.parametrize("name", OIDS)
def test_each_is_written_as_others_write_it_and_read_again(name: str) -> None:
    dotted = OIDS[name]
    assert x509.ObjectIdentifier(dotted).dotted_string == dotted
    # An extension's value is as good a place as any to have another library write one.
    other = x509.ExtendedKeyUsage([x509.ObjectIdentifier(dotted)]).public_bytes()
    assert der.sequence(der.oid(name)) == other
    assert der.oid(dotted) == der.oid(name)
    assert der.read_oid(der.oid_contents(name)) == dotted
    assert der.oid_name(dotted) == name


@pytest.mark.parametrize("name", OIDS)
def test_whoever_knows_it_knows_it_by_that_name(name: str) -> None:
    said = what_others_say(OIDS[name])
    if said:
        assert {plain(name), ALIASES.get(plain(name))} & said, said
    else:
        arc, _, _ = OIDS[name].rpartition(".")
        assert name in ARCS[arc].split()


def test_nobody_changes_the_table() -> None:
    with pytest.raises(TypeError):
        OIDS["commonName"] = "1.2.3"  # type: ignore[index]  # that is the point
    with pytest.raises(TypeError):
        NAMES["1.2.3"] = "commonName"  # type: ignore[index]  # that is the point
