"""A real server whose processes die at each arrow of the issuance state machine, in pairs: just before it and just after.

    prepared → INTENT committed → journaled → signed → ISSUED committed → delivered

A device that asks for a certificate meets the death, and asks again. Whatever died where, it ends with one certificate,
every retry gets the same bytes, what is on record is what the table in docs/reliability.md says, and the auditor finds
nothing. The same arrows with a dying database connection are in ``tests/unit/ra/test_enrollment.py`` and in
``test_store_faults.py``, a signer that dies inside its writes is in ``test_signer_faults.py``.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import asyncpg
import pytest
from chaos.stage import Stage, fleet
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from OpenSSL import SSL

from estd.auditor.auditing import Scope, audit_url

VOID, SAME = "a void intent, then another", "that very certificate"
POINTS = {
    "signer: before prepare": SAME,
    "signer: after prepare": SAME,
    "worker: before reserve_intents": SAME,
    "worker: after reserve_intents": VOID,
    "worker: before seal": VOID,
    "signer: before record_entries": VOID,
    "signer: after record_entries": SAME,
    "signer: before seal": VOID,
    "signer: after seal": SAME,
    "worker: after seal": SAME,
    "worker: before record_issued": SAME,
    "worker: after record_issued": SAME,
}
"""Point → what is left on record. `Signer.seal` is entered before anything is journaled and left after all is signed."""


class Trapped:
    """The server, and where its next death is set."""

    def __init__(self, stage: Stage, armed: Path) -> None:
        self.stage = stage
        self.armed = armed
        self.received: list[tuple[str, bytes]] = []

    def ask(self, device: fleet.Device) -> bytes:
        """Ask until there is an answer; the certificate, DER."""
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, self.stage.log_tail()
            connection = None
            try:
                connection = fleet.Connection(self.stage.address, self.stage.trust, device)
                status, answer = connection.request("POST", self.stage.path(), device.bodies[0])
            except (SSL.Error, OSError):
                time.sleep(0.1)
                continue
            finally:
                if connection is not None:
                    connection.close()
            if status == 200:
                (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
                return certificate.public_bytes(Encoding.DER)
            assert status == 503, answer
            time.sleep(0.2)

    async def find(self, device: fleet.Device) -> tuple[list[bytes], Counter[str | None]]:
        """The certificates on record for a device's request, and how its intents are closed."""
        connection = await asyncpg.connect(self.stage.database_url)
        try:
            rows = await connection.fetch(
                "SELECT intent.closed, certificate.der FROM intent LEFT JOIN certificate USING (issuer_id, serial)"
                " WHERE csr_sha256 = $1",
                sha256(base64.b64decode(device.bodies[0])).digest(),
            )
        finally:
            await connection.close()
        return [row["der"] for row in rows if row["der"] is not None], Counter(row["closed"] for row in rows)

    async def check(self) -> None:
        """Nothing is wrong, in the eyes of the auditor."""
        scope = Scope([self.stage.journals], self.received)
        found = await audit_url(self.stage.database_url, scope, datetime.now(UTC), lambda _what, _count: None)
        assert found.breaches == []
        assert found.counts["received"] == len(self.received)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trapped]:
    armed = tmp_path_factory.mktemp("trap") / "armed"
    environment = {"PYTHONPATH": str(Path(__file__).with_name("trap")), "ESTD_TEST_TRAP": str(armed)}
    with Stage(workers=2, signers=1, environment=environment) as stage:
        stage.start()
        yield Trapped(stage, armed)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "left"), POINTS.items(), ids=POINTS.keys())
async def test_a_death_at_this_point_costs_no_certificate_and_makes_no_second(
    server: Trapped, point: str, left: str
) -> None:
    (device,) = server.stage.devices(1)
    server.armed.write_text(point)
    certificate = server.ask(device)
    assert not server.armed.exists(), "nobody came to that point"
    assert server.ask(device) == certificate
    on_record, closings = await server.find(device)
    assert on_record == [certificate]
    assert closings == ({None: 1, "void": 1} if left is VOID else {None: 1})
    server.received.append((point, certificate))
    await server.check()


@pytest.mark.slow
async def test_a_death_after_delivery_changes_nothing(server: Trapped) -> None:
    (device,) = server.stage.devices(1)
    certificate = server.ask(device)
    for role in ("worker", "signer"):
        for process in server.stage.of_role(role):
            process.kill()
    assert server.ask(device) == certificate
    assert await server.find(device) == ([certificate], {None: 1})
    server.received.append(("delivered", certificate))
    await server.check()
