"""Who may ask: certificates of makers and of ours, enrollment codes, and everything that is refused instead.

Which path of a maker is believed is in test_paths.py; here is what becomes of it on a connection, and of our own.
"""

from __future__ import annotations

import base64
import time
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from factory import (
    CLIENT_AUTH,
    NOW,
    SERVER_AUTH,
    Party,
    make_device,
    make_maker,
    make_name,
    make_peer,
    make_record,
    make_rules,
    unseal_issuer,
)
from odd_certificates import UNFIT_NAMES, make_odd

from estd.audit import Event
from estd.errors import Code, Refused, Unavailable
from estd.ra import paths
from estd.ra.admission import Admission, Admitted, Purpose, hash_secret
from estd.ra.directory import Directory
from estd.store.contract import (
    Device,
    EcosystemRecord,
    EnrollmentCode,
    Intent,
    Issued,
    NewIssuer,
    Outcome,
    Revocation,
)
from estd.store.postgres import PostgresStore
from estd.wire.exchange import Peer

EVENT = Event(NOW, "test", "granted")

FROM_REQUEST = 'subject = "request"\n[[profile.device.subject_attribute]]\ntype = "commonName"\n'


class Setting:
    """One ecosystem in a real store, as a worker sees it."""

    def __init__(self, store: PostgresStore, maker: Party, record: EcosystemRecord) -> None:
        self.store = store
        self.maker = maker
        self.record = record
        self.directory = Directory([record], [], None)
        self.admission = Admission(store)

    async def admit(
        self,
        peer: Peer,
        purpose: Purpose = Purpose.ENROLL,
        authorization: str | None = None,
        now: datetime = NOW,
        label: str = "campus",
    ) -> Admitted:
        place = self.directory.find_place(label)
        return await self.admission.admit(self.directory, place, purpose, peer, authorization, now)

    async def refusal(self, peer: Peer, **arguments: Any) -> Code:
        with pytest.raises(Refused) as caught:
            await self.admit(peer, **arguments)
        return caught.value.code

    async def issue(self, name: str = "device-1", profile: str = "device", **options: object) -> Party:
        """A certificate of ours, on record."""
        issuer = next(row for row in self.record.issuers if row.name == "devices")
        authority = unseal_issuer(issuer)
        device = make_device(authority, name, **{"eku": [CLIENT_AUTH], **options})
        await self.put_on_record(device, profile)
        return device

    async def put_on_record(self, device: Party, profile: str) -> None:
        issuer = next(row for row in self.record.issuers if row.name == "devices")
        number = device.certificate.serial_number
        serial = number.to_bytes(number.bit_length() // 8 + 1, "big")
        intent = Intent(
            request_key=hash_secret(device.pem),
            issuer_id=issuer.issuer_id,
            serial=serial,
            ecosystem_id=self.record.ecosystem_id,
            ecosystem_version=1,
            node_id=self.record.node_id,
            profile=profile,
            operation="simpleenroll",
            identity="test",
            device=device.certificate.subject.rfc4514_string().removeprefix("CN="),
            csr_sha256=bytes(32),
            spki_sha256=bytes(32),
            tbs_sha256=bytes(32),
            journal="test",
            code_id=None,
            created_at=NOW,
        )
        assert await self.store.reserve_intents([intent]) == [Outcome.RESERVED]
        await self.store.record_issued([Issued(issuer.issuer_id, serial, device.der, NOW, NOW, NOW, EVENT)])


async def make_setting(store: PostgresStore, profile: str = "") -> Setting:
    maker = make_maker()
    rules = make_rules(maker, profile=profile)
    made = make_record(rules)
    issuers = [
        NewIssuer(issuer.name, "root" if issuer.parent_id is not None else None, issuer.certificate, issuer.sealed_key)
        for issuer in made.issuers
    ]
    record = await store.record_ecosystem("campus", made.document, issuers, 0, "test", EVENT)
    return Setting(store, maker, record)


@pytest.fixture
async def setting(store: PostgresStore) -> Setting:
    return await make_setting(store)


# --- a maker's devices -----------------------------------------------------------------------------------------------


async def test_a_makers_device_is_admitted(setting: Setting) -> None:
    device = make_device(setting.maker, "pump-7")
    admitted = await setting.admit(make_peer(device.der))
    credential = admitted.credential
    assert (credential.kind, credential.anchor, credential.device) == ("anchor", "maker", "pump-7")
    assert credential.subject == make_name("pump-7").public_bytes()
    assert credential.san is None
    assert credential.identity == "x509:" + sha256(device.der).hexdigest()


async def test_a_stranger_is_looked_at_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its connection lasts and the ecosystem stays as it is; it gets the same answer for nothing."""
    looks: list[str] = []
    verify = paths._verify
    monkeypatch.setattr(paths, "_verify", lambda *given: looks.append("path") or verify(*given))
    peer = make_peer(make_device(make_maker("Other")).der)
    for _ in range(3):
        assert await setting.refusal(peer) is Code.CERTIFICATE_UNTRUSTED
    assert len(looks) == 1
    assert await setting.refusal(make_peer(*peer.certificates)) is Code.CERTIFICATE_UNTRUSTED
    assert len(looks) == 2


async def test_a_devices_path_is_looked_for_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    verify = paths._verify
    monkeypatch.setattr(paths, "_verify", lambda *given: looks.append("path") or verify(*given))
    peer = make_peer(make_device(setting.maker).der)
    for _ in range(3):
        await setting.admit(peer)
    assert len(looks) == 1
    # Another version of the ecosystem may have other anchors.
    record = make_record(make_rules(setting.maker), setting.record.ecosystem_id, version=2)
    setting.directory = Directory([record], [], None)
    await setting.admit(peer)
    assert len(looks) == 2


@pytest.mark.parametrize("purpose", [Purpose.ENROLL, Purpose.REENROLL])
async def test_a_certificate_that_is_unfit_is_refused_for_every_purpose(setting: Setting, purpose: Purpose) -> None:
    own = await setting.issue(eku=[SERVER_AUTH])
    odd = make_odd(setting.maker, version=b"\xa0\x03\x02\x01\x04")
    for shown in (own.der, odd, b"\x30\x03\x02\x01\x01"):
        assert await setting.refusal(make_peer(shown), purpose=purpose) is Code.CERTIFICATE_UNFIT


async def test_nobody_is_not_admitted(setting: Setting) -> None:
    assert await setting.refusal(make_peer()) is Code.CREDENTIAL_MISSING
    assert await setting.refusal(make_peer(), purpose=Purpose.REENROLL) is Code.CREDENTIAL_MISSING


async def test_time_is_judged_on_every_request_of_a_kept_connection(setting: Setting) -> None:
    peer = make_peer(make_device(setting.maker, starts=NOW, ends=NOW + timedelta(minutes=5)).der)
    await setting.admit(peer)
    assert peer.memo
    await setting.admit(peer, now=NOW + timedelta(minutes=5))
    assert await setting.refusal(peer, now=NOW + timedelta(minutes=5, seconds=1)) is Code.CERTIFICATE_EXPIRED
    assert await setting.refusal(peer, now=NOW - timedelta(minutes=1)) is Code.CERTIFICATE_NOT_YET_VALID


@pytest.mark.parametrize("wrong_by", [timedelta(days=-3650), timedelta(days=3652)])
async def test_a_clock_at_which_nothing_could_be_issued_refuses_nobody_for_good(
    setting: Setting, wrong_by: timedelta
) -> None:
    """A device that is turned away for its dates may give up; one that is told to come back does not."""
    device = make_device(setting.maker, ends=NOW + timedelta(days=9))
    await add_code(setting, expires_at=NOW + timedelta(days=9))
    asked = [(make_peer(device.der), None)]
    if wrong_by > timedelta():
        asked.append((make_peer(), basic("pump-7", "ABCDE-12345")))
    for peer, authorization in asked:
        with pytest.raises(Unavailable) as caught:
            await setting.admit(peer, authorization=authorization, now=NOW + wrong_by)
        assert caught.value.code is Code.ISSUER_NOT_VALID


async def test_a_clock_that_is_set_back_ends_a_pause(setting: Setting) -> None:
    await add_code(setting)
    for _ in range(10):
        assert await setting.refusal(make_peer(), authorization=basic("pump-7", "guess")) is Code.CREDENTIAL_INVALID
    authorization = basic("pump-7", "ABCDE-12345")
    with pytest.raises(Unavailable):
        await setting.admit(make_peer(), authorization=authorization, now=NOW)
    assert (await setting.admit(make_peer(), authorization=authorization, now=NOW - timedelta(hours=1))).credential


async def test_an_anchor_that_is_taken_away_counts_no_more_on_a_kept_connection(setting: Setting) -> None:
    peer = make_peer(make_device(setting.maker).der)
    await setting.admit(peer)
    rules = make_rules(make_maker("Successor"))
    record = make_record(rules, setting.record.ecosystem_id, version=2)
    setting.directory = Directory([record], [], None)
    assert await setting.refusal(peer) is Code.CERTIFICATE_UNTRUSTED


@pytest.mark.parametrize("what", UNFIT_NAMES)
@pytest.mark.parametrize("subject", ["credential", "request"])
async def test_a_makers_certificate_that_names_no_device_is_unfit(
    store: PostgresStore, what: str, subject: str
) -> None:
    setting = await make_setting(store, FROM_REQUEST if subject == "request" else "")
    unfit = make_odd(setting.maker, name=UNFIT_NAMES[what])
    assert await setting.refusal(make_peer(unfit)) is Code.CERTIFICATE_UNFIT
    stranger = make_odd(name=UNFIT_NAMES[what])
    assert await setting.refusal(make_peer(stranger)) is Code.CERTIFICATE_UNTRUSTED


# --- our own certificates --------------------------------------------------------------------------------------------


async def test_our_own_certificate_renews(setting: Setting) -> None:
    device = await setting.issue()
    admitted = await setting.admit(make_peer(device.der), purpose=Purpose.REENROLL)
    assert admitted.credential.issued is not None
    assert admitted.credential.issued.profile == "device"
    assert admitted.purpose is Purpose.REENROLL


async def test_a_certificate_that_is_not_on_record_is_refused_whoever_signed_it(setting: Setting) -> None:
    device = await setting.issue()
    twin = await setting.issue("device-2", serial=device.certificate.serial_number + 1)
    # Same issuer and serial as a certificate on record, but not that certificate.
    issuer = next(row for row in setting.record.issuers if row.name == "devices")
    authority = unseal_issuer(issuer)
    forged = make_device(authority, "device-1", serial=twin.certificate.serial_number, eku=[CLIENT_AUTH])
    unknown = make_device(authority, "device-1", eku=[CLIENT_AUTH])
    for peer in (make_peer(forged.der), make_peer(unknown.der)):
        assert await setting.refusal(peer, purpose=Purpose.REENROLL) is Code.CERTIFICATE_UNTRUSTED


async def test_a_certificate_that_only_claims_our_issuer_is_refused(setting: Setting) -> None:
    issuer = next(row for row in setting.record.issuers if row.name == "devices")
    ours = x509.load_der_x509_certificate(issuer.certificate)
    forger = Party(ours, make_maker().key)  # our issuer's name, another key
    device = await setting.issue()
    for serial in (device.certificate.serial_number, 4711):
        forged = make_device(forger, "device-1", serial=serial, eku=[CLIENT_AUTH])
        assert forged.certificate.issuer == ours.subject
        for purpose in (Purpose.ENROLL, Purpose.REENROLL):
            assert await setting.refusal(make_peer(forged.der), purpose=purpose) is Code.CERTIFICATE_UNTRUSTED


async def test_a_maker_that_has_the_name_of_our_issuer_is_still_a_maker(store: PostgresStore) -> None:
    name = make_rules(make_maker()).label
    first = await make_setting(store)
    issuer = next(row for row in first.record.issuers if row.name == "devices")
    (common_name,) = x509.load_der_x509_certificate(issuer.certificate).subject
    namesake = make_maker(str(common_name.value))
    assert namesake.certificate.subject == x509.load_der_x509_certificate(issuer.certificate).subject
    document = make_record(make_rules(namesake)).document
    second = await store.record_ecosystem(name, document, [], first.record.version, "test", EVENT)
    setting = Setting(store, namesake, second)
    admitted = await setting.admit(make_peer(make_device(namesake, "pump-7").der))
    assert (admitted.credential.kind, admitted.credential.anchor) == ("anchor", "maker")
    device = await setting.issue()
    assert (await setting.admit(make_peer(device.der), purpose=Purpose.REENROLL)).credential.kind == "issued"


async def test_a_revoked_certificate_is_refused_on_fresh_and_kept_connections(setting: Setting) -> None:
    device = await setting.issue()
    kept = make_peer(device.der)
    await setting.admit(kept, purpose=Purpose.REENROLL)
    stored = (await setting.store.find_certificates(None, None, 1))[0]
    await setting.store.record_revocation(Revocation(stored.issuer_id, stored.serial, "keyCompromise", NOW), EVENT)
    # A worker that has not heard of it yet still refuses where it has to read the row.
    assert await setting.refusal(make_peer(device.der), purpose=Purpose.REENROLL) is Code.CERTIFICATE_REVOKED
    setting.directory = Directory([setting.record], await setting.store.find_revocations(), None)
    assert await setting.refusal(kept, purpose=Purpose.REENROLL) is Code.CERTIFICATE_REVOKED


async def test_a_birth_certificate_cannot_renew(setting: Setting) -> None:
    device = make_device(setting.maker)
    assert await setting.refusal(make_peer(device.der), purpose=Purpose.REENROLL) is Code.NOT_AUTHORIZED


async def test_a_certificate_of_one_profile_cannot_renew_under_another(setting: Setting) -> None:
    device = await setting.issue(profile="device")
    peer = make_peer(device.der)
    assert await setting.refusal(peer, purpose=Purpose.REENROLL, label="campus-gateways") is Code.NOT_AUTHORIZED


async def test_a_profile_names_which_certificates_may_enroll(setting: Setting) -> None:
    device = make_peer((await setting.issue(profile="device")).der)
    gateway = make_peer((await setting.issue("gw", profile="gateway")).der)
    assert (await setting.admit(device, label="campus-gateways")).purpose is Purpose.ENROLL
    assert await setting.refusal(device) is Code.NOT_AUTHORIZED
    assert await setting.refusal(gateway, label="campus-gateways") is Code.NOT_AUTHORIZED
    idevid = make_peer(make_device(setting.maker).der)
    assert await setting.refusal(idevid, label="campus-gateways") is Code.NOT_AUTHORIZED


async def test_a_profile_may_never_renew(store: PostgresStore) -> None:
    setting = await make_setting(store, 'renew = "never"')
    device = await setting.issue()
    assert await setting.refusal(make_peer(device.der), purpose=Purpose.REENROLL) is Code.RENEWAL_REFUSED


async def test_simpleenroll_with_our_own_certificate_can_be_taken_as_a_renewal(store: PostgresStore) -> None:
    setting = await make_setting(store, "treat_as_reenroll = true")
    device = await setting.issue()
    assert (await setting.admit(make_peer(device.der))).purpose is Purpose.REENROLL
    idevid = make_device(setting.maker)
    assert (await setting.admit(make_peer(idevid.der))).purpose is Purpose.ENROLL


# --- enrollment codes ------------------------------------------------------------------------------------------------


def basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


async def add_code(setting: Setting, device: str = "pump-7", secret: str = "ABCDE-12345", **options: Any) -> None:
    fields: dict[str, Any] = {
        "code_id": 0,
        "ecosystem_id": setting.record.ecosystem_id,
        "device": device,
        "secret_sha256": hash_secret(secret),
        "single_use": True,
        "profile": None,
        "expires_at": None,
        "created_at": NOW,
        "spent_at": None,
    } | options
    await setting.store.record_codes([EnrollmentCode(**fields)])


async def test_a_code_admits_its_device(setting: Setting) -> None:
    await add_code(setting)
    admitted = await setting.admit(make_peer(), authorization=basic("pump-7", "ABCDE-12345"))
    credential = admitted.credential
    assert (credential.kind, credential.device) == ("code", "pump-7")
    assert credential.subject == make_name("pump-7").public_bytes()
    assert credential.code is not None


@pytest.mark.parametrize("user", ["PUMP-7", " pump-7", "pump-7 "])
async def test_a_devices_name_is_normalised_once(setting: Setting, user: str) -> None:
    await add_code(setting)
    admitted = await setting.admit(make_peer(), authorization=basic(user, "ABCDE-12345"))
    assert admitted.credential.device == "pump-7"


@pytest.mark.parametrize(
    ("device", "user", "subject"),
    [
        ("c-4", " C-4 ", "C-4"),
        ("pump 7", "Pump   7", "Pump 7"),
        ("strasse 9", "Straße 9", "strasse 9"),
    ],
)
async def test_the_subject_is_the_name_on_record_in_the_letters_that_were_typed(
    setting: Setting, device: str, user: str, subject: str
) -> None:
    await add_code(setting, device)
    admitted = await setting.admit(make_peer(), authorization=basic(user, "ABCDE-12345"))
    assert admitted.credential.subject == make_name(subject).public_bytes()


async def test_a_name_too_long_for_a_common_name_is_refused_where_it_would_become_one(store: PostgresStore) -> None:
    setting = await make_setting(store)
    for characters in (64, 65, 128):
        await add_code(setting, "x" * characters)
    assert (await setting.admit(make_peer(), authorization=basic("x" * 64, "ABCDE-12345"))).credential
    for characters in (65, 128):
        authorization = basic("x" * characters, "ABCDE-12345")
        assert await setting.refusal(make_peer(), authorization=authorization) is Code.SUBJECT_REFUSED
    record = make_record(make_rules(setting.maker, profile=FROM_REQUEST), setting.record.ecosystem_id, 2)
    setting.directory = Directory([record], [], None)
    admitted = await setting.admit(make_peer(), authorization=basic("x" * 128, "ABCDE-12345"))
    assert admitted.credential.device == "x" * 128


@pytest.mark.parametrize(
    "authorization",
    [
        basic("pump-7", "wrong"),
        basic("pump-7", ""),
        basic("pump-8", "ABCDE-12345"),
        basic("*", "*"),
        basic("pump-%", "ABCDE-12345"),
        basic("pump-7' OR '1'='1", "ABCDE-12345"),
        basic("pump-7", "ABCDE-12345 "),
        basic("pump-7", "*"),
        "Basic !!!",
        "Basic \xe9",
        "Basic \udcff\udcfe",
        basic("pump-7", "ABCDE-12345") + "\udcff",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Bearer abc",
        "Digest username=pump-7",
        "",
    ],
)
async def test_anything_else_does_not(setting: Setting, authorization: str) -> None:
    await add_code(setting)
    assert await setting.refusal(make_peer(), authorization=authorization) is Code.CREDENTIAL_INVALID


async def test_a_wrong_code_is_not_made_good_by_a_certificate(setting: Setting) -> None:
    device = make_device(setting.maker)
    code = await setting.refusal(make_peer(device.der), authorization=basic("pump-7", "guess"))
    assert code is Code.CREDENTIAL_INVALID


async def test_a_code_has_an_end_and_a_profile(setting: Setting) -> None:
    await add_code(setting, expires_at=NOW)
    await add_code(setting, "pump-8", profile="gateway")
    assert await setting.refusal(make_peer(), authorization=basic("pump-7", "ABCDE-12345")) is Code.CREDENTIAL_INVALID
    assert await setting.refusal(make_peer(), authorization=basic("pump-8", "ABCDE-12345")) is Code.NOT_AUTHORIZED


async def test_a_code_cannot_renew(setting: Setting) -> None:
    await add_code(setting)
    authorization = basic("pump-7", "ABCDE-12345")
    code = await setting.refusal(make_peer(), purpose=Purpose.REENROLL, authorization=authorization)
    assert code is Code.CREDENTIAL_MISSING


async def test_guessing_pauses_the_device_however_its_name_is_written(setting: Setting) -> None:
    await add_code(setting)
    for attempt in range(10):
        user = ("pump-7", "PUMP-7", " Pump-7 ")[attempt % 3]
        assert await setting.refusal(make_peer(), authorization=basic(user, "guess")) is Code.CREDENTIAL_INVALID
    with pytest.raises(Unavailable) as caught:
        await setting.admit(make_peer(), authorization=basic("pump-7", "ABCDE-12345"))
    assert caught.value.code is Code.RATE_LIMITED
    assert 0 < caught.value.retry_after_seconds <= 300
    later = NOW + timedelta(seconds=301)
    assert (await setting.admit(make_peer(), authorization=basic("pump-7", "ABCDE-12345"), now=later)).credential


async def test_the_neighbours_code_means_nothing_here(setting: Setting) -> None:
    await add_code(setting, ecosystem_id=setting.record.ecosystem_id)
    maker = make_maker("South")
    made = make_record(make_rules(maker, "south"), 2)
    south = await setting.store.record_ecosystem("south", made.document, [], 0, "test", EVENT)
    setting.directory = Directory([setting.record, south], [], None)
    code = await setting.refusal(make_peer(), authorization=basic("pump-7", "ABCDE-12345"), label="south")
    assert code is Code.CREDENTIAL_INVALID


async def test_inventory_is_needed_where_the_profile_takes_names_from_it(store: PostgresStore) -> None:
    setting = await make_setting(store, 'subject = "inventory"')
    device = make_device(setting.maker, "pump-7")
    assert await setting.refusal(make_peer(device.der)) is Code.NOT_AUTHORIZED
    row = Device(setting.record.ecosystem_id, "pump-7", "CN=Pump 7", ())
    await store.record_devices([row])
    assert (await setting.admit(make_peer(device.der))).inventory == row


async def test_store_errors_are_not_admissions(setting: Setting) -> None:
    device = await setting.issue()
    await setting.store.close()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await setting.admit(make_peer(device.der), purpose=Purpose.REENROLL)
    assert time.monotonic() - started < 10
