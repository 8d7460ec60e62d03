import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estd.asn1.oids import OIDS
from estd.device.answers import ServerRefused, TryLater, WrongServer
from estd.device.client import Credential, Patience
from estd.device.enrolling import Wish, enroll
from estd.device.folder import Folder
from estd.device.requests import read_certificates, read_key
from estd.errors import Invalid
from estd.wire.csrattrs import Wanted, write_csrattrs

ONCE = Patience(tries=1)


def make_wish(script: Any, directory: Path, **changes: Any) -> Wish:
    wish = Wish(script.url, script.trust, directory, "plant", Credential(device="pump", code="x"), subject="CN=pump")
    return replace(wish, **changes)


def posts(script: Any) -> list[x509.CertificateSigningRequest]:
    return [x509.load_der_x509_csr(base64.b64decode(body)) for method, _, _, body, _ in script.seen if method == "POST"]


def csrattrs(**wanted: Any) -> web.Response:
    return web.Response(body=base64.b64encode(write_csrattrs(Wanted(**wanted))))


async def test_an_enrollment_fills_the_directory(script: Any, tmp_path: Path) -> None:
    enrolled = await enroll(make_wish(script, tmp_path / "d"))
    identity = Folder(tmp_path / "d").read_identity()
    assert identity is not None
    assert identity.certificate == enrolled.certificate
    # The root is what others trust; showing it in TLS would only cost bytes.
    assert identity.intermediates == (script.authority.certificate,)
    assert set(read_certificates(tmp_path / "d/ca.pem")) == {script.authority.certificate, script.root.certificate}
    assert (enrolled.key_type, enrolled.resumed) == ("ec-p256", False)
    assert [path.rsplit("/", 1)[-1] for _, path, _, _, _ in script.seen] == ["cacerts", "csrattrs", "simpleenroll"]


async def test_a_renewal_shows_the_old_certificate_and_brings_a_new_key(script: Any, tmp_path: Path) -> None:
    wish = make_wish(script, tmp_path / "d", san=("dns:pump.example",))
    first = await enroll(wish)
    second = await enroll(make_wish(script, tmp_path / "d", renew=True, credential=Credential(), subject=""))
    assert second.certificate.public_key() != first.certificate.public_key()
    assert script.seen[-1][1].endswith("/simplereenroll")
    assert script.seen[-1][4] == "pump"
    old, new = posts(script)
    assert (old.subject, list(old.extensions)) == (new.subject, list(new.extensions))


async def test_a_renewal_with_the_same_key(script: Any, tmp_path: Path) -> None:
    first = await enroll(make_wish(script, tmp_path / "d"))
    second = await enroll(make_wish(script, tmp_path / "d", renew=True, same_key=True))
    assert second.certificate.public_key() == first.certificate.public_key()
    assert second.certificate.serial_number != first.certificate.serial_number


async def test_a_lost_answer_costs_nothing(script: Any, tmp_path: Path) -> None:
    async def lose(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    script.answers = [script.usual("cacerts", b""), script.usual("csrattrs", b""), lose]
    with pytest.raises(TryLater):
        await enroll(make_wish(script, tmp_path), ONCE)
    assert Folder(tmp_path).read_identity() is None
    enrolled = await enroll(make_wish(script, tmp_path), ONCE)
    first, second = posts(script)
    assert enrolled.resumed
    assert first == second, "the very same request"
    assert read_key(tmp_path / "device.key").private_key.public_key() == second.public_key()


async def test_a_refused_code_keeps_the_request_and_a_refused_request_is_dropped(script: Any, tmp_path: Path) -> None:
    for status, same in ((401, True), (403, True), (400, False)):
        script.seen.clear()
        script.answers = [script.usual("cacerts", b""), script.usual("csrattrs", b""), web.Response(status=status)]
        directory = tmp_path / str(status)
        with pytest.raises(ServerRefused):
            await enroll(make_wish(script, directory))
        await enroll(make_wish(script, directory))
        first, second = posts(script)
        assert (first == second) is same


async def test_another_wish_makes_another_request(script: Any, tmp_path: Path) -> None:
    script.answers = [script.usual("cacerts", b""), script.usual("csrattrs", b""), web.Response(status=403)]
    with pytest.raises(ServerRefused):
        await enroll(make_wish(script, tmp_path))
    enrolled = await enroll(make_wish(script, tmp_path, subject="CN=valve"))
    assert not enrolled.resumed
    assert enrolled.certificate.subject.rfc4514_string() == "CN=valve"


async def test_a_failed_renewal_leaves_what_was_there(script: Any, tmp_path: Path) -> None:
    first = await enroll(make_wish(script, tmp_path))
    script.answers = [script.usual("cacerts", b""), script.usual("csrattrs", b""), web.Response(status=403)]
    with pytest.raises(ServerRefused):
        await enroll(make_wish(script, tmp_path, renew=True))
    identity = Folder(tmp_path).read_identity()
    assert identity is not None
    assert identity.certificate == first.certificate


async def test_authorities_that_do_not_lead_to_a_root_leave_what_was_there(script: Any, tmp_path: Path) -> None:
    async def only_root(_request: web.Request) -> web.Response:
        der = pkcs7.serialize_certificates([script.root.certificate], Encoding.DER)
        return web.Response(body=base64.b64encode(der), content_type="application/pkcs7-mime")

    script.answers = [only_root]
    with pytest.raises(WrongServer, match="root"):
        await enroll(make_wish(script, tmp_path))
    assert Folder(tmp_path).read_identity() is None


@pytest.mark.parametrize(
    ("asked", "wanted", "expected"),
    [
        (None, ("ec-p384", "ec-p256"), "ec-p256"),
        (None, ("ec-p384", "rsa-2048"), "ec-p384"),
        ("ec-p256", ("ec-p384",), "ec-p256"),
        (None, (), "ec-p256"),
    ],
)
async def test_the_server_may_say_which_key_it_wants(
    script: Any, tmp_path: Path, asked: str | None, wanted: tuple[str, ...], expected: str
) -> None:
    script.answers = (
        [script.usual("cacerts", b"")] if asked else [script.usual("cacerts", b""), csrattrs(key_types=wanted)]
    )
    assert (await enroll(make_wish(script, tmp_path, key_type=asked))).key_type == expected


async def test_attributes_that_make_no_sense_are_no_reason_to_stop(script: Any, tmp_path: Path) -> None:
    script.answers = [script.usual("cacerts", b""), web.Response(body=b"MAUCAQU=")]
    assert (await enroll(make_wish(script, tmp_path))).key_type == "ec-p256"


async def test_a_profile_that_wants_channel_binding_is_refused_before_anything_is_sent(
    script: Any, tmp_path: Path
) -> None:
    script.answers = [script.usual("cacerts", b""), csrattrs(attributes=(OIDS["challengePassword"],))]
    with pytest.raises(Invalid, match="bound to its TLS connection"):
        await enroll(make_wish(script, tmp_path))
    assert not posts(script)


async def test_a_directory_with_an_identity_is_not_overwritten_by_accident(script: Any, tmp_path: Path) -> None:
    await enroll(make_wish(script, tmp_path))
    with pytest.raises(Invalid, match="--renew"):
        await enroll(make_wish(script, tmp_path))
    again = await enroll(make_wish(script, tmp_path, replace=True))
    identity = Folder(tmp_path).read_identity()
    assert identity is not None
    assert identity.certificate == again.certificate


async def test_nothing_to_renew(script: Any, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no certificate to renew"):
        await enroll(make_wish(script, tmp_path, renew=True))
