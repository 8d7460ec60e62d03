from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from estd.app import demo
from estd.app.demo import Neighbour, Outcome, Proof
from estd.app.fleet import Tally
from estd.app.makers import Maker
from estd.audit import Event

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
REFUSAL = Event(NOW, "est.simpleenroll", "refused", code="certificate-untrusted", request_id="ab12")
GOOD_PROOF = Proof(certificates=4, by_cryptography=4, by_openssl=4, in_store=4, strangers=0)
GOOD_NEIGHBOUR = Neighbour("pump", "south", 403, "no", REFUSAL, 0)


@pytest.mark.parametrize(
    ("proof", "complete"),
    [
        (GOOD_PROOF, True),
        (Proof(4, 4, None, 4, 0), True),
        (Proof(4, 3, 4, 4, 0), False),
        (Proof(4, 4, 3, 4, 0), False),
        (Proof(4, 4, 4, 3, 0), False),
        (Proof(4, 4, 4, 4, 1), False),
    ],
)
def test_a_proof_is_complete_when_every_check_passed_for_every_certificate(proof: Proof, complete: bool) -> None:
    assert proof.complete is complete


@pytest.mark.parametrize(
    ("neighbour", "refused"),
    [
        (GOOD_NEIGHBOUR, True),
        (Neighbour("pump", "south", 200, "it got one", None, 1), False),
        (Neighbour("pump", "south", 401, "no", REFUSAL, 0), False),
        (Neighbour("pump", "south", 403, "no", None, 0), False),
        (Neighbour("pump", "south", 403, "no", REFUSAL, 1), False),
    ],
)
def test_a_neighbour_is_refused_when_answer_audit_and_store_agree(neighbour: Neighbour, refused: bool) -> None:
    assert neighbour.refused is refused


def test_one_failed_device_spoils_the_outcome() -> None:
    assert Outcome(2, Tally(), GOOD_PROOF, GOOD_NEIGHBOUR).good
    assert not Outcome(2, Tally(failures=[("pump", "enroll", "no")]), GOOD_PROOF, GOOD_NEIGHBOUR).good
    assert not Outcome(2, Tally(), None, GOOD_NEIGHBOUR).good
    assert not Outcome(2, Tally(), GOOD_PROOF, None).good


def test_a_missing_judge_stays_missing_when_ecosystems_are_added_up() -> None:
    added = demo._add(GOOD_PROOF, Proof(2, 2, None, 2, 0))
    assert (added.certificates, added.by_openssl) == (6, None)
    assert demo._add(GOOD_PROOF, GOOD_PROOF).by_openssl == 8


class Line:
    """A maker that stands for a CA, and devices under it."""

    def __init__(self, name: str) -> None:
        self.maker = Maker.create(name, datetime.now(UTC).replace(microsecond=0))
        self.root = self.maker.certificate

    def make(self) -> x509.Certificate:
        now = datetime.now(UTC).replace(microsecond=0)
        return x509.load_pem_x509_certificate(self.maker.make_device([(NameOID.COMMON_NAME, "pump")], now)[0])


async def test_both_judges_tell_ours_from_strangers(tmp_path: Path) -> None:
    ours, other = Line("one"), Line("one")
    certificates = [ours.make(), other.make(), ours.make()]
    assert demo._verify(certificates, [], ours.root) == 2
    assert demo._verify(certificates, [], other.root) == 1
    assert await demo._verify_by_openssl(tmp_path, certificates, [], ours.root) in (2, None)


async def test_many_certificates_are_shown_to_openssl_in_several_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Line("one")
    monkeypatch.setattr(demo, "_OPENSSL_AT_ONCE", 2)
    assert await demo._verify_by_openssl(tmp_path, [ours.make() for _ in range(5)], [], ours.root) in (5, None)


async def test_without_openssl_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Line("one")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await demo._verify_by_openssl(tmp_path, [ours.make()], [], ours.root) is None


def test_the_temporary_directory_is_gone_whatever_happens() -> None:
    seen: list[Path] = []

    def interrupted() -> None:
        with demo._directory(None) as directory:
            seen.append(directory)
            (directory / "f").write_bytes(b"")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not seen[0].exists()


def test_a_directory_to_keep_is_kept(tmp_path: Path) -> None:
    with demo._directory(tmp_path / "lab") as directory:
        directory.mkdir()
    assert (tmp_path / "lab").exists()
