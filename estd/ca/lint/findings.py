"""Every finding of the linter: its code, what it means, and the clause it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FINDINGS: Final[Mapping[str, str]] = {
    "x690.10.1.malformed": "the bytes are not one TBSCertificate in strict DER",
    "x690.11.2.2.bits_not_minimal": "a key usage has trailing zero bits",
    "x690.11.5.default_encoded": "a value that is the default is encoded",
    "x690.11.6.set_not_sorted": "the attributes of a multi-valued RDN are not in order",
    "rfc5280.4.1.1.2.algorithm_differs": "the signature algorithm is not the issuer's",
    "rfc5280.4.1.2.1.version_not_3": "the version is not 3",
    "rfc5280.4.1.2.2.serial_not_positive": "the serial number is not positive",
    "rfc5280.4.1.2.2.serial_too_long": "the serial number has more than 20 octets",
    "rfc5280.4.1.2.4.issuer_differs": "the issuer is not the issuing certificate's subject, octet by octet",
    "rfc5280.4.1.2.4.issuer_empty": "the issuer is empty",
    "rfc5280.4.1.2.5.ends_before_start": "notAfter is not later than notBefore",
    "rfc5280.4.1.2.5.time_choice": "a time until 2049 is not a UTCTime, or a later one is",
    "rfc5280.4.1.2.5.time_malformed": "a time is not to the second and in Z",
    "rfc5280.4.1.2.6.ca_subject_empty": "a CA certificate has no subject",
    "rfc5280.4.1.2.6.subject_malformed": "the subject is not a Name",
    "rfc5280.4.1.2.6.subject_string_type": "an attribute has a string type it must not have, or text outside of it",
    "rfc5280.a.1.attribute_length": "an attribute is empty or longer than its upper bound",
    "rfc5280.4.1.2.7.key_malformed": "the public key is not well formed, or of no known algorithm",
    "rfc5280.4.1.2.8.unique_id_present": "there is a unique identifier",
    "rfc5280.4.1.2.9.extensions_missing": "there are no extensions",
    "rfc5280.4.2.critical_unknown": "an extension that verifiers may not know is critical",
    "rfc5280.4.2.extension_malformed": "an extension's value is not what its definition says",
    "rfc5280.4.2.extension_repeated": "an extension stands there twice",
    "rfc5280.4.2.1.1.authority_key_id_critical": "authorityKeyIdentifier is critical",
    "rfc5280.4.2.1.1.authority_key_id_differs": "authorityKeyIdentifier is not the issuer's subjectKeyIdentifier",
    "rfc5280.4.2.1.1.authority_key_id_missing": "authorityKeyIdentifier is missing",
    "rfc5280.4.2.1.2.subject_key_id_critical": "subjectKeyIdentifier is critical",
    "rfc5280.4.2.1.2.subject_key_id_differs": "subjectKeyIdentifier does not follow from the key",
    "rfc5280.4.2.1.2.subject_key_id_missing": "subjectKeyIdentifier is missing",
    "rfc5280.4.2.1.3.ca_without_key_cert_sign": "a CA certificate may not sign certificates",
    "rfc5280.4.2.1.3.key_cert_sign_without_ca": "a certificate that is no CA's may sign certificates",
    "rfc5280.4.2.1.3.key_usage_empty": "a key usage allows nothing",
    "rfc5280.4.2.1.3.key_usage_unfit": "a key usage is not one that a key of this kind may have",
    "rfc5280.4.2.1.3.only_without_agreement": "encipherOnly or decipherOnly stands there without keyAgreement",
    "rfc5280.4.2.1.4.policy_repeated": "a policy stands there twice",
    "rfc5280.4.2.1.6.dns_name_malformed": "a dNSName is not in preferred name syntax",
    "rfc5280.4.2.1.6.ip_address_length": "an iPAddress has neither 4 nor 16 octets",
    "rfc5280.4.2.1.6.mailbox_malformed": "an rfc822Name is not a mailbox",
    "rfc5280.4.2.1.6.name_malformed": "an alternative name is not what its kind says",
    "rfc5280.4.2.1.6.san_empty": "subjectAltName holds no name",
    "rfc5280.4.2.1.6.san_missing": "there is neither a subject nor a subjectAltName",
    "rfc5280.4.2.1.6.san_not_critical": "subjectAltName is not critical although the subject is empty",
    "rfc5280.4.2.1.6.uri_not_absolute": "a uniformResourceIdentifier is not absolute",
    "rfc4108.5.hardware_module_name_malformed": "a hardwareModuleName is not a type and a serial number",
    "rfc5280.4.2.1.9.basic_constraints_missing": "a CA certificate has no basicConstraints",
    "rfc5280.4.2.1.9.ca_not_critical": "basicConstraints of a CA certificate is not critical",
    "rfc5280.4.2.1.9.path_length_exceeded": "the issuer's path length does not allow this CA certificate",
    "rfc5280.4.2.1.9.path_length_without_ca": "there is a path length in a certificate that is no CA's",
    "rfc5280.4.2.1.9.unexpected_ca": "a device's certificate says it is a CA's",
    "rfc5280.4.2.1.10.name_outside": "a name is outside of what an issuer above may name",
    "rfc5280.4.2.1.10.name_constraints_misplaced": "name constraints are not critical, or not in a CA certificate",
    "rfc5280.4.2.1.12.any_purpose_critical": "anyExtendedKeyUsage is in a critical extension",
    "rfc5280.4.2.1.12.purpose_repeated": "a key purpose stands there twice",
    "rfc5280.4.2.1.12.purpose_without_usage": "a key purpose has no key usage that serves it",
    "rfc5280.4.2.1.13.crl_points_critical": "cRLDistributionPoints is critical",
    "rfc5280.4.2.2.1.access_critical": "authorityInfoAccess is critical",
    "rfc9525.6.3.server_without_san": "a server's certificate has no subjectAltName",
    "estd.serial_too_short": "the serial number has no room for 64 random bits, or not the length the profile sets",
    "estd.outside_issuer": "the certificate is valid when its issuer is not",
    "estd.validity_too_long": "the certificate is valid for longer than its profile says",
    "estd.too_large": "the certificate is larger than its profile allows",
    "estd.extension_unexpected": "there is an extension the profile does not name, or not as it names it",
    "estd.key_usage_differs": "the key usage is not that of the profile",
    "estd.purposes_differ": "the key purposes are not those of the profile",
    "estd.policies_differ": "the policies are not those of the profile",
}
"""Every finding, by its code: the standard, the section, the name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a certificate. `code` is a key of `FINDINGS`."""

    code: str

    @property
    def clause(self) -> str | None:
        """The clause that is broken, spelled ``RFC 5280 §4.2.1.6``; None for a rule of the profile."""
        standard, _, rest = self.code.partition(".")
        section = rest.rpartition(".")[0]
        if standard.startswith("rfc"):
            return f"RFC {standard[3:]} §{section.upper()}"
        return f"X.690 §{section}" if standard == "x690" else None

    def __str__(self) -> str:
        return f"{self.code}: {FINDINGS[self.code]}"
