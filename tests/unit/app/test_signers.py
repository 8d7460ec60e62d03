"""The supervisor's side of a signer's control channel."""

from __future__ import annotations

import asyncio
import socket

from estd.app.signers import SignerControl
from estd.signer.frames import Done, StatusReport, control_reader, write_frame

DIGEST = bytes(32)


async def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    """A caller gave up; the next one gets its own answer and not the one before."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    control = await SignerControl.open(ours)
    late = asyncio.create_task(control.anchor(1, DIGEST))
    (asked,) = control_reader().feed(await loop.sock_recv(theirs, 65536))
    late.cancel()
    await asyncio.wait({late})
    report = asyncio.create_task(control.status())
    (wanted,) = control_reader().feed(await loop.sock_recv(theirs, 65536))
    answer = StatusReport(wanted.number, "0-00", draining=False, ecosystems={}, prepared=0, counters={})
    await loop.sock_sendall(theirs, write_frame(Done(asked.number)) + write_frame(answer))
    assert await report == answer
    control.close()
    theirs.close()
