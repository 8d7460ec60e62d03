"""The EST operations (RFC 7030 §4.1, §4.2, §4.5), one of estd's own, and the one table that drives it all.

`ROUTES` is the whole of it: an operation that is not in the table does not exist, one without a declared access cannot be
written down, and what is not public is handed an `Admitted` or is not called at all. The deny matrix in
``tests/unit/est/test_operations.py`` is generated from the same table.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from estd.audit import Event
from estd.ca.profile import Profile
from estd.ca.wanted import decide_wanted
from estd.errors import Code, Refused, Unavailable
from estd.est import messages
from estd.est.batch import Batches
from estd.ra.admission import Admission, Admitted, Purpose, read_user
from estd.ra.bulk import Bulk
from estd.ra.directory import Directory, Place
from estd.ra.enrollment import Enrollment
from estd.ra.limits import Quotas, TurnedAway
from estd.ra.naming import decide_names
from estd.ra.order import Order, write_request_key
from estd.ra.pace import Turnstile
from estd.ra.refusals import Refusals
from estd.ra.trail import Trail
from estd.wire.csrattrs import write_csrattrs
from estd.wire.exchange import HOME, IDENTITY, Exchange, Reply
from estd.wire.pkcs10 import CertificationRequest, read_request

ROOT: Final = "/.well-known/est/"
OWN_ROOT: Final = "/estd/"
"""Below it lies what estd adds. The names below `ROOT` belong to RFC 7030 and to those that extend it (RFC 8615 §3)."""
_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class Public:
    """Anybody may call it: the answer holds no secret (RFC 7030 §4.1.2, §4.5.1)."""

    handler: Callable[[Est, Exchange, Place], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Guarded:
    """Only who is admitted for that purpose may call it; the handler has no other way to learn who and where."""

    purpose: Purpose
    handler: Callable[[Est, Exchange, Admitted], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Streamed(Guarded):
    """As `Guarded`; the handler takes the body as it comes, and may answer before its end."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: how it is called, who may call it and what carries it out."""

    operation: str
    method: str
    access: Public | Guarded
    root: str = ROOT


