"""Applying ecosystems: from checked documents to new versions in the store, all of them or none.

New issuers are stored in the same transaction as the version that first names them, so there is never an issuer without
rules or rules without their issuer (`estd.app.new_issuers` makes them).

Before anything is written all documents are held against each other, what exists and the time (`estd.app.plan`); what
others write meanwhile the store notices.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from estd.app.plan import Applied, Plan
from estd.app.sealed_keys import find_keys
from estd.app.submitted import Submitted, submit
from estd.ca.ecosystem import Ecosystem, load_document, peek_labels
from estd.errors import Invalid, Problem
from estd.keys.software import is_sealed_under
from estd.names import write_name
from estd.ra.directory import INTERNAL_LABEL
from estd.store.contract import Conflict, EcosystemRecord, Store

_ATTEMPTS: Final = 3


async def apply_document(
    store: Store,
    kek: bytes,
    rules: Ecosystem,
    applied_by: str,
    *,
    dry_run: bool = False,
    internal: bool = False,
    new_key: bool = False,
) -> Applied:
    """Make these rules the newest version of their ecosystem: see `apply_documents`."""
    options = {"dry_run": dry_run, "internal": internal, "new_key": new_key}
    return (await apply_documents(store, kek, [submit(rules)], applied_by, **options))[0]


async def apply_documents(
    store: Store,
    kek: bytes,
    documents: Sequence[Submitted],
    applied_by: str,
    *,
    dry_run: bool = False,
    internal: bool = False,
    new_key: bool = False,
) -> list[Applied]:
    """Make each of these the newest version of its ecosystem, unless it is that already; all of them or none.

    Args:
        store: where they are recorded, in one transaction.
        kek: the key-encryption key, under which the keys of new issuers are sealed.
        documents: what is to be in force.
        applied_by: who applies them, for the record.
        dry_run: only say what would change; the keys of new issuers are made, and forgotten.
        internal: the rules are those of the server's own ecosystem.
        new_key: the key-encryption key takes the place of another; then every issuer has to become a new one.

    Raises:
        Invalid: with every problem of every document, its own and those with what exists (a label in use elsewhere, a key
            that cannot be unsealed, another key-encryption key, an issuer that has expired). Nothing was applied.
        Unavailable: the store did not answer; either all was applied or nothing, and applying again is safe.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        records = await store.find_ecosystems()
        now = datetime.now(UTC).replace(microsecond=0)
        problems = [problem for document in documents for problem in document.problems]
        problems += _find_label_problems(documents, records, internal=internal)
        plans = []
        for document in documents:
            if document.rules is not None:
                plan = Plan(document, document.rules, records, now)
                problems += plan.check(kek, records, new_key=new_key)
                plans.append(plan)
        if problems:
            raise Invalid(list(dict.fromkeys(problems)))
        applied = [await plan.describe(store) for plan in plans]
        versions = [plan.write(applied_by) for plan in plans if plan.changes]
        if dry_run or not versions:
            return applied
        try:
            await store.record_versions(versions)
        except Conflict:
            if attempt == _ATTEMPTS:
                raise
            continue  # somebody else applied in the meantime: compare with what is there now
        return applied
    raise AssertionError("the last attempt returns or raises")


async def replace_own_issuer(store: Store, kek: bytes, applied_by: str) -> None:
    """Give the server's own ecosystem new issuers, if the keys of the present ones are not sealed under this key.

    Raises:
        Unavailable: the store did not answer; calling again is safe.
    """
    for record in await store.find_ecosystems():
        sealed = find_keys(record).values()
        if record.label == INTERNAL_LABEL and not any(is_sealed_under(one, kek) for one in sealed):
            rules = load_document(record.document)
            # Another subject: clients that trust the root before must be able to tell the two apart.
            issuers = tuple(
                replace(one, subject=write_name(f"CN=estd server {one.name} {secrets.token_hex(4)}"))
                for one in rules.issuers
            )
            rules = replace(rules, issuers=issuers)
            await apply_document(store, kek, rules, applied_by, internal=True, new_key=True)


# --- private -------------------------------------------------------------------------------------------------------


def _find_label_problems(
    documents: Sequence[Submitted], records: Sequence[EcosystemRecord], *, internal: bool
) -> list[Problem]:
    """Labels that lead elsewhere already, in what exists or in another of these documents."""
    coming = {document.label for document in documents}
    # Label → number of the document (none for what exists), ecosystem and file of each claim.
    taken: dict[str, set[tuple[int, str, str]]] = {}
    for record in records:
        if record.label not in coming:
            for label in {record.label, *peek_labels(record.document)}:
                taken.setdefault(label, set()).add((-1, record.label, ""))
    for number, document in enumerate(documents):
        for label in document.claims.values():
            taken.setdefault(label, set()).add((number, document.label or "", document.file))
    problems = []
    for number, document in enumerate(documents):
        for path, label in document.claims.items():
            where = document.where(path)
            if (label == INTERNAL_LABEL) is not (internal and path == "ecosystem.label"):
                problems.append(Problem(where, f"{label!r} belongs to the server itself", "Choose another label."))
                continue
            for other, ecosystem, file in sorted(taken[label]):
                if other == number:
                    continue
                if ecosystem == document.label:
                    if path == "ecosystem.label":
                        what = f"{label!r} is the ecosystem of {file} too"
                        problems.append(Problem(where, what, "Apply one of them."))
                else:
                    of = f" of {file}" if file else ""
                    what = f"{label!r} leads to the ecosystem {ecosystem!r}{of}"
                    problems.append(Problem(where, what, "Choose another label."))
    return problems
