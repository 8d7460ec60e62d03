"""The control channel: whole messages, in order, and a clear end."""

from __future__ import annotations

import asyncio
import socket

import pytest

from estd.app.control import Control
from estd.errors import Broken


async def pair() -> tuple[Control, socket.socket]:
    ours, theirs = socket.socketpair()
    return await Control.open(ours), theirs


async def test_messages_arrive_whole_and_in_order() -> None:
    control, other = await pair()
    other.sendall(b'{"a": 1}\n{"b"')
    other.sendall(b': "\\u00e4"}\n')
    assert await control.receive() == {"a": 1}
    assert await control.receive() == {"b": "ä"}
    control.close()
    other.close()


async def test_a_ping_takes_its_own_answer_and_ends_with_the_channel() -> None:
    ours, theirs = socket.socketpair()
    one, two = await Control.open(ours), await Control.open(theirs)
    first = asyncio.create_task(one.ping())
    assert await two.receive() == {"ping": 1}
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.create_task(one.ping())
    assert await two.receive() == {"ping": 2}
    two.send({"pong": 1})  # late: for whoever gave up
    await asyncio.sleep(0)
    assert not second.done()
    two.send({"pong": 2})
    await second
    two.close()
    with pytest.raises(Broken):
        await one.ping()
    one.close()


async def test_the_end_of_the_channel_is_none_even_in_the_middle_of_a_line() -> None:
    control, other = await pair()
    other.sendall(b'{"a": 1}\n{"half')
    other.close()
    assert [message async for message in control.messages()] == [{"a": 1}]
    control.close()


async def test_what_is_sent_can_be_received() -> None:
    ours, theirs = socket.socketpair()
    one, two = await Control.open(ours), await Control.open(theirs)
    one.send({"tls_key": "-----BEGIN\n"})
    assert await two.receive() == {"tls_key": "-----BEGIN\n"}
    one.close()
    assert await two.receive() is None
    one.send({"late": True})  # must not raise: whoever reads notices the end
    two.close()
