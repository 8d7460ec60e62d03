"""All signers of one server: real processes, a real store; that a whole server lives on is in tests/chaos."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from database_proxy import database_proxy
from patience import until
from postgres_fixture import Database
from store_values import make_intent

from estd.app import troubles
from estd.app.apply import apply_document
from estd.app.handover import Heir
from estd.app.identity import LABEL, ensure_ecosystem
from estd.app.signer_crew import SignerCrew, find_farthest
from estd.ca.ecosystem import read_document
from estd.config import Config
from estd.errors import Broken, Invalid
from estd.signer.blocks import Mark, read_head, write_mark
from estd.signer.client import SignerPool
from estd.signer.server import SignerSettings
from estd.store.contract import EcosystemRecord
from estd.store.postgres import PostgresStore

KEK = bytes(range(32))
OTHER = bytes(range(1, 33))
PLANT = """
[ecosystem]
label = "plant"
name = "{name}"

[[issuer]]
name = "devices"

[profile.pump]
issuer = "devices"
enroll = ["code"]
validity = "90d"
"""


@pytest.fixture
def runtime() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="estd-test-") as directory:  # short enough for a socket
        yield Path(directory)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path, signers=2, log_level="error")


@pytest.fixture
async def own(store: PostgresStore) -> PostgresStore:
    """A store that holds the server's own ecosystem."""
    await ensure_ecosystem(store, KEK)
    return store


@contextlib.asynccontextmanager
async def started(crew: SignerCrew, *heirs: Heir) -> AsyncIterator[SignerCrew]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            await crew.start(heirs, stack)
            yield crew
        finally:
            await crew.stop()
    assert not crew.any_ready


async def apply_plant(store: PostgresStore, name: str, kek: bytes = KEK) -> None:
    rules = read_document(PLANT.format(name=name), "test.toml", lambda path: path.encode())
    await apply_document(store, kek, rules, "tester", new_key=kek != KEK)


async def find_versions(store: PostgresStore) -> dict[str, tuple[int, int]]:
    """Identifier and newest version of each ecosystem, by label."""
    return {record.label: (record.ecosystem_id, record.version) for record in await store.find_ecosystems()}


async def ask(crew: SignerCrew, name: str) -> dict[int, list[int]]:
    """Which versions of which ecosystem that signer knows."""
    return (await crew.controls[name].status()).ecosystems


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_each_is_ready_with_all_rules_and_gone_after_a_stop(
    config: Config, runtime: Path, own: PostgresStore
) -> None:
    crew = SignerCrew(config, KEK, runtime, own)
    assert not crew.any_ready
    async with started(crew):
        assert crew.sockets == [str(runtime / "signer-0.sock"), str(runtime / "signer-1.sock")]
        assert [heir.name for heir in crew.heirs] == ["signer-0", "signer-1"]
        ecosystem, version = (await find_versions(own))[LABEL]
        for name in ("signer-0", "signer-1"):
            assert crew.is_ready(name)
            assert await ask(crew, name) == {ecosystem: [version]}
        pool = SignerPool(crew.sockets)
        assert await pool.find_newest() == []
        await pool.close()
        pids = [heir.pid for heir in crew.heirs]
    assert not any(map(lives, pids))
    assert crew.heirs == []
    assert sorted(path.name for path in (config.data_directory / "journal").glob("*.lock")) == [
        "journal-0.lock",
        "journal-1.lock",
    ]


async def test_new_rules_reach_every_signer(config: Config, runtime: Path, own: PostgresStore) -> None:
    async with started(SignerCrew(config, KEK, runtime, own)) as crew:
        following = asyncio.create_task(crew.follow())
        for name in ("Harbour Plant", "Mountain Plant"):
            await apply_plant(own, name)
            ecosystem, version = (await find_versions(own))["plant"]
            crew.notice()
            for signer in ("signer-0", "signer-1"):
                async with asyncio.timeout(10):
                    while version not in (await ask(crew, signer)).get(ecosystem, []):
                        await asyncio.sleep(0.02)
        following.cancel()
        await asyncio.wait({following})


async def until_known(crew: SignerCrew, *wanted: tuple[int, int]) -> None:
    """Both signers know these versions of these ecosystems, and no other ecosystem."""
    for signer in ("signer-0", "signer-1"):
        async with asyncio.timeout(10):
            while True:
                known = await ask(crew, signer)
                if known.keys() == dict(wanted).keys() and all(version in known[one] for one, version in wanted):
                    break
                await asyncio.sleep(0.02)