class Est:
    """Answers EST requests for one worker. `directory` is replaced from outside when the store says so."""

    def __init__(
        self,
        directory: Directory,
        admission: Admission,
        enrollment: Enrollment,
        trail: Trail,
        count_tolerance: Callable[[str, str], None],
        quotas: Quotas,
        turnstile: Turnstile,
        bulk: Bulk,
        refusals: Refusals,
    ) -> None:
        self.directory = directory
        self._admission = admission
        self._enrollment = enrollment
        self._trail = trail
        self._count_tolerance = count_tolerance
        self._quotas = quotas
        self._turnstile = turnstile
        self._refusals = refusals
        self._batches = Batches(bulk)

    async def answer(self, exchange: Exchange) -> tuple[str, str, Reply]:
        """Operation and outcome (for metrics) and the answer; what is raised is a fault of ours."""
        label: str | None = None
        operation, allow = "unknown", ""
        try:
            label, route = _find_route(exchange.path)
            operation, allow = route.operation, _ALLOW[route.method]
            _check_method(exchange, route)
            reply = await self._carry_out(exchange, label, route.access)
        except TurnedAway as reason:
            # Added up in reports (`estd.ra.limits`): a storm must not cost a record for each of its requests.
            return operation, reason.code.value, messages.write_refusal(reason, exchange.request_id)
        except (Refused, Unavailable) as reason:
            await self._record_refusal(exchange, operation, label, reason)
            return operation, reason.code.value, messages.write_refusal(reason, exchange.request_id, allow)
        except Exception:
            # No certificate went out, so the trail must say so; the web floor logs what happened and answers.
            fault = Unavailable(Code.INTERNAL, "estd is at fault; its log has this request id")
            await self._record_refusal(exchange, operation, label, fault)
            raise
        return operation, "ok", reply

    def note_refusal(self, exchange: Exchange, reason: Refused) -> str:
        """Write down what was refused before it was a whole request; the operation, for metrics."""
        label, operation = None, "unknown"
        try:
            label, route = _find_route(exchange.path)
            operation = route.operation
        except Refused:
            pass  # that nothing is there is not what it was refused for
        event = self._write_refusal(exchange, operation, label, reason)
        if self._refusals.is_for_itself(event, exchange.peer):
            self._trail.note(event)
        return operation

    async def _carry_out(self, exchange: Exchange, label: str | None, access: Public | Guarded) -> Reply:
        # The directory may be replaced while we wait: one request sees one of them.
        directory = self.directory
        place = directory.find_place(label)
        self._check_slash(exchange.path, place)
        share = self._quotas.enter(place.ecosystem, exchange.peer)
        try:
            if not self._turnstile.lets_in(place.ecosystem.ecosystem_id, share.in_hand, self._quotas.in_hand):
                await self._turnstile.wait(place.ecosystem.ecosystem_id)
            if isinstance(access, Public):
                return await access.handler(self, exchange, place)
            admitted = await self._admission.admit(
                directory, place, access.purpose, exchange.peer, exchange.headers.get("authorization"), exchange.at
            )
            exchange.peer.memo[HOME] = place.ecosystem.ecosystem_id
            exchange.peer.memo[IDENTITY] = admitted.credential.identity
            return await access.handler(self, exchange, admitted)
        except TurnedAway as reason:
            raise share.turn_away(reason.limit) from None
        finally:
            share.leave()

    def _check_slash(self, path: str, place: Place) -> None:
        """RFC 7030 §3.2.2 writes paths without a slash at the end; some clients put one there."""
        if not path.endswith("/"):
            return
        tolerance = "trailing-slash"
        if place.profile.strict:
            detail = f"this profile is strict, and {messages.TOLERANCES[tolerance]}"
            raise Refused(Code.NOT_STRICT, detail, "RFC 7030 §3.2.2")
        self._count_tolerance(place.ecosystem.label, tolerance)

    # --- operations --------------------------------------------------------------------------------------------------

    async def cacerts(self, exchange: Exchange, place: Place) -> Reply:
        """RFC 7030 §4.1: the current CA certificates of the ecosystem."""
        return messages.write_cacerts(
            place.ecosystem.cacerts, exchange.headers.get("user-agent", ""), place.ecosystem.rules.wrap
        )

    async def csrattrs(self, exchange: Exchange, place: Place) -> Reply:
        """RFC 7030 §4.5 as clarified by RFC 9908: what the profile wants in a request."""
        wanted = decide_wanted(place.profile)
        return messages.write_csrattrs(None if wanted is None else write_csrattrs(wanted))

    async def enroll(self, exchange: Exchange, admitted: Admitted) -> Reply:
        """RFC 7030 §4.2.1 and §4.2.2: a certificate, the first or the next; the purpose tells them apart."""
        place = admitted.place
        profile = place.profile
        der, tolerances = messages.read_enroll_body(
            exchange.headers.get("content-type"), exchange.body, strict=profile.strict
        )
        for tolerance in tolerances:
            self._count_tolerance(place.ecosystem.label, tolerance)
        request = read_request(der)
        check_binding(request, profile, exchange)
        order = decide_order(admitted, request, exchange)
        return messages.write_certificate(await self._enrollment.enroll(order))

    async def batch(self, exchange: Exchange, admitted: Admitted) -> Reply:
        """RFC 7030 §3.7: certificates for many devices, asked for by a registration authority; see `estd.est.batch`."""
        label, _ = _find_route(exchange.path)

        async def readmit() -> Admitted:
            directory = self.directory
            at = datetime.now(UTC).replace(microsecond=0)
            return await self._admission.admit(
                directory, directory.find_place(label), Purpose.BATCH, exchange.peer, None, at
            )

        return self._batches.answer(exchange, admitted, readmit)

    async def _record_refusal(
        self, exchange: Exchange, operation: str, label: str | None, reason: Refused | Unavailable
    ) -> None:
        event = self._write_refusal(exchange, operation, label, reason)
        if self._refusals.is_for_itself(event, exchange.peer):
            await self._trail.record(event)

    def _write_refusal(
        self, exchange: Exchange, operation: str, label: str | None, reason: Refused | Unavailable
    ) -> Event:
        ecosystem_id = None
        try:
            ecosystem_id = self.directory.find_place(label).ecosystem.ecosystem_id
        except (Refused, Unavailable):
            pass  # the label itself is what was refused, or leads nowhere now; the event says so
        return Event(
            at=exchange.at,
            kind=f"est.{operation}",
            outcome="refused" if isinstance(reason, Refused) else "failed",
            ecosystem=label,
            ecosystem_id=ecosystem_id,
            code=reason.code.value,
            detail=reason.detail,
            identity=_presented_identity(exchange),
            address=exchange.peer.address,
            request_id=exchange.request_id,
        )


ROUTES: Final[tuple[Route, ...]] = (
    Route("cacerts", "GET", Public(Est.cacerts)),
    Route("csrattrs", "GET", Public(Est.csrattrs)),
    Route("simpleenroll", "POST", Guarded(Purpose.ENROLL, Est.enroll)),
    Route("simplereenroll", "POST", Guarded(Purpose.REENROLL, Est.enroll)),
    Route("batch", "POST", Streamed(Purpose.BATCH, Est.batch), OWN_ROOT),
)
_BY_PLACE: Final[Mapping[tuple[str, str], Route]] = {(route.root, route.operation): route for route in ROUTES}
_ALLOW: Final = {"GET": "GET, HEAD", "POST": "POST"}
"""The Allow header of a resource that is asked for by that method."""
_CODE_SHAPE: Final = re.compile(r"(?:[0-9a-z]{5}-){3}[0-9a-z]{5}\Z", re.IGNORECASE)
"""How `estd.ra.codes` writes enrollment codes."""


