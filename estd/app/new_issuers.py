"""Making the issuers that a document names and the store lacks: a key, and a CA certificate signed by its parent.

The key leaves here sealed under the key-encryption key. A parent's is unsealed only to sign a new issuer below it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from estd.ca.authority import read_authority
from estd.ca.changes import decide_new_issuers
from estd.ca.ecosystem import Ecosystem
from estd.ca.hierarchy import IssuerSpec
from estd.ca.issuer import RANDOM_BYTES, issue_authority
from estd.errors import Invalid, Problem, Refused, Unavailable
from estd.keys.software import SoftwareKey, generate, seal, unseal
from estd.store.contract import EcosystemRecord, NewIssuer


def make_issuers(
    kek: bytes, old: Ecosystem | None, rules: Ecosystem, current: EcosystemRecord | None, now: datetime
) -> tuple[list[NewIssuer], list[Problem]]:
    """The new issuers that could be made, and why others could not.

    Args:
        kek: the key-encryption key.
        old: the rules in force, if there are any.
        rules: those that are to come.
        current: what is stored of the ecosystem, if it exists.
        now: when the certificates begin.
    """
    stored = {} if current is None else {record.name: record for record in current.issuers}
    wanted = decide_new_issuers(old, rules)
    made: dict[str, _Made] = {}

    def get(name: str) -> _Made:
        """The newest certificate and key of that issuer, parents first."""
        if name not in made:
            if name in wanted:
                made[name] = _make_issuer(rules.get_issuer(name), get, now)
            else:
                record = stored[name]
                key = None
                if record.sealed_key is not None:
                    key = unseal(record.sealed_key, kek, read_authority(record.certificate).spki)
                made[name] = _Made(record.certificate, key)
        return made[name]

    new: list[NewIssuer] = []
    problems: list[Problem] = []
    for name in wanted:
        try:
            issuer = get(name)
        except Invalid as invalid:
            problems += invalid.problems
            continue
        # The issuer's own public key is the context: a sealed key moved to another issuer's row does not open.
        sealed = None if issuer.key is None else seal(issuer.key, kek, issuer.key.spki)
        new.append(NewIssuer(name, rules.get_issuer(name).parent, issuer.certificate, sealed))
    return new, list(dict.fromkeys(problems))


# --- private -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    certificate: bytes
    key: SoftwareKey | None


def _make_issuer(spec: IssuerSpec, get: Callable[[str], _Made], now: datetime) -> _Made:
    if spec.imported is not None:
        return _Made(spec.imported.certificate, spec.imported_key)
    where, until = f"issuer[{spec.name}]", spec.validity.until
    if until is not None and until <= now:
        remedy = 'Write an end that is to come, such as "until 2050-01-01", or a length, such as "20y".'
        raise Invalid([Problem(f"{where}.validity", f"ends on {until:%Y-%m-%d %H:%M} UTC, which has passed", remedy)])
    parent = None if spec.parent is None else get(spec.parent)
    if parent is not None and parent.key is None:
        raise Invalid(
            [
                Problem(
                    f"issuer {spec.name!r}",
                    f"cannot be signed: the key of {spec.parent!r} is not here",
                    "Sign it where that key is, and import the certificate and key.",
                )
            ]
        )
    key = generate(spec.key)
    randomness = secrets.token_bytes(RANDOM_BYTES)
    try:
        if parent is None:
            return _Made(issue_authority(spec, key, None, None, now, randomness), key)
        authority = read_authority(parent.certificate)
        return _Made(issue_authority(spec, key, authority, parent.key, now, randomness), key)
    except Unavailable as reason:
        what, remedy = f"{spec.parent!r} cannot sign it: {reason.detail}", "Give that one a new certificate first."
        raise Invalid([Problem(f"{where}.parent", what, remedy)]) from None
    except Refused as reason:
        remedy = "Change it, or the issuer above it."
        raise Invalid([Problem(where, f"cannot be made: {reason.detail}", remedy)]) from None
