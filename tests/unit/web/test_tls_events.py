"""The words that metrics carry, and OpenSSL's words for a failed handshake, turned into them."""

from __future__ import annotations

import re

import pytest

from estd.web.place import Refusal
from estd.web.tls_events import Event, read_failure


def test_no_two_things_are_counted_under_one_word() -> None:
    words = [str(one) for one in (*Event, *Refusal)]
    assert len(set(words)) == len(words)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", word) for word in words)


def test_a_word_says_whose_doing_it_was() -> None:
    """Alerting rules match by how a word begins."""
    for event in Event:
        begins = {"FAILED": "handshake-failed-", "EVICTED": "evicted-"}.get(event.name.partition("_")[0], "")
        assert event.value.startswith(begins)
        assert event.value == begins + event.name.removeprefix("FAILED_").removeprefix("EVICTED_").lower().replace(
            "_", "-"
        )


@pytest.mark.parametrize(
    ("reasons", "event"),
    [
        ("unsupported protocol", Event.FAILED_VERSION),
        ("no shared cipher", Event.FAILED_NOTHING_IN_COMMON),
        ("no suitable key share", Event.FAILED_NOTHING_IN_COMMON),
        ("no suitable signature algorithm", Event.FAILED_NOTHING_IN_COMMON),
        ("no shared signature algorithms", Event.FAILED_NOTHING_IN_COMMON),
        ("no application protocol", Event.FAILED_APPLICATION_PROTOCOL),
        ("provider signature failure; bad signature", Event.FAILED_POSSESSION),
        ("tlsv1 alert unknown ca", Event.FAILED_PEER_ALERT),
        ("sslv3 alert bad certificate", Event.FAILED_PEER_ALERT),
        # The peer's alert is its word, whatever it is about; what we found wrong comes without that one.
        ("tlsv1 alert no application protocol", Event.FAILED_PEER_ALERT),
        ("tlsv1 alert protocol version; unsupported protocol", Event.FAILED_PEER_ALERT),
        # What nobody foresaw is a fault of the peer's all the same, and counted.
        ("", Event.FAILED_PROTOCOL),
        ("unexpected message", Event.FAILED_PROTOCOL),
        ("alert", Event.FAILED_PROTOCOL),
    ],
)
def test_each_reason_of_openssls_is_an_event(reasons: str, event: Event) -> None:
    assert read_failure(reasons) is event


def test_whatever_it_says_the_handshake_failed() -> None:
    for part in ("", *(str(event) for event in Event), "no", "bad", "signature", " alert "):
        assert str(read_failure(part)).startswith("handshake-failed-")