def takes_stream(method: str, path: str) -> bool:
    """Whether a request is for an operation that takes its body as it comes; asked before anything else is known."""
    if not path.startswith(OWN_ROOT):
        return False
    route = _BY_PLACE.get((OWN_ROOT, path.rstrip("/").rpartition("/")[2]))
    return route is not None and route.method == method and isinstance(route.access, Streamed)


@functools.lru_cache(maxsize=1024)
def _find_route(path: str) -> tuple[str | None, Route]:
    """RFC 7030 §3.2.2: the root, at most one label, the operation. Nothing is decoded, folded or collapsed.

    Kept: a worker hears few paths, each very often.
    """
    root = ROOT if path.startswith(ROOT) else OWN_ROOT
    if not path.startswith(root):
        raise Refused(Code.PATH_UNKNOWN, f"EST lives below {ROOT}", "RFC 7030 §3.2.2")
    segments = path[len(root) :].split("/")
    if segments[-1] == "" and len(segments) > 1:
        segments.pop()  # see `Est._check_slash`
    label = segments[0] if len(segments) == 2 else None
    route = _BY_PLACE.get((root, segments[-1]))
    if len(segments) > 2 or route is None or (label is not None and not _LABEL.match(label)):
        raise Refused(Code.PATH_UNKNOWN, "no such EST operation here", "RFC 7030 §3.2.2")
    return label, route


def _check_method(exchange: Exchange, route: Route) -> None:
    if exchange.method != route.method and not (exchange.method == "HEAD" and route.method == "GET"):
        raise Refused(Code.METHOD_NOT_ALLOWED, f"{route.operation} is asked for by {route.method}", "RFC 9110 §15.5.6")


def check_binding(request: CertificationRequest, profile: Profile, exchange: Exchange) -> None:
    """RFC 7030 §3.5: a channel binding in the CSR must be this channel's, and a profile may demand one.

    TLS 1.2 binds by tls-unique; for TLS 1.3, where that is undefined, the value is tls-exporter (RFC 9266 §3), as
    RFC 9148 §3 does it. It may stand in challengePassword or in estIdentityLinking (RFC 7894 §3.3).
    """
    if request.otp_challenge is not None or request.revocation_challenge is not None:
        # RFC 7894 §3: every challenge that is included has to verify, and these two are not announced.
        raise Refused(
            Code.BINDING_REFUSED, "otpChallenge and revocationChallenge cannot be verified here", "RFC 7894 §3"
        )
    presented = {request.est_identity_linking, request.challenge_password} - {None}
    if not presented:
        if profile.require_binding:
            raise Refused(
                Code.BINDING_REFUSED,
                "this profile wants the TLS channel binding in challengePassword; see csrattrs",
                "RFC 7030 §3.5",
            )
        return
    channel = exchange.peer.channel
    bindings = [channel.channel_binding(kind) for kind in ("tls-exporter", "tls-unique")] if channel else []
    expected = {messages.write_binding(binding) for binding in bindings if binding is not None}
    if not presented <= expected:
        raise Refused(
            Code.BINDING_REFUSED,
            "challengePassword or estIdentityLinking is not the channel binding of this TLS connection",
            "RFC 7030 §3.5",
        )


def decide_order(admitted: Admitted, request: CertificationRequest, exchange: Exchange) -> Order:
    """What exactly is to be issued: the names are fixed here, the rest is the profile's."""
    place, credential = admitted.place, admitted.credential
    subject, san = decide_names(admitted, request)
    place.ecosystem.check_key(request.spki_sha256)
    operation, csr_sha256 = admitted.purpose.value, request.sha256
    return Order(
        request_key=write_request_key(place.ecosystem.ecosystem_id, credential.identity, operation, csr_sha256),
        ecosystem_id=place.ecosystem.ecosystem_id,
        ecosystem_version=place.ecosystem.version,
        node_id=place.ecosystem.node_id,
        ecosystem=place.ecosystem.label,
        profile=place.profile.name,
        retry_window=place.profile.retry_window,
        operation=operation,
        identity=credential.identity,
        device=credential.device,
        csr=request.der,
        csr_sha256=csr_sha256,
        subject=subject,
        san=san,
        code_id=credential.code.code_id if credential.code is not None and credential.code.single_use else None,
        address=exchange.peer.address,
        request_id=exchange.request_id,
    )


def _presented_identity(exchange: Exchange) -> str:
    """Who a refused caller claimed to be, so that guessing against one device can be found in the audit trail."""
    claimed = read_user(exchange.headers.get("authorization"))
    if claimed is not None:
        # Somebody put the code where the name belongs: it is still good, so it is not written down.
        return "code:?" if _CODE_SHAPE.match(claimed) else f"code:{claimed}"
    if exchange.peer.certificates:
        return "x509:" + hashlib.sha256(exchange.peer.certificates[0]).hexdigest()
    return ""
