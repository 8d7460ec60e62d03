"""Which event loops the tests of the web floor run on, and a site to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop
from http_lab import SERVER, Desk, House
from tls_lab import run_floor

from estd.est.messages import write_refusal
from estd.web.site import Site

_ON_BOTH = ("test_tls", "test_outbox", "test_farewell", "test_socket_transport", "test_door", "test_watch")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production; plain asyncio too where a test drives transports."""
    if item.path.name.startswith(_ON_BOTH):
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    desk = Desk()
    site = Site(desk.answer, write_refusal, note_refusal=desk.note_refusal)
    async with run_floor(SERVER, make_inner=site.http) as floor:
        yield House(floor, site, desk)
