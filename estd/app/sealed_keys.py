"""Which key-encryption key the issuers of a database are sealed under: one for all of them, since a signer has one.

With another nothing is applied and nothing served, unless the operator says that it takes the place of one that was lost or
stolen.
"""

from __future__ import annotations

from collections.abc import Iterable

from estd.ca.changes import decide_new_issuers
from estd.ca.ecosystem import Ecosystem
from estd.errors import Invalid, Problem
from estd.keys.software import is_sealed_under
from estd.store.contract import EcosystemRecord


def check_key(kek: bytes, records: Iterable[EcosystemRecord], source: str = "") -> None:
    """Whether any key in use in these ecosystems is sealed under this key-encryption key, or there is none at all.

    Args:
        kek: the key-encryption key.
        records: the ecosystems.
        source: where the key comes from, for the message.

    Raises:
        Invalid: all of them are sealed under another one.
    """
    sealed = [one for record in records for one in find_keys(record).values()]
    if not sealed or any(is_sealed_under(one, kek) for one in sealed):
        return
    what = "is not the one that the issuer keys in this database are sealed under"
    remedy = (
        "Name that one in the settings ([keys]). If it is lost or stolen, docs/operations.md says how another one takes "
        "its place (estd apply --new-key)."
    )
    raise Invalid([Problem(f"the key-encryption key{source and f' ({source})'}", what, remedy)])


def check_renewed(kek: bytes, old: Ecosystem | None, rules: Ecosystem, current: EcosystemRecord | None) -> None:
    """Whether no issuer keeps a key that is sealed under another key-encryption key when these rules replace the old ones.

    Raises:
        Invalid: some would.
    """
    wanted = decide_new_issuers(old, rules)
    keys = {} if current is None else find_keys(current)
    kept = {spec.name: keys[spec.name] for spec in rules.issuers if spec.name in keys and spec.name not in wanted}
    problems = [
        Problem(
            f"issuer {name!r}",
            "would keep a key that is sealed under another key-encryption key",
            "Raise its generation, so that it gets a new key; or import it again with its private key.",
        )
        for name, sealed in kept.items()
        if not is_sealed_under(sealed, kek)
    ]
    if problems:
        raise Invalid(problems)


def find_keys(record: EcosystemRecord) -> dict[str, bytes]:
    """The sealed keys in use, by issuer: the newest of each name."""
    newest = {issuer.name: issuer.sealed_key for issuer in record.issuers}
    return {name: sealed for name, sealed in newest.items() if sealed is not None}
