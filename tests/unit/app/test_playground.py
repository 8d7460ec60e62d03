import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from estd.app.playground import (
    LABELS,
    lay_out,
    read_codes,
    remove_run_file,
    write_codes,
    write_run_file,
)
from estd.app.submitted import read_ecosystem
from estd.config import default_key_path, read_config, read_key_encryption_key
from estd.errors import Invalid

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_made_and_good(tmp_path: Path) -> None:
    place = lay_out(tmp_path / "lab", "127.0.0.1", 8443, 8081, NOW)
    config = read_config(place.settings)
    assert (config.address, config.port, config.ops_port) == ("127.0.0.1", 8443, 8081)
    assert config.data_directory == place.data
    assert config.default_ecosystem == LABELS[0]
    assert config.tls_names == ("127.0.0.1", "::1")
    assert len(read_key_encryption_key(config)) == 32
    for label in LABELS:
        rules = read_ecosystem(place.ecosystem(label))
        maker = x509.load_pem_x509_certificate(place.bootstrap(label).maker[0].read_bytes())
        device = x509.load_pem_x509_certificate(place.bootstrap(label).device[0].read_bytes())
        device.verify_directly_issued_by(maker)
        assert rules.label == label
        line = x509.load_pem_x509_certificate(place.bootstrap(label).line[0].read_bytes())
        authority = x509.load_pem_x509_certificate(place.bootstrap(label).authority[0].read_bytes())
        authority.verify_directly_issued_by(line)
        purposes = authority.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {purpose.dotted_string for purpose in purposes} == {"1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.28"}
        assert [len(anchor.certificates) for anchor in rules.anchors] == [1, 1]
        assert rules.profiles["device"].registration_authorities == ("anchor:demo-line",)
        assert "anchor:demo-line" not in rules.profiles["device"].enroll
        assert rules.default_profile == "device"


def test_each_ecosystem_trusts_its_own_maker_only(tmp_path: Path) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    anchors = [read_ecosystem(place.ecosystem(label)).anchors[0].certificates for label in LABELS]
    assert not set(anchors[0]) & set(anchors[1])


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    lay_out(tmp_path, "127.0.0.1", 8443, 8081, NOW)
    (tmp_path / "estd.toml").write_text('data_directory = "data"\n[listen]\nport = 1234\n')
    before = snapshot(tmp_path)
    lay_out(tmp_path, "0.0.0.0", 1, 2, NOW.replace(year=2032))
    assert snapshot(tmp_path) == before


def test_what_is_missing_is_made_again(tmp_path: Path) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    maker = place.bootstrap(LABELS[0]).maker[0].read_bytes()
    place.bootstrap(LABELS[0]).device[0].unlink()
    lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    assert place.bootstrap(LABELS[0]).maker[0].read_bytes() == maker
    device = x509.load_pem_x509_certificate(place.bootstrap(LABELS[0]).device[0].read_bytes())
    device.verify_directly_issued_by(x509.load_pem_x509_certificate(maker))


def test_a_key_that_is_lost_is_not_replaced_while_the_database_needs_it(tmp_path: Path) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    key = default_key_path(place.data)
    key.rename(tmp_path / "elsewhere")
    (place.data / "postgres").mkdir()
    with pytest.raises(Invalid, match="only that key opens the CA keys") as caught:
        lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    assert caught.value.problems[0].where == str(key)
    assert not key.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_place_is_left_alone(tmp_path: Path) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    os.chown(place.data, 65534, 65534)
    before = snapshot(tmp_path)
    with pytest.raises(Invalid, match="belongs to nobody"):
        lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    assert snapshot(tmp_path) == before


def test_secrets_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077):
        old = os.umask(umask)
        try:
            place = lay_out(tmp_path / str(umask), "127.0.0.1", 0, 0, NOW)
        finally:
            os.umask(old)
        secret = [path for path in place.directory.rglob("*") if path.is_file() and path.suffix in (".key", ".csv")]
        assert len(secret) >= 5
        assert {mode(path) for path in secret} == {0o600}
        assert mode(place.directory / "bootstrap") == 0o700
        # PostgreSQL may run under another account, which has to pass through.
        assert mode(place.data) == 0o711
        assert mode(place.settings) == 0o644


def test_the_example_at_the_end_of_the_document_works(tmp_path: Path) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    for label in LABELS:
        path = place.ecosystem(label)
        head, mark, tail = path.read_text().partition("# [profile.gateway]")
        path.write_text(head + "\n".join(line.removeprefix("# ") for line in (mark + tail).splitlines()))
        rules = read_ecosystem(path)
        assert rules.profiles["gateway"].label == f"{label}-gateways"
        assert rules.profiles["gateway"].enroll == ("issued:device",)


@pytest.mark.parametrize(
    ("address", "name"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "2001:db8::7"), ("lab.example", "lab.example")]
)
def test_the_address_is_among_the_names_of_the_server(tmp_path: Path, address: str, name: str) -> None:
    assert name in read_config(lay_out(tmp_path, address, 0, 0, NOW).settings).tls_names


def test_a_server_is_called_by_the_names_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        lay_out(tmp_path / "lab", "127.0.0.1", 0, 0, NOW, ("est.lab.example", "no name", "localhost"))
    assert [(problem.where, problem.what) for problem in refused.value.problems] == [
        ("--name", "'no name' is neither a host name nor an address")
    ]
    assert not (tmp_path / "lab").exists()
    place = lay_out(tmp_path / "lab", "0.0.0.0", 0, 0, NOW, ("est.lab.example", "localhost", "127.0.0.1"))
    names = read_config(place.settings).tls_names
    assert {"127.0.0.1", "::1", "est.lab.example", "localhost"} <= set(names)
    assert len(names) == len(set(names)) <= 5  # with the name of this machine, if it has one


def test_codes_are_written_and_read(tmp_path: Path) -> None:
    rows = [("pump-1", "AAAAA-BBBBB"), ('pump "two", big', "CCCCC-DDDDD")]
    assert read_codes(tmp_path / "codes.csv") == []
    write_codes(tmp_path / "codes.csv", rows)
    assert (tmp_path / "codes.csv").read_text().splitlines()[0] == "device,code"
    assert read_codes(tmp_path / "codes.csv") == rows
    assert mode(tmp_path / "codes.csv") == 0o600


def test_the_run_file_is_removed_by_who_wrote_it(tmp_path: Path) -> None:
    place = lay_out(tmp_path, "127.0.0.1", 0, 0, NOW)
    remove_run_file(place, os.getpid())
    write_run_file(place, {"pid": os.getpid(), "port": 1})
    remove_run_file(place, os.getpid() + 1)
    assert json.loads(place.run_file.read_bytes())["port"] == 1
    remove_run_file(place, os.getpid())
    assert not place.run_file.exists()


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Invalid, match="Name a directory of yours"):
        lay_out(tmp_path / "file", "127.0.0.1", 0, 0, NOW)


def test_one_port_for_both_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="which devices use"):
        lay_out(tmp_path / "lab", "127.0.0.1", 8081, 8081, NOW)
    assert not (tmp_path / "lab").exists()
