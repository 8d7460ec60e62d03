import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from estd.device import folder as folder_module
from estd.device.answers import TryLater, write_pem
from estd.device.folder import Folder, Identity, open_folder
from estd.device.requests import generate_key, read_certificates, read_key, read_subject, write_key, write_request
from estd.errors import Invalid
from estd.keys.software import SoftwareKey

PURPOSE = {"operation": "simpleenroll", "url": "https://host"}


class World:
    """Makes identities that one authority certified."""

    def __init__(self, make_authority: Any) -> None:
        self.root = make_authority("root")
        self.issuing = make_authority("issuing", self.root)
        self.authorities = [self.root.certificate, self.issuing.certificate]

    def identity(self) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.issuing.issue(key.public_key(), self.root.subject)
        return Identity(SoftwareKey(key), certificate, (self.issuing.certificate,))


@pytest.fixture
def world(make_authority: Any) -> World:
    return World(make_authority)


def test_a_new_directory_holds_nothing(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a" / "b") as folder:
        assert folder.read_identity() is None


def test_what_is_saved_is_there_with_the_right_modes(tmp_path: Path, world: World) -> None:
    identity = world.identity()
    old = os.umask(0o077)
    try:
        with open_folder(tmp_path / "d") as folder:
            folder.save(identity, world.authorities)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "d/device.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "d/device.pem").stat().st_mode) == 0o644
    assert read_key(tmp_path / "d/device.key").spki == identity.key.spki
    assert read_certificates(tmp_path / "d/device.pem") == [identity.certificate, world.issuing.certificate]
    assert read_certificates(tmp_path / "d/ca.pem") == world.authorities
    found = Folder(tmp_path / "d").read_identity()
    assert found is not None
    assert (found.certificate, found.intermediates) == (identity.certificate, identity.intermediates)


def test_the_next_identity_replaces_the_last_and_leaves_no_key_behind(tmp_path: Path, world: World) -> None:
    first, second = world.identity(), world.identity()
    with open_folder(tmp_path) as folder:
        folder.save(first, world.authorities)
        folder.save(second, world.authorities)
        found = folder.read_identity()
    assert found is not None
    assert found.certificate == second.certificate
    secret = write_key(first.key)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == secret]


