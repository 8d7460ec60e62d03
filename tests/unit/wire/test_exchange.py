"""The values that every protocol speaks: what is equal, what is kept, and what cannot be changed on the way."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from msgspec import structs

from estd.wire.exchange import HOME, IDENTITY, Exchange, Peer, Reply

AT = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def make_exchange(peer: Peer) -> Exchange:
    return Exchange(
        "POST", "/.well-known/est/campus/simpleenroll", {"content-type": "application/pkcs10"}, b"x", peer, "r", AT
    )


def test_what_is_remembered_of_a_peer_is_its_own() -> None:
    """Admission keeps validated paths there: what one connection showed must be nothing to another."""
    first, second = Peer("192.0.2.7", (b"leaf",)), Peer("192.0.2.7", (b"leaf",))
    first.memo[HOME] = 7
    assert second.memo == {}
    assert Peer("192.0.2.7").memo == {}
    assert make_exchange(first).peer.memo is first.memo


def test_a_peer_is_what_it_showed_and_not_what_is_remembered() -> None:
    first, second = Peer("192.0.2.7", (b"leaf",)), Peer("192.0.2.7", (b"leaf",))
    first.memo[IDENTITY] = "code:1:pump-7"
    assert first == second
    assert first != Peer("192.0.2.7", (b"other",))
    assert first != Peer("192.0.2.8", (b"leaf",))
    # An identity, or a path with its keys, is for the audit trail alone.
    assert "pump-7" not in repr(first)


def test_what_is_remembered_under_one_name_is_not_under_another() -> None:
    # Beside them stand paths under (ecosystem, version) and the like, which are no texts.
    assert HOME != IDENTITY
    assert all(isinstance(name, str) for name in (HOME, IDENTITY))


def test_a_peer_that_showed_nothing_has_nothing() -> None:
    peer = Peer("192.0.2.7")
    assert (peer.certificates, peer.channel) == ((), None)


def test_nobody_becomes_another_on_the_way() -> None:
    peer = Peer("192.0.2.7", (b"leaf",))
    exchange, reply = make_exchange(peer), Reply(200)
    with pytest.raises(dataclasses.FrozenInstanceError):
        peer.certificates = (b"other",)  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError):
        exchange.peer = Peer("192.0.2.8")  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError):
        reply.status = 403  # type: ignore[misc]  # that is the point


def test_a_request_is_whole_unless_its_body_is_still_on_its_way() -> None:
    exchange = make_exchange(Peer("192.0.2.7"))
    assert exchange.incoming is None
    assert structs.replace(exchange, body=b"y").body == b"y"
    assert exchange.body == b"x"


def test_an_answer_says_nothing_that_was_not_said() -> None:
    reply = Reply(204)
    assert (reply.body, reply.content_type, reply.headers, reply.stream) == (b"", None, (), None)
