"""What a server tells devices to put into their requests, as a profile implies it (RFC 7030 §4.5, RFC 9908).

Announced are the key types the profile takes, the key usages and purposes it gives, a subjectAltName or attributes of the
subject where those come from the request, and challengePassword with estIdentityLinking where a request must be bound to
its channel: RFC 7030 §4.5.2 obliges a server that requires the linking to say so, and RFC 7894 §3 lets a client choose.

Pure. Must not import anything of the floors above.
"""

from __future__ import annotations

from estd.asn1 import der
from estd.asn1.oids import OIDS
from estd.ca.profile import Profile
from estd.ca.vocabulary import KEY_USAGES
from estd.names import read_name
from estd.wire.csrattrs import Wanted, WantedExtension


def decide_wanted(profile: Profile) -> Wanted | None:
    """What GET csrattrs answers; None where the profile has switched it off."""
    if profile.csrattrs == "off":
        return None
    attributes: list[str] = []
    if profile.require_binding:
        attributes += [OIDS["challengePassword"], OIDS["estIdentityLinking"]]
    if profile.subject == "request":
        attributes += dict.fromkeys(rule.type for rule in profile.subject_attributes if rule.required)
    return Wanted(
        key_types=profile.keys,
        extensions=_decide_extensions(profile),
        attributes=tuple(attributes),
        subject=_decide_subject(profile),
        use_template=profile.csrattrs == "both",
    )


# --- private ---------------------------------------------------------------------------------------------------------


def _decide_extensions(profile: Profile) -> tuple[WantedExtension, ...]:
    extensions: list[WantedExtension] = []
    if profile.key_usage:
        usages = der.named_bits(KEY_USAGES.index(usage) for usage in profile.key_usage)
        extensions.append(WantedExtension(OIDS["keyUsage"], profile.key_usage_critical, usages))
    if profile.extended_key_usage:
        purposes = der.sequence(*map(der.oid, profile.extended_key_usage))
        extensions.append(WantedExtension(OIDS["extKeyUsage"], profile.extended_key_usage_critical, purposes))
    if profile.san == "request":
        # Without a value: which names is for the device to say (RFC 9908 §3.2).
        extensions.append(WantedExtension(OIDS["subjectAltName"], profile.san_rule.critical))
    return tuple(extensions)


def _decide_subject(profile: Profile) -> tuple[tuple[str, str | None], ...] | None:
    match profile.subject:
        case "request":
            return tuple((rule.type, rule.value) for rule in profile.subject_attributes if rule.required)
        case "fixed":
            rdns = read_name(profile.fixed_subject).rdns
            return tuple((kind, value) for rdn in rdns for kind, value in rdn if isinstance(value, str))
        case "empty":
            return ()
        case _:
            # The credential or the inventory knows the subject; the device may leave it out.
            return None
