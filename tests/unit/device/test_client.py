import asyncio
import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509

from estd import __version__
from estd.device.answers import ServerRefused, TryLater, WrongServer
from estd.device.client import BODY_AT_MOST_BYTES, NOBODY, Credential, EstClient, Patience, read_origin
from estd.device.requests import generate_key, read_subject, write_request
from estd.errors import Invalid
from estd.wire.csrattrs import Wanted, write_csrattrs


class Pauses:
    """Sleeps in no time, and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.reasons: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def told(self, why: str, _seconds: int) -> None:
        self.reasons.append(why)


def connect(
    script: Any, credential: Credential = NOBODY, label: str | None = "plant", pauses: Pauses | None = None, **more: int
) -> EstClient:
    pauses = pauses or Pauses()
    return EstClient(
        script.url,
        script.trust,
        label,
        credential,
        patience=Patience(**more),
        on_wait=pauses.told,
        sleep=pauses.sleep,
    )


async def test_cacerts(script: Any) -> None:
    async with connect(script) as client:
        certificates = await client.cacerts()
    assert set(certificates) == {script.root.certificate, script.authority.certificate}
    [(method, path, headers, body, _)] = script.seen
    assert (method, path, body) == ("GET", "/.well-known/est/plant/cacerts", b"")
    assert headers["User-Agent"] == f"estd/{__version__}"


async def test_enrolling_sends_base64_with_its_length_and_gets_a_certificate_for_that_key(script: Any) -> None:
    key = generate_key("ec-p256")
    request = write_request(key, read_subject("CN=pump"))
    async with connect(script, Credential(device="pümp", code="7F3KQ-0V9XW")) as client:
        certificate = await client.simpleenroll(request)
    assert x509.load_der_x509_csr(request.der).public_key() == certificate.public_key()
    [(method, path, headers, body, _)] = script.seen
    assert (method, path) == ("POST", "/.well-known/est/plant/simpleenroll")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Content-Type"] == "application/pkcs10"
    assert "Transfer-Encoding" not in headers
    assert base64.b64decode(body) == request.der
    assert headers["Authorization"] == "Basic " + base64.b64encode("pümp:7F3KQ-0V9XW".encode()).decode()


async def test_the_code_goes_with_nothing_but_the_request_for_a_certificate(script: Any) -> None:
    async with connect(script, Credential(device="pump", code="x")) as client:
        await client.cacerts()
        await client.csrattrs()
    assert not any("Authorization" in headers for _, _, headers, _, _ in script.seen)


async def test_a_certificate_is_shown_in_tls(script: Any, device: tuple[Path, Path]) -> None:
    async with connect(script, Credential(*device)) as client:
        await client.simplereenroll(write_request(generate_key("ec-p256")))
    assert script.seen[0][1].endswith("/simplereenroll")
    assert script.seen[0][4] == "birth"


async def test_one_connection_serves_many_requests(script: Any) -> None:
    async with connect(script) as client:
        for _ in range(3):
            await client.cacerts()
    assert len(script.ports) == 1


async def test_without_a_label_the_path_has_none(script: Any) -> None:
    async with connect(script, label=None) as client:
        await client.cacerts()
    assert script.seen[0][1] == "/.well-known/est/cacerts"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (204, b"", None),
        (404, b"", None),
        (200, b"", None),
        (200, b"MAA=\n", Wanted()),
        (200, base64.b64encode(write_csrattrs(Wanted(key_types=("ec-p384",)))), Wanted(key_types=("ec-p384",))),
    ],
)
async def test_csrattrs(script: Any, status: int, body: bytes, expected: Wanted | None) -> None:
    script.answers = [web.Response(status=status, body=body)]
    async with connect(script) as client:
        assert await client.csrattrs() == expected


async def test_csrattrs_that_make_no_sense(script: Any) -> None:
    script.answers = [web.Response(body=b"MAUCAQU=")]
    async with connect(script) as client:
        with pytest.raises(WrongServer):
            await client.csrattrs()


async def test_a_certificate_for_another_key_is_refused(script: Any) -> None:
    async def swap(_request: web.Request) -> web.Response:
        other = write_request(generate_key("ec-p256"), read_subject("CN=pump"))
        return script.usual("simpleenroll", base64.b64encode(other.der))

    script.answers = [swap]
    async with connect(script) as client:
        with pytest.raises(WrongServer, match="key that was sent"):
            await client.simpleenroll(write_request(generate_key("ec-p256")))


async def test_a_refusal_carries_the_servers_words_and_its_request_id(script: Any) -> None:
    script.answers = [
        web.Response(status=403, text="not-authorized: not here (request ab12)\n", headers={"X-Request-Id": "ab12"}),
    ]
    async with connect(script) as client:
        with pytest.raises(ServerRefused) as refused:
            await client.simpleenroll(write_request(generate_key("ec-p256")))
    assert (refused.value.status, refused.value.request_id) == (403, "ab12")
    assert refused.value.detail == "not-authorized: not here"
    assert len(script.seen) == 1, "a refusal is not asked again"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 415, 418])
async def test_a_refusal_without_words_is_explained(script: Any, status: int) -> None:
    script.answers = [web.Response(status=status)]
    async with connect(script) as client:
        with pytest.raises(ServerRefused) as refused:
            await client.simpleenroll(write_request(generate_key("ec-p256")))
    assert "server" in refused.value.detail


@pytest.mark.parametrize("status", [202, 429, 503])
async def test_the_same_request_is_sent_again_after_the_pause_asked_for(script: Any, status: int) -> None:
    busy = [web.Response(status=status, headers={"Retry-After": str(wait)}) for wait in (3, 4)]
    script.answers = list(busy)
    pauses = Pauses()
    async with connect(script, pauses=pauses) as client:
        await client.simpleenroll(write_request(generate_key("ec-p256")))
    assert pauses.seconds == [3, 4]
    assert len(pauses.reasons) == 2
    assert len({body for _, _, _, body, _ in script.seen}) == 1
    assert len(script.seen) == 3


async def test_patience_ends_after_the_tries_given(script: Any) -> None:
    script.answers = [web.Response(status=503, text="no signer", headers={"Retry-After": "2"}) for _ in range(9)]
    async with connect(script, tries=3) as client:
        with pytest.raises(TryLater) as later:
            await client.cacerts()
    assert len(script.seen) == 3
    assert (later.value.detail, later.value.retry_after_seconds) == ("no signer", 2)


async def test_a_pause_that_is_too_long_is_not_waited_for(script: Any) -> None:
    script.answers = [web.Response(status=202, headers={"Retry-After": "3600"})]
    pauses = Pauses()
    async with connect(script, pauses=pauses, longest_pause_seconds=60) as client:
        with pytest.raises(TryLater) as later:
            await client.simpleenroll(write_request(generate_key("ec-p256")))
    assert (later.value.retry_after_seconds, pauses.seconds, len(script.seen)) == (3600, [], 1)


async def test_a_failing_server_is_asked_again(script: Any) -> None:
    script.answers = [web.Response(status=500)]
    async with connect(script) as client:
        await client.cacerts()
    assert len(script.seen) == 2


async def test_a_broken_connection_is_made_again_with_the_same_request(script: Any) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        await asyncio.sleep(0)
        return web.Response()

    script.answers = [hang_up]
    async with connect(script) as client:
        await client.simpleenroll(write_request(generate_key("ec-p256")))
    assert len({body for _, _, _, body, _ in script.seen}) == 1
    assert len(script.seen) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(script: Any, status: int) -> None:
    script.answers = [web.Response(status=status, headers={"Location": "https://elsewhere.example/"})]
    async with connect(script, Credential(device="pump", code="x")) as client:
        with pytest.raises(WrongServer, match=r"elsewhere\.example"):
            await client.simpleenroll(write_request(generate_key("ec-p256")))
    assert len(script.seen) == 1


async def test_an_endless_answer_is_cut_off(script: Any) -> None:
    script.answers = [web.Response(body=bytes(BODY_AT_MOST_BYTES + 1))]
    async with connect(script) as client:
        with pytest.raises(WrongServer, match="longer than"):
            await client.cacerts()


async def test_something_else_than_est_is_recognised(script: Any) -> None:
    script.answers = [web.Response(text="<html>Welcome</html>", content_type="text/html")]
    async with connect(script) as client:
        with pytest.raises(WrongServer):
            await client.cacerts()


async def test_a_server_that_the_trust_file_does_not_verify_is_left_alone(
    script: Any, make_authority: Any, tmp_path: Path
) -> None:
    from estd.device.answers import write_pem

    script.trust = tmp_path / "other.pem"
    script.trust.write_bytes(write_pem([make_authority("other").certificate]))
    pauses = Pauses()
    async with connect(script, pauses=pauses) as client:
        with pytest.raises(WrongServer, match="does not pass") as wrong:
            await client.cacerts()
    assert script.seen == []
    assert pauses.seconds == []
    assert "trust file" in wrong.value.detail


async def test_a_server_with_another_name_is_left_alone(script: Any) -> None:
    script.url = script.url.replace("localhost", "127.0.0.1")
    async with connect(script) as client:
        with pytest.raises(WrongServer, match="does not pass"):
            await client.cacerts()
    assert script.seen == []


async def test_nobody_there(script: Any) -> None:
    script.url = "https://localhost:1"
    pauses = Pauses()
    async with connect(script, pauses=pauses, tries=2) as client:
        with pytest.raises(TryLater, match=r"cannot be reached \(Connection refused\)"):
            await client.cacerts()
    assert pauses.seconds == [1]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8443",
        "localhost:8443",
        "https://",
        "https://host/.well-known/est",
        "https://host?x=1",
        "https://me:secret@host",
        "ftp://host",
        "",
        "https://[::1",
    ],
)
def test_only_an_https_host_and_port_will_do(url: str) -> None:
    with pytest.raises(Invalid):
        read_origin(url)
    assert str(read_origin("https://host:8443/")) == "https://host:8443"


def test_files_are_checked_before_anything_is_sent(script_free: Any, tmp_path: Path) -> None:
    trust, certificate, key = script_free
    for credential, trusted in (
        (NOBODY, tmp_path / "absent"),
        (NOBODY, key),
        (Credential(certificate, certificate), trust),
        (Credential(tmp_path / "absent", key), trust),
    ):
        with pytest.raises(Invalid):
            EstClient("https://localhost", trusted, None, credential)
    with pytest.raises(Invalid, match="colon"):
        EstClient("https://localhost", trust, None, Credential(device="a:b", code="x"))


def test_tls_below_1_2_is_not_offered_and_nothing_else_is_trusted(script_free: Any) -> None:
    trust, certificate, key = script_free
    context = EstClient("https://localhost", trust, None, Credential(certificate, key))._context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1


def test_a_credential_does_not_show_its_code() -> None:
    assert "7F3KQ" not in repr(Credential(device="pump", code="7F3KQ"))
