"""IEEE 802.1AR-2018 LDevID: a device's certificate in its operator's network.

The subject carries the serialNumber that the maker put into the IDevID (§8.6); subjectAltName may repeat the
hardwareModuleName (RFC 4108 §5). Signature suites are RSA-2048, P-256 and P-384 (§9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LDEVID: Final[Mapping[str, object]] = {
    "keys": ["ec-p256", "ec-p384", "rsa-2048"],
    "subject": "credential",
    "subject_attribute": [
        {"type": "serialNumber", "required": True, "string_type": "printable"},
        {"type": "CN"},
        {"type": "O"},
        {"type": "OU"},
        {"type": "C"},
    ],
    "san": "credential",
    "san_rule": {"types": ["other:hardwareModuleName"], "max": 1},
    "key_usage": ["digitalSignature"],
    "extended_key_usage": ["clientAuth"],
    "validity": "1y",
}
