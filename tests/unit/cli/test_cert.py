"""``estd cert revoke --device``: all of a device's valid certificates, in one ecosystem, however many it had."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from postgres_fixture import Database
from store_values import make_event, make_intent, make_issued, make_new_issuer

from estd.cli import cert as module
from estd.cli.cert import cert
from estd.errors import Invalid
from estd.store.postgres import PostgresStore

NOW = datetime.now(UTC).replace(microsecond=0)


async def fill(url: str) -> None:
    """Seven valid certificates of one device; another's, an expired one and a namesake's next door."""
    store = await PostgresStore.connect(url)
    try:
        ids = {}
        for label in ("campus", "harbour"):
            record = await store.record_ecosystem(label, {"n": 1}, [make_new_issuer()], 0, "ada", make_event())
            ids[label] = record.ecosystem_id, record.issuers[0].issuer_id
        wanted = [("campus", "pump", 9)] * 7 + [("campus", "pump", -9), ("campus", "valve", 9), ("harbour", "pump", 9)]
        for label, device, days in wanted:
            ecosystem_id, issuer_id = ids[label]
            intent = make_intent(ecosystem_id=ecosystem_id, issuer_id=issuer_id, device=device)
            await store.reserve_intents([intent])
            await store.record_issued([make_issued(intent, not_after=NOW + timedelta(days=days))])
    finally:
        await store.close()


def test_a_device_loses_all_of_its_certificates_and_nobody_else(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The valid ones do not fit into one look, and the newest of all is the expired one.
    monkeypatch.setattr(module, "_OF_ONE_DEVICE", 3)
    asyncio.run(fill(database.url))
    settings = tmp_path / "estd.toml"
    settings.write_text(f'data_directory = "{tmp_path}/data"\n[database]\nurl = "{database.url}"\n', encoding="utf-8")
    revoke = ["revoke", "--device", "pump", "--ecosystem", "campus", "--config", str(settings)]
    none = CliRunner().invoke(cert, ["list", "--device", "zz", "--config", str(settings)])
    assert none.output == "No certificate of device 'zz' here.\n"

    async def look() -> list[tuple[str, bool]]:
        store = await PostgresStore.connect(database.url)
        try:
            labels = {record.ecosystem_id: record.label for record in await store.find_ecosystems()}
            return sorted(
                (f"{labels[one.ecosystem_id]} {one.device}", one.revoked_at is not None)
                for one in await store.find_certificates(None, None, 100)
            )
        finally:
            await store.close()

    valid = [("campus pump", False)] * 8
    assert [one for one in asyncio.run(look()) if one[0] == "campus pump"] == valid
    told = CliRunner().invoke(cert, [*revoke, "--json"])
    assert told.exit_code == 0, told.output
    others = [("campus valve", False), ("harbour pump", False)]
    assert asyncio.run(look()) == [("campus pump", False), *[("campus pump", True)] * 7, *others]
    # Whoever has its keys, old ones too, gets nothing for them.
    compromised = [*revoke, "--reason", "keyCompromise"]
    told = CliRunner().invoke(cert, [*compromised, "--yes"])
    assert told.exit_code == 0, told.output
    lines = [line.split("  ", 2)[2] for line in told.output.splitlines()]
    raised = ["was revoked before; the reason is keyCompromise now"] * 7
    assert sorted(lines) == sorted([*raised, "revoked (it had expired)"])
    assert asyncio.run(look()) == [*[("campus pump", True)] * 8, *others]
    told = CliRunner().invoke(cert, [*compromised, "--json"])
    assert [one["outcome"] for one in json.loads(told.output)] == ["unchanged"] * 8
    none = CliRunner().invoke(cert, [*compromised[:2], "zz", *compromised[3:], "--yes"], standalone_mode=False)
    assert isinstance(none.exception, Invalid)
    assert "never had a certificate there" in str(none.exception)

    async def count_keys() -> int:
        store = await PostgresStore.connect(database.url)
        try:
            return len(await store.find_compromised_keys())
        finally:
            await store.close()

    assert asyncio.run(count_keys()) == 8
