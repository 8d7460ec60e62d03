"""How a device gets its certificate and, later, the next one: the whole course of `estd enroll`.

Trust first (RFC 7030 §4.1), then what the server wants in a request (§4.5), then the request (§4.2), then one switch of
the directory (`estd.device.folder`). Whatever happens in between, running it again goes on where it was left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd.asn1.oids import OIDS
from estd.device.answers import ServerRefused, WrongServer, build_chain
from estd.device.client import DEFAULT_PATIENCE, NOBODY, Credential, EstClient, Patience
from estd.device.folder import Folder, Identity, open_folder
from estd.device.requests import (
    DEFAULT_KEY_TYPE,
    SigningRequest,
    generate_key,
    read_names,
    read_subject,
    write_renewal,
    write_request,
)
from estd.errors import Invalid, Problem
from estd.names import fingerprint
from estd.wire.csrattrs import Wanted

_SERVER_DISLIKES_REQUEST = (400, 413, 415, 422)


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of `enroll`."""

    url: str
    trust: Path
    directory: Path
    label: str | None = None
    credential: Credential = NOBODY
    """Not looked at for a renewal: the directory's own certificate is what is renewed."""
    key_type: str | None = None
    """None: what the server asks for, or else `DEFAULT_KEY_TYPE`."""
    subject: str = ""
    """RFC 4514; empty leaves it to the server."""
    san: tuple[str, ...] = ()
    renew: bool = False
    same_key: bool = False
    """Renew for the key there is, instead of a new one."""
    replace: bool = False
    """Enroll although the directory holds an identity."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of it."""

    certificate: x509.Certificate
    authorities: tuple[x509.Certificate, ...]
    key_type: str
    resumed: bool
    """The request of an earlier run, whose answer was lost, was sent again."""


async def enroll(
    wish: Wish,
    patience: Patience = DEFAULT_PATIENCE,
    on_wait: Callable[[str, int], None] | None = None,
) -> Enrolled:
    """Get a certificate and put it, with its key, into the wish's directory.

    Raises:
        Invalid: the wish cannot work.
        ServerRefused, TryLater, WrongServer: see `estd.device.answers`; the directory holds what it held before.
    """
    with open_folder(wish.directory) as folder:
        current = folder.read_identity()
        _check(wish, folder, current)
        credential = Credential(folder.certificate, folder.key) if wish.renew else wish.credential
        async with EstClient(
            wish.url, wish.trust, wish.label, credential, patience=patience, on_wait=on_wait
        ) as client:
            authorities = await client.cacerts()
            purpose = _describe(wish, current)
            request = folder.find_request(purpose)
            resumed = request is not None
            if request is None:
                key_type = wish.key_type or _choose_key_type(await _find_wanted(client), wish)
                request = await asyncio.to_thread(_make_request, wish, current, key_type)
                folder.keep_request(request, purpose)
            try:
                ask = client.simplereenroll if wish.renew else client.simpleenroll
                certificate = await ask(request)
            except ServerRefused as refused:
                if refused.status in _SERVER_DISLIKES_REQUEST:
                    folder.drop_request()  # the next run makes another one
                raise
        intermediates, _root = build_chain(certificate, authorities)
        folder.save(Identity(request.key, certificate, tuple(intermediates)), authorities)
    return Enrolled(certificate, authorities, request.key.key_type, resumed)


def _check(wish: Wish, folder: Folder, current: Identity | None) -> None:
    if wish.renew and current is None:
        raise Invalid([Problem(str(folder.path), "holds no certificate to renew", "Enroll first, without --renew.")])
    if not wish.renew and current is not None and not wish.replace:
        until = current.certificate.not_valid_after_utc
        raise Invalid(
            [
                Problem(
                    str(folder.path),
                    f"holds a certificate already, valid until {until:%Y-%m-%d}",
                    "Renew it with --renew, or enroll anew with --replace.",
                )
            ]
        )


def _describe(wish: Wish, current: Identity | None) -> dict[str, str]:
    """What two runs must have in common for the second to go on with the first one's request."""
    return {
        "operation": "simplereenroll" if wish.renew else "simpleenroll",
        "url": wish.url,
        "label": wish.label or "",
        "device": wish.credential.device or "",
        "credential": str(wish.credential.certificate or ""),
        "key_type": wish.key_type or "",
        "subject": wish.subject,
        "san": " ".join(wish.san),
        "same_key": str(wish.same_key),
        "current": "" if current is None else fingerprint(current.certificate.public_bytes(Encoding.DER)),
    }


async def _find_wanted(client: EstClient) -> Wanted:
    """What the server wants in a request; servers that say it wrong are taken as saying nothing."""
    try:
        return await client.csrattrs() or Wanted()
    except WrongServer:
        return Wanted()


def _choose_key_type(wanted: Wanted, wish: Wish) -> str:
    """A kind of key that the server takes."""
    if OIDS["challengePassword"] in wanted.attributes:
        # RFC 7030 §3.5; `ssl` cannot export the channel binding of TLS 1.3 (RFC 9266).
        what = "wants each request bound to its TLS connection, which this client cannot do"
        where = f"profile at label {wish.label!r}" if wish.label else "the default profile"
        raise Invalid([Problem(where, what, "Use another client, or set require_binding = false there.")])
    if not wanted.key_types or DEFAULT_KEY_TYPE in wanted.key_types:
        return DEFAULT_KEY_TYPE
    return wanted.key_types[0]  # the order says nothing: it went through a SET


def _make_request(wish: Wish, current: Identity | None, key_type: str) -> SigningRequest:
    if wish.renew:
        assert current is not None
        if wish.same_key:
            return write_renewal(current.key, current.certificate)
        return write_renewal(generate_key(wish.key_type or current.key.key_type), current.certificate)
    return write_request(generate_key(key_type), read_subject(wish.subject), read_names(wish.san))
