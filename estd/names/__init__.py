"""Names: subjects, subject alternative names, devices; and when two of them are the same.

Promises that two spellings of one name compare equal and that nothing else does, that a name which two parsers could
read differently is refused wherever it is read, and that a name becomes the same text every time. Subjects are refused
with `Code.SUBJECT_REFUSED`, alternative names with `Code.SAN_REFUSED`.

No clock, no I/O; must not import anything of estd but `estd.errors` and the byte rules of `estd.asn1.der`.
"""

from estd.names.alternative import (
    MAX_SANS,
    GeneralName,
    read_san,
    same_san,
    write_general_name,
    write_san,
)
from estd.names.devices import (
    MAX_DEVICE_CHARACTERS,
    device_name,
    fingerprint,
    normalise_device,
    read_serial,
    write_serial,
)
from estd.names.distinguished import (
    EMPTY_NAME,
    MAX_ATTRIBUTES,
    MAX_NAME_BYTES,
    Name,
    read_name,
    same_name,
    write_attribute,
    write_name,
    write_rdns,
)

__all__ = [
    "EMPTY_NAME",
    "MAX_ATTRIBUTES",
    "MAX_DEVICE_CHARACTERS",
    "MAX_NAME_BYTES",
    "MAX_SANS",
    "GeneralName",
    "Name",
    "device_name",
    "fingerprint",
    "normalise_device",
    "read_name",
    "read_san",
    "read_serial",
    "same_name",
    "same_san",
    "write_attribute",
    "write_general_name",
    "write_name",
    "write_rdns",
    "write_san",
    "write_serial",
]
