"""The signers as one thing: where they answer, which of them is ready, and that each of them knows the rules.

They are children of ours, or run on their own (`estd.app.signer_link`); who asks here need not know which. A signer forgets
all rules when it ends, so it is loaded whenever it comes, and until then it is not ready; those that stay are told of every
new version. Children of a predecessor (`estd.app.handover`) go one after the other, so that there is always one that
answers.

An ecosystem that they refuse is not served, and the others are (`estd.app.troubles` tells of it). A signer that refuses all
has another key than ours, and is not ready.

One that does not answer holds up none of the others: each is told of new rules by a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from estd.app import expiry, troubles
from estd.app.children import Adopted, Child, require_ready
from estd.app.handover import Heir, write_heirs
from estd.app.sealed_keys import check_key
from estd.app.signer_link import SignerLink
from estd.app.signers import SignerControl
from estd.config import Config, describe_key
from estd.errors import Broken, Unavailable
from estd.signer.blocks import Mark, read_mark, write_mark
from estd.signer.server import SignerSettings
from estd.signer.settings import find_control_path
from estd.store.contract import EcosystemRecord, Store

_log = logging.getLogger(__name__)

_RETRY_EVERY_SECONDS: Final = 1.0
_DATABASE_SECONDS: Final = 60.0
"""For a start: as long as a child has to become ready."""
_MARKS: Final = 100
_Answer = TypeVar("_Answer")


class SignerCrew:
    """See the module.

    Args:
        config: the settings of the start; other signers want a restart.
        kek: unlocks children of ours; None when the signers run on their own and hold it themselves.
        runtime: where children of ours have their sockets.
        store: knows the ecosystems.
    """

    def __init__(self, config: Config, kek: bytes | None, runtime: Path, store: Store) -> None:
        self._config = config
        self._kek = kek
        self._store = store
        own = [runtime / f"signer-{slot}.sock" for slot in range(config.signer_count)]
        self.sockets = [str(path) for path in config.signer_sockets or own]
        """Where they answer, by slot."""
        self.controls: dict[str, SignerControl] = {}
        """The newest control channel of each, by name."""
        self._opened: dict[str, SignerControl] = {}
        """The same, from before it is loaded."""
        self._signers: list[Child | SignerLink] = []
        self._surplus: list[Heir] = []
        """Signers of a predecessor that have no slot here."""
        self._marks: list[str] = []
        """How far each journal had come, as the database knew when we started: a journal that was set back is not used."""
        self._ecosystems: list[EcosystemRecord] = []
        """As they were read last."""
        self._changed = asyncio.Event()

    @property
    def any_ready(self) -> bool:
        """Whether one at least is there and loaded."""
        return any(signer.ready for signer in self._signers)

    @property
    def members(self) -> list[Child | SignerLink]:
        """The slots."""
        return self._signers

    @property
    def heirs(self) -> list[Heir]:
        """What a successor has to know of them; signers that run on their own it finds itself."""
        return write_heirs([signer for signer in self._signers if isinstance(signer, Child)])

    def is_ready(self, name: str) -> bool:
        """Whether the signer of that name is there and loaded."""
        return any(signer.ready for signer in self._signers if signer.name == name)

    async def start(self, heirs: Sequence[Heir], stack: contextlib.AsyncExitStack) -> None:
        """Start or look for all of them; returns when each is loaded.

        Args:
            heirs: the signers of a predecessor, which give way to ours.
            stack: closes what they read their settings from.

        Raises:
            Broken: one is not ready in time; `stop` is wanted all the same.
            Unavailable: the database was away all that time.
            Invalid: the key-encryption key opens nothing.
        """
        if self._config.signer_sockets:
            self._surplus = list(heirs)
            for slot, path in enumerate(self._config.signer_sockets):
                name = f"signer-{slot}"
                link = SignerLink(name, find_control_path(path), self._greeter_of(name))
                self._signers.append(link)
                link.start()
            await require_ready(self._signers)
            return
        if self._kek is not None:
            # A signer would refuse it as well, again and again.
            ecosystems = await _wait_for_database(self._store.find_ecosystems)
            check_key(self._kek, ecosystems, describe_key(self._config))
        journals = self._config.data_directory / "journal"
        journals.mkdir(mode=0o700, exist_ok=True)
        self._marks = find_farthest(await _wait_for_database(lambda: self._store.find_newest_marks(_MARKS)))
        children = [self._make_child(slot, journals, stack) for slot in range(len(self.sockets))]
        self._signers.extend(children)
        predecessors = {heir.name: heir for heir in heirs}
        fresh = [child for child in children if child.name not in predecessors]
        for child in fresh:
            child.start()
        await require_ready(fresh)
        for child in children:
            if child.name in predecessors:
                # One after the other: a journal has one writer, and the other signers answer meanwhile.
                await _adopt(predecessors.pop(child.name)).stop()
                child.start()
                await require_ready([child])
        self._surplus = list(predecessors.values())

    async def see_off(self) -> None:
        """Stop the signers of a predecessor that have no slot here; its workers, which ask them, have been replaced."""
        for heir in self._surplus:
            await _adopt(heir).stop()
        self._surplus.clear()

    async def stop(self, hung: Collection[str] = ()) -> None:
        """Stop the children of ours, and let go of signers that run on their own.

        Args:
            hung: those known not to answer, by name (`estd.app.heartbeat.Heartbeat.find_hung`).
        """
        await asyncio.gather(
            *(
                signer.stop(hung=signer.name in hung) if isinstance(signer, Child) else signer.stop()
                for signer in self._signers
            )
        )
        for signer in self._signers:
            troubles.note(signer.name, {})
        expiry.note([])

    def notice(self) -> None:
        """The ecosystems may have changed: have `follow` read them again."""
        self._changed.set()

    async def follow(self) -> None:
        """Tell the signers of new ecosystem versions; who is not there, or does not answer, is told later.

        Each by a task of its own: as long as one hangs, devices have the others, which have to know the new rules by then.
        """
        behind = [asyncio.Event() for _ in self._signers]
        async with asyncio.TaskGroup() as group:
            for signer, is_behind in zip(self._signers, behind, strict=True):
                group.create_task(self._keep_told(signer, is_behind))
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    self._ecosystems = await self._store.find_ecosystems()
                    expiry.note(self._ecosystems)
                except Exception as fault:  # noqa: BLE001 - whoever stops here leaves every ecosystem with its old rules
                    if not isinstance(fault, Unavailable):  # whoever watches the database says so
                        _log.exception("the signers could not be told of new rules; they are told again")
                    self._changed.set()
                    await asyncio.sleep(_RETRY_EVERY_SECONDS)
                else:
                    for is_behind in behind:
                        is_behind.set()

    # --- private -----------------------------------------------------------------------------------------------------

    async def _keep_told(self, signer: Child | SignerLink, is_behind: asyncio.Event) -> None:
        """Load one signer with what was read last, whenever it is behind."""
        while True:
            await is_behind.wait()
            is_behind.clear()  # what changes from here on is told by one more round
            try:
                told = await self._catch_up(signer)
            except Exception:  # noqa: BLE001 - whoever stops here leaves this signer with its old rules
                _log.exception("the signers could not be told of new rules; they are told again")
                told = False
            if not told:
                is_behind.set()
                await asyncio.sleep(_RETRY_EVERY_SECONDS)

    async def _catch_up(self, signer: Child | SignerLink) -> bool:
        """Load one signer with what was read last; whether that was possible."""
        control = self.controls.get(signer.name)
        if control is None or not signer.ready:
            return False
        try:
            await self._load(signer.name, control)
        except (Broken, OSError, TimeoutError) as fault:
            detail = str(fault) or type(fault).__name__
            _log.error("a signer did not take the new rules", extra={"child": signer.name, "detail": detail})
            return False
        return True

    async def _load(self, name: str, control: SignerControl) -> None:
        for one in await control.load(self._ecosystems):
            facts = {"child": name, "ecosystem": one.record.label, "version": one.record.version}
            _log.error("an ecosystem is not served: a signer refused it", extra={**facts, "detail": one.detail})
        refused = control.unloaded.values()
        troubles.note(name, {one.record.label: f"version {one.record.version}: {one.detail}" for one in refused})

    def _make_child(self, slot: int, journals: Path, stack: contextlib.AsyncExitStack) -> Child:
        settings = SignerSettings(
            slot=slot,
            socket_path=self.sockets[slot],
            journal_directory=str(journals),
            allowed_uids=[os.getuid()],
            log_level=self._config.log_level,
            blocklist_path=None if self._config.blocklist is None else str(self._config.blocklist),
            # Those of its slot, of which there are as many as it had journals lately.
            marks=[mark for mark in self._marks if mark.startswith(f"{slot}-")],
        )
        name = f"signer-{slot}"
        settings_fd = os.memfd_create(f"{name}-settings")
        stack.callback(os.close, settings_fd)
        os.write(settings_fd, msgspec.json.encode(settings))

        def let_go(_pid: int) -> None:
            if name in self._opened:
                self._opened.pop(name).abandon()

        return Child(name, ["-m", "estd.signer.server"], [settings_fd], self._greeter_of(name), ended=let_go)

    def _greeter_of(self, name: str) -> Callable[[socket.socket], Coroutine[None, None, SignerControl]]:
        async def greet(end: socket.socket) -> SignerControl:
            control = self._opened[name] = await SignerControl.open(end)
            try:
                if self._kek is not None:
                    await control.unlock(self._kek)
                await self._find_ecosystems()
                await self._load(name, control)
                if self._ecosystems and len(control.unloaded) == len(self._ecosystems):
                    raise Broken(f"{name} refuses every ecosystem: {next(iter(control.unloaded.values())).detail}")
            except BaseException:
                control.close()
                raise
            self.controls[name] = control
            return control

        return greet

    async def _find_ecosystems(self) -> list[EcosystemRecord]:
        """What a signer that starts is loaded with: the newest rules, or while the database is away the last known.

        A signer that waited for the database could settle nothing when that is back.
        """
        try:
            self._ecosystems = await self._store.find_ecosystems()
            expiry.note(self._ecosystems)
        except Unavailable:
            if not self._ecosystems:
                raise
            self._changed.set()
        return self._ecosystems


async def _wait_for_database(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """What it answers; a database that is away is waited for as long as a signer, which needs it as well.

    Raises:
        Unavailable: it was away all that time.
    """
    give_up_at = asyncio.get_running_loop().time() + _DATABASE_SECONDS
    while True:
        try:
            return await ask()
        except Unavailable:
            if asyncio.get_running_loop().time() > give_up_at:
                raise
        await asyncio.sleep(_RETRY_EVERY_SECONDS)


def find_farthest(texts: Iterable[str]) -> list[str]:
    """Of these marks the one of each journal that is farthest; what is no mark is left to an audit."""
    farthest: dict[str, Mark] = {}
    for mark in filter(None, map(read_mark, texts)):
        known = farthest.get(mark.journal)
        if known is None or mark.sequence > known.sequence:
            farthest[mark.journal] = mark
    return [write_mark(mark) for mark in farthest.values()]


def _adopt(heir: Heir) -> Adopted:
    return Adopted(heir.name, heir.pid, socket.socket(fileno=heir.control))