async def test_an_ecosystem_that_does_not_open_takes_nothing_from_the_others(
    config: Config, runtime: Path, own: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither at a start nor while they serve, nor when a signer comes back; and it comes back itself."""
    await apply_plant(own, "Harbour Plant", OTHER)
    async with started(SignerCrew(config, KEK, runtime, own)) as crew:
        following = asyncio.create_task(crew.follow())
        versions = await find_versions(own)
        await until_known(crew, versions[LABEL])
        assert crew.is_ready("signer-0")
        assert crew.is_ready("signer-1")
        assert set(troubles.find()) == {"plant"}
        assert "version 1: sealed key: was sealed with another key-encryption key" in troubles.find()["plant"]
        told = {
            (one.__dict__["child"], one.__dict__["ecosystem"]) for one in caplog.records if "refused" in one.message
        }
        assert told == {("signer-0", "plant"), ("signer-1", "plant")}
        # Another one is applied while it is in the way.
        rules = read_document(PLANT.replace("plant", "zoo").format(name="Zoo"), "zoo.toml", lambda path: path.encode())
        await apply_document(own, KEK, rules, "tester")
        versions = await find_versions(own)
        crew.notice()
        await until_known(crew, versions[LABEL], versions["zoo"])
        for name in ("signer-0", "signer-1"):
            (pid,) = [heir.pid for heir in crew.heirs if heir.name == name]
            os.kill(pid, signal.SIGKILL)
            await until(lambda name=name: not crew.is_ready(name))
            await until(lambda name=name: crew.is_ready(name))
        await until_known(crew, versions[LABEL], versions["zoo"])
        # Its keys are made anew, under the right key.
        text = PLANT.replace('name = "devices"', 'name = "devices"\ngeneration = 2').format(name="Harbour Plant")
        await apply_document(own, KEK, read_document(text, "test.toml", lambda path: path.encode()), "tester")
        versions = await find_versions(own)
        crew.notice()
        await until_known(crew, *versions.values())
        await until(lambda: not troubles.find())
        following.cancel()
        await asyncio.wait({following})
    assert troubles.find() == {}


async def test_one_that_was_killed_is_heard_again(config: Config, runtime: Path, own: PostgresStore) -> None:
    """Its new control channel may have the very descriptor of the one before, which must not take it along."""
    async with started(SignerCrew(dataclasses.replace(config, signers=1), KEK, runtime, own)) as crew:
        ecosystem, version = (await find_versions(own))[LABEL]
        (heir,) = crew.heirs
        os.kill(heir.pid, signal.SIGKILL)
        await until(lambda: not crew.is_ready("signer-0"))
        await until(lambda: crew.is_ready("signer-0"))
        (again,) = crew.heirs
        assert (again.pid != heir.pid, again.control) == (True, heir.control)
        gc.collect()
        assert await ask(crew, "signer-0") == {ecosystem: [version]}


async def test_a_key_that_opens_nothing_is_told_before_anything_starts(
    config: Config, runtime: Path, own: PostgresStore
) -> None:
    crew = SignerCrew(config, OTHER, runtime, own)
    with pytest.raises(Invalid, match=r"the key-encryption key \(.*\): is not the one"):
        async with started(crew):
            pytest.fail("it opens nothing")
    assert crew.heirs == []


async def test_a_fault_that_nobody_foresaw_is_logged_and_the_rules_come_all_the_same(
    config: Config, runtime: Path, own: PostgresStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(SignerCrew(config, KEK, runtime, own)) as crew:
        following = asyncio.create_task(crew.follow())
        real, failed = own.find_ecosystems, asyncio.Event()

        async def fail_once() -> list[EcosystemRecord]:
            if not failed.is_set():
                failed.set()
                raise ZeroDivisionError("what nobody foresaw")
            return await real()

        monkeypatch.setattr(own, "find_ecosystems", fail_once)
        crew.notice()
        await failed.wait()
        await apply_plant(own, "Harbour Plant")
        await until_known(crew, *(await find_versions(own)).values())
        assert "the signers could not be told of new rules" in caplog.text
        following.cancel()
        await asyncio.wait({following})


async def test_one_that_hangs_keeps_no_new_rules_from_the_others(
    config: Config, runtime: Path, own: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estd.app.signers._ANSWER_SECONDS", 1e9)  # it is waited for all the time
    async with started(SignerCrew(config, KEK, runtime, own)) as crew:
        following = asyncio.create_task(crew.follow())
        (pid,) = [heir.pid for heir in crew.heirs if heir.name == "signer-0"]
        os.kill(pid, signal.SIGSTOP)
        try:
            for name in ("Harbour Plant", "Mountain Plant", "Desert Plant"):
                await apply_plant(own, name)
                ecosystem, version = (await find_versions(own))["plant"]
                crew.notice()
                async with asyncio.timeout(10):
                    while version not in (await ask(crew, "signer-1")).get(ecosystem, []):
                        await asyncio.sleep(0.02)
        finally:
            os.kill(pid, signal.SIGCONT)
        # What it missed meanwhile is made up for.
        async with asyncio.timeout(10):
            while version not in (await ask(crew, "signer-0")).get(ecosystem, []):
                await asyncio.sleep(0.02)
        following.cancel()
        await asyncio.wait({following})


async def test_a_database_that_is_lost_during_the_start_is_waited_for(
    config: Config, runtime: Path, own: PostgresStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that was set back is found out all the same: what the database knows of it is not left out."""
    mark = write_mark(Mark("0-0123456789abcdef", 5, bytes(8)))
    await own.reserve_intents([make_intent(journal=mark)])
    async with database_proxy(database.socket) as proxy:
        store = await PostgresStore.connect(proxy.url(database.name))
        real, lost = store.find_newest_marks, asyncio.Event()

        async def find_newest_marks(limit: int) -> list[str]:
            if not lost.is_set():
                proxy.refusing = True
                proxy.cut_all()
            try:
                return await real(limit)
            finally:
                lost.set()

        monkeypatch.setattr(store, "find_newest_marks", find_newest_marks)
        crew = SignerCrew(config, KEK, runtime, store)
        async with contextlib.AsyncExitStack() as stack:
            starting = asyncio.create_task(crew.start([], stack))
            await lost.wait()
            proxy.refusing = False
            try:
                await starting
                assert crew.any_ready
                assert crew._marks == [mark]
            finally:
                await crew.stop()
        await store.close()


async def test_a_killed_signer_comes_back_while_the_database_is_away(
    config: Config, runtime: Path, own: PostgresStore, database: Database
) -> None:
    """With the last rules known; what was missed is made up for when the database is back."""
    async with database_proxy(database.socket) as proxy:
        store = await PostgresStore.connect(proxy.url(database.name))
        async with started(SignerCrew(config, KEK, runtime, store)) as crew:
            following = asyncio.create_task(crew.follow())
            known = await ask(crew, "signer-0")
            proxy.refusing = True
            proxy.cut_all()
            await apply_plant(own, "Harbour Plant")
            (pid,) = [heir.pid for heir in crew.heirs if heir.name == "signer-0"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not crew.is_ready("signer-0"))
            assert crew.any_ready
            await until(lambda: crew.is_ready("signer-0"))
            assert await ask(crew, "signer-0") == known
            proxy.refusing = False
            ecosystem, version = (await find_versions(own))["plant"]
            for signer in ("signer-0", "signer-1"):
                async with asyncio.timeout(10):
                    while (await ask(crew, signer)).get(ecosystem) != [version]:
                        await asyncio.sleep(0.02)
            following.cancel()
            await asyncio.wait({following})
        await store.close()


@contextlib.asynccontextmanager
async def predecessors(config: Config, runtime: Path, *slots: int) -> AsyncIterator[list[Heir]]:
    """Signers as a predecessor leaves them; at the end of the block they are gone."""
    processes, heirs = [], []
    (config.data_directory / "journal").mkdir(mode=0o700)
    for slot in slots:
        settings = SignerSettings(
            slot=slot,
            socket_path=str(runtime / f"signer-{slot}.sock"),
            journal_directory=str(config.data_directory / "journal"),
            allowed_uids=[os.getuid()],
            log_level="error",
        )
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file, theirs:
            file.write(msgspec.json.encode(settings))
            file.flush()
            fds = [file.fileno(), theirs.fileno()]
            argv = [sys.executable, "-m", "estd.signer.server", *map(str, fds)]
            processes.append(subprocess.Popen(argv, pass_fds=fds))
        heirs.append(Heir(name=f"signer-{slot}", pid=processes[-1].pid, control=ours.detach()))
    for slot in slots:
        await until((runtime / f"signer-{slot}.sock").is_socket)
    yield heirs
    assert not any(lives(process.pid) for process in processes)
    for process in processes:
        process.wait()  # nothing is left to wait for; Popen only has to know


@pytest.mark.parametrize("slots", [(0, 1), (1,)])
async def test_a_predecessors_signers_give_way(
    config: Config, runtime: Path, own: PostgresStore, slots: tuple[int, ...]
) -> None:
    """Also one in a slot that there is no more, once the workers that ask it are replaced."""
    async with (
        predecessors(config, runtime, *slots) as heirs,
        started(SignerCrew(dataclasses.replace(config, signers=1), KEK, runtime, own), *heirs) as crew,
    ):
        assert crew.is_ready("signer-0")
        assert [heir.name for heir in crew.heirs] == ["signer-0"]
        assert [lives(heir.pid) for heir in heirs] == [slot == 1 for slot in slots]
        await crew.see_off()
        assert not any(lives(heir.pid) for heir in heirs)


async def test_signers_that_run_on_their_own_are_loaded_and_left_running(
    tmp_path: Path, runtime: Path, own: PostgresStore
) -> None:
    path = runtime / "own.sock"
    (tmp_path / "kek").write_text(KEK.hex())
    (tmp_path / "kek").chmod(0o600)
    settings = tmp_path / "signer.toml"
    user = pwd.getpwuid(os.getuid()).pw_name
    settings.write_text(
        f'data_directory = "alone"\nkeys.file = "kek"\nsigners.sockets = ["{path}"]\nsigners.users = ["{user}"]\n'
        'log.level = "error"\n'
    )
    argv = [sys.executable, "-m", "estd", "signer", "--config", settings, "--slot", "0"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        config = Config(tmp_path / "server", signer_sockets=(path,))
        async with started(SignerCrew(config, None, runtime, own)) as crew:
            assert crew.sockets == [str(path)]
            assert crew.is_ready("signer-0")
            assert crew.heirs == []
            ecosystem, version = (await find_versions(own))[LABEL]
            assert await ask(crew, "signer-0") == {ecosystem: [version]}
        assert process.poll() is None
        assert not config.data_directory.exists()
        # Where children of ours were before, they go.
        config.data_directory.mkdir()
        async with (
            predecessors(config, runtime, 0) as heirs,
            started(SignerCrew(config, None, runtime, own), *heirs) as crew,
        ):
            assert crew.is_ready("signer-0")
            await crew.see_off()
            assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(20) == 0


async def test_one_that_is_not_there_in_time_is_named(
    tmp_path: Path, runtime: Path, own: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estd.app.children._START_SECONDS", 1.0)
    config = Config(tmp_path, signer_sockets=(runtime / "nobody.sock",))
    with pytest.raises(Broken, match="not ready after 1 seconds: signer-0"):
        async with started(SignerCrew(config, None, runtime, own)):
            pytest.fail("there is no signer")


def test_of_each_journal_the_farthest_mark_counts() -> None:
    one, other = "0-0123456789abcdef", "1-0123456789abcdef"
    texts = [f"{one}.7.{'a' * 16}", f"{one}.12.{'b' * 16}", f"{other}.3.{'c' * 16}", f"{one}.9.{'d' * 16}", "strange"]
    assert sorted(find_farthest(texts)) == [f"{one}.12.{'b' * 16}", f"{other}.3.{'c' * 16}"]


async def test_a_journal_that_was_set_back_keeps_its_signer_from_serving(
    config: Config,
    runtime: Path,
    own: PostgresStore,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with started(SignerCrew(config, KEK, runtime, own)):
        pass
    # As if an older copy of slot 1's journal had been put back: the database knows it to have been longer.
    (head,) = [read_head((config.data_directory / "journal" / "journal-1.head").read_bytes())]
    assert head is not None
    mark = write_mark(Mark(head.journal, head.sequence + 50, bytes(8)))
    intent = make_intent(journal=mark)
    await own.reserve_intents([intent])
    monkeypatch.setattr("estd.app.children._START_SECONDS", 5.0)
    crew = SignerCrew(config, KEK, runtime, own)
    with pytest.raises(Broken):
        async with started(crew):
            pass
    assert "had reached" in capfd.readouterr().err