def test_a_crash_at_any_step_leaves_the_old_identity_or_the_new_one(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.identity(), world.identity()
    steps = ("_write", "_flush", "rename", "replace", "symlink_to", "mkdir", "rmtree")
    outcomes = set()
    for fatal in range(1, 60):
        place = tmp_path / str(fatal)
        with open_folder(place) as folder:
            folder.save(first, world.authorities)
            with monkeypatch.context() as patch:
                count = _fail_at(patch, fatal, steps)
                try:
                    folder.save(second, world.authorities)
                except _Crash:
                    pass
        found = Folder(place).read_identity()
        assert found is not None, "key and certificate always belong together"
        assert found.certificate in (first.certificate, second.certificate)
        outcomes.add(found.certificate == second.certificate)
        if count() < fatal:
            break
        with open_folder(place) as folder:
            folder.save(second, world.authorities)
            assert folder.read_identity() == second or folder.read_identity() is not None
    else:
        pytest.fail("there are more steps than were tried")
    assert outcomes == {True, False}
    assert fatal > 8


def test_plain_files_are_taken_over_without_a_moment_of_mismatch(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.identity(), world.identity()
    steps = ("_write", "_flush", "rename", "replace", "symlink_to", "mkdir", "rmtree")
    for fatal in range(1, 80):
        place = tmp_path / str(fatal)
        place.mkdir()
        (place / "device.key").write_bytes(write_key(first.key))
        (place / "device.pem").write_bytes(write_pem([first.certificate, *first.intermediates]))
        with open_folder(place) as folder, monkeypatch.context() as patch:
            count = _fail_at(patch, fatal, steps)
            try:
                folder.save(second, world.authorities)
            except _Crash:
                pass
        found = Folder(place).read_identity()
        assert found is not None
        assert found.certificate in (first.certificate, second.certificate)
        if count() < fatal:
            assert found.certificate == second.certificate
            return
    pytest.fail("there are more steps than were tried")


def test_a_first_identity_that_a_crash_interrupted_is_none_or_whole(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = world.identity()
    for fatal in range(1, 60):
        place = tmp_path / str(fatal)
        with open_folder(place) as folder, monkeypatch.context() as patch:
            count = _fail_at(patch, fatal, ("_write", "_flush", "replace", "symlink_to", "mkdir"))
            try:
                folder.save(identity, world.authorities)
            except _Crash:
                pass
        found = Folder(place).read_identity()
        assert found is None or found.certificate == identity.certificate
        if count() < fatal:
            assert found is not None
            return
    pytest.fail("there are more steps than were tried")


def test_a_key_that_somebody_put_there_is_not_written_over(tmp_path: Path, world: World) -> None:
    (tmp_path / "device.key").write_bytes(write_key(world.identity().key))
    with pytest.raises(Invalid):
        Folder(tmp_path).read_identity()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, world: World) -> None:
    (tmp_path / "device.key").write_bytes(write_key(world.identity().key))
    (tmp_path / "device.pem").write_bytes(write_pem([world.identity().certificate]))
    with pytest.raises(Invalid, match="belong together"):
        Folder(tmp_path).read_identity()


def test_a_request_is_found_again_for_the_same_purpose_only(tmp_path: Path) -> None:
    request = write_request(generate_key("ec-p256"), read_subject("CN=a"))
    with open_folder(tmp_path) as folder:
        assert folder.find_request(PURPOSE) is None
        folder.keep_request(request, PURPOSE)
        again = folder.find_request(PURPOSE)
        assert again is not None
        assert (again.der, again.spki) == (request.der, request.spki)
        assert stat.S_IMODE((tmp_path / ".pending").stat().st_mode) == 0o700
        assert folder.find_request({**PURPOSE, "url": "https://elsewhere"}) is None
        assert folder.find_request(PURPOSE) is None, "one for another purpose is dropped"


def test_a_damaged_request_counts_as_none(tmp_path: Path) -> None:
    request = write_request(generate_key("ec-p256"))
    for name in ("device.key", "request.der", "purpose.json"):
        with open_folder(tmp_path) as folder:
            folder.keep_request(request, PURPOSE)
            if name == "request.der":
                (tmp_path / ".pending" / name).unlink()
            else:
                (tmp_path / ".pending" / name).write_bytes(b"{")
            assert folder.find_request(PURPOSE) is None
    assert not (tmp_path / ".pending").exists()


def test_saving_forgets_the_request(tmp_path: Path, world: World) -> None:
    with open_folder(tmp_path) as folder:
        folder.keep_request(write_request(generate_key("ec-p256")), PURPOSE)
        (tmp_path / ".pending.left").mkdir()
        folder.save(world.identity(), world.authorities)
    assert not list(tmp_path.glob(".pending*"))


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with open_folder(tmp_path), pytest.raises(TryLater, match="another process"), open_folder(tmp_path):
        pytest.fail("both are in")
    with open_folder(tmp_path):
        pass  # the lock is gone with its holder


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Invalid), open_folder(tmp_path / "file"):
        pytest.fail("a file is no directory")


# --- a process that dies at a given step -----------------------------------------------------------------------------


class _Crash(BaseException):
    """The process is gone."""


def _fail_at(patch: pytest.MonkeyPatch, fatal: int, steps: tuple[str, ...]) -> Callable[[], int]:
    """Every file operation counts; the one of that number does not happen, and nothing after it does."""
    count = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count >= fatal:
                raise _Crash
            return original(*args, **kwargs)

        return step

    for name in steps:
        if name.startswith("_"):
            patch.setattr(folder_module, name, wrap(getattr(folder_module, name)))
        elif name == "rmtree":
            patch.setattr(folder_module.shutil, name, wrap(folder_module.shutil.rmtree))
        else:
            patch.setattr(Path, name, wrap(getattr(Path, name)))
    return lambda: count
