"""Settings: every problem at once, and the key-encryption key from each of its sources."""

from __future__ import annotations

import getpass
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from estd.config import (
    Config,
    check_blocklist,
    default_key_path,
    describe_key,
    explain_unreadable,
    find_changes,
    read_config,
    read_key_encryption_key,
)
from estd.errors import Invalid

KEY = bytes(range(32))


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(Invalid) as caught:
        read_config(path)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_with_only_a_directory_gets_every_default(tmp_path: Path) -> None:
    config = read_config(write(tmp_path / "estd.toml", 'data_directory = "data"'))
    assert config == Config(data_directory=tmp_path / "data")
    assert config.worker_count >= 1
    assert config.signer_count >= 2


def test_everything_that_can_be_set_is_read(tmp_path: Path) -> None:
    write(tmp_path / "url", "postgresql://estd@db/estd\n")
    config = read_config(
        write(
            tmp_path / "estd.toml",
            """
            data_directory = "/srv/estd"
            [listen]
            address = "127.0.0.1"
            port = 9443
            [ops]
            address = "127.0.0.2"
            port = 9081
            [database]
            url_file = "url"
            [keys]
            environment = "ESTD_KEY"
            [tls]
            names = ["est.example", "192.0.2.1"]
            certificate = "server.pem"
            key = "server.key"
            [est]
            default_ecosystem = "campus"
            [processes]
            workers = 3
            signers = 4
            [log]
            level = "debug"
            """,
        )
    )
    assert config == Config(
        data_directory=Path("/srv/estd"),
        address="127.0.0.1",
        port=9443,
        ops_address="127.0.0.2",
        ops_port=9081,
        database_url="postgresql://estd@db/estd",
        key_environment="ESTD_KEY",
        tls_names=("est.example", "192.0.2.1"),
        tls_certificate=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        default_ecosystem="campus",
        workers=3,
        signers=4,
        log_level="debug",
    )
    assert config.worker_count == 3
    assert config.signer_count == 4


def test_a_database_password_is_not_in_the_repr(tmp_path: Path) -> None:
    path = write(tmp_path / "estd.toml", 'data_directory = "d"\n[database]\nurl = "postgresql://u:secret@db/estd"')
    assert "secret" not in repr(read_config(path))


WITH_PASSWORD = ("postgresql://u:secret@db/estd", "postgresql://u@db/estd?password=secret")
WITHOUT_PASSWORD = ("postgresql://u@db/estd", "postgresql:///estd?host=/run/postgresql", "postgresql://u:@db/estd")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_a_database_password_that_others_can_read_is_refused(tmp_path: Path, url: str, mode: int) -> None:
    path = write(tmp_path / "estd.toml", f'data_directory = "d"\n[database]\nurl = "{url}"', mode)
    (problem,) = problems_of(path)
    assert "can be read by others" in problem
    assert f"chmod 600 {path}" in problem
    assert "secret" not in problem
    path.chmod(0o600)
    assert read_config(path).database_url == url


@pytest.mark.parametrize("url", WITHOUT_PASSWORD)
def test_settings_without_a_password_are_no_secret(tmp_path: Path, url: str) -> None:
    path = write(tmp_path / "estd.toml", f'data_directory = "d"\n[database]\nurl = "{url}"', 0o644)
    assert read_config(path).database_url == url


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_with_the_databases_url_is_refused_like_the_key_file(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path / "url", WITH_PASSWORD[0], mode)
    path = write(tmp_path / "estd.toml", 'data_directory = "d"\n[database]\nurl_file = "url"', 0o644)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}: database.url_file: ")
    assert f"chmod 600 {file}" in problem
    for private in (0o600, 0o400):
        file.chmod(private)
        assert read_config(path).database_url == WITH_PASSWORD[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("mode", "open_"), [(0o440, False), (0o640, False), (0o444, True), (0o460, True)])
def test_a_secret_that_is_handed_out_is_read_by_its_group(tmp_path: Path, mode: int, open_: bool) -> None:
    """As systemd (an access list) and Kubernetes (fsGroup) do: the file is another user's."""
    file = write(tmp_path / "url", WITH_PASSWORD[0], mode)
    path = write(tmp_path / "estd.toml", 'data_directory = "d"\n[database]\nurl_file = "url"')
    os.chown(file, 12345, -1)
    if open_:
        assert "can be read by others" in problems_of(path)[0]
    else:
        assert read_config(path).database_url == WITH_PASSWORD[0]


def test_a_file_with_a_url_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "url", "")
    file.write_bytes(b"postgresql://u:s\xe9cret@db/estd")
    path = write(tmp_path / "estd.toml", 'data_directory = "d"\n[database]\nurl_file = "url"')
    (problem,) = problems_of(path)
    assert problem == f"{path}: database.url_file: {file} is not text. Write the URL alone into it, in UTF-8."


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "estd.toml",
        """
        color = "blue"
        log = "loud"
        [listen]
        prot = 1
        port = 70000
        [ops]
        port = true
        [tls]
        names = []
        certificate = "c.pem"
        [keys]
        file = "k"
        environment = "K"
        [processes]
        workers = -1
        [database]
        url = "x"
        url_file = "missing"
        """,
    )
    found = problems_of(path)
    for where in (
        "color",
        "log",
        "listen.prot",
        "listen.port",
        "ops.port",
        "tls.names",
        "tls",
        "keys",
        "processes.workers",
        "database",
        "database.url_file",
        "data_directory",
    ):
        assert any(problem.startswith(f"{path}: {where}: ") for problem in found), where
    assert len(found) == 12


def test_an_unknown_log_level_is_told(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path / "estd.toml", 'data_directory = "d"\n[log]\nlevel = "loud"'))
    assert "debug, info, warning, error" in problem


@pytest.mark.parametrize("text", ["data_directory = ", "\xff"])
def test_what_is_not_toml_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "estd.toml"
    path.write_bytes(text.encode("latin-1"))
    (problem,) = problems_of(path)
    assert "is not TOML" in problem


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    config = read_config(write(tmp_path / "estd.toml", '\ufeffdata_directory = "data"'))
    assert config == Config(data_directory=tmp_path / "data")


def test_what_is_nested_too_deeply_is_told(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path / "estd.toml", f"x = {'[' * 3000}{']' * 3000}"))
    assert "nested too deeply" in problem


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "none.toml")
    assert "No such file" in problem


@pytest.mark.parametrize("content", [KEY, KEY.hex().encode(), KEY.hex().encode() + b"\n"])
def test_the_key_file_holds_digits_or_bytes(tmp_path: Path, content: bytes) -> None:
    path = default_key_path(tmp_path)
    path.touch(mode=0o600)
    path.write_bytes(content)
    assert read_key_encryption_key(Config(data_directory=tmp_path)) == KEY


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(KEY.hex())
    path.chmod(0o640)
    with pytest.raises(Invalid, match=r"can be read by others.*chmod 600"):
        read_key_encryption_key(Config(data_directory=tmp_path, key_file=path))


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_malformed_key_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "k"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(Invalid) as caught:
        read_key_encryption_key(Config(data_directory=tmp_path, key_file=path))
    assert "openssl rand -hex 32" in str(caught.value)
    assert not content or content not in str(caught.value)


def test_the_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(data_directory=tmp_path, key_environment="ESTD_TEST_KEY")
    monkeypatch.delenv("ESTD_TEST_KEY", raising=False)
    with pytest.raises(Invalid, match="is not set"):
        read_key_encryption_key(config)
    monkeypatch.setenv("ESTD_TEST_KEY", KEY.hex())
    assert read_key_encryption_key(config) == KEY


def test_the_key_as_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(data_directory=tmp_path, key_credential="kek")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(Invalid, match="LoadCredential"):
        read_key_encryption_key(config)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "kek").write_bytes(KEY)
    assert read_key_encryption_key(config) == KEY


def test_a_blocklist_is_checked_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "blocked"
    config = Config(data_directory=tmp_path, blocklist=path)
    with pytest.raises(Invalid, match="cannot be read"):
        check_blocklist(config)
    path.write_text("nonsense\n")
    with pytest.raises(Invalid, match="line 1"):
        check_blocklist(config)
    path.write_bytes(b"\xff\n")
    with pytest.raises(Invalid, match="not a text file"):
        check_blocklist(config)
    path.write_text("ab" * 32)
    check_blocklist(config)
    check_blocklist(Config(data_directory=tmp_path))


def test_signers_are_either_started_or_found(tmp_path: Path) -> None:
    text = 'data_directory = "data"\n[signers]\nsockets = ["run/0.sock", "/run/1.sock"]\n'
    config = read_config(write(tmp_path / "estd.toml", text))
    assert config.signer_sockets == (tmp_path / "run" / "0.sock", Path("/run/1.sock"))
    assert config.signer_count == 2
    (problem,) = problems_of(write(tmp_path / "estd.toml", f"{text}[processes]\nsigners = 2\n"))
    assert "both set" in problem


@pytest.mark.parametrize(
    ("address", "ops", "is_one"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "127.0.0.1", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "127.0.0.1", False),
    ],
)
def test_devices_and_the_ops_port_do_not_meet(tmp_path: Path, address: str, ops: str, is_one: bool) -> None:
    text = f'data_directory = "d"\nlisten = {{ address = "{address}", port = 8081 }}\nops.address = "{ops}"\n'
    path = write(tmp_path / "estd.toml", text)
    if is_one:
        assert problems_of(path) == [f"{path}: ops.port: is listen.port, which devices use. Choose another port."]
    else:
        assert read_config(path).port == 8081
    path.write_text(text.replace("8081", "8443"))
    assert read_config(path).port == 8443


def test_names_that_no_certificate_can_carry(tmp_path: Path) -> None:
    names = '["ca.plant.example", "192.0.2.7", "2001:db8::7", "*.plant.example", "bad name", "https://ca"]'
    path = write(tmp_path / "estd.toml", f'data_directory = "d"\ntls.names = {names}\n')
    assert [problem.partition(" is neither")[0] for problem in problems_of(path)] == [
        f"{path}: tls.names: 'bad name'",
        f"{path}: tls.names: 'https://ca'",
    ]
    many = ", ".join(f'"h{number}.example"' for number in range(51))
    path.write_text(f'data_directory = "d"\ntls.names = [{many}]\n')
    assert problems_of(path) == [f"{path}: tls.names: are too many. Name at most 50."]


@pytest.mark.parametrize("url", ["mysql://u:secret@db/estd", "db.example", ""])
def test_a_database_that_is_no_postgresql(tmp_path: Path, url: str) -> None:
    path = write(tmp_path / "estd.toml", f'data_directory = "d"\ndatabase.url = "{url}"\n')
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}: database.url: does not begin with postgresql://. Write it like ")
    assert "secret" not in problem
    write(tmp_path / "url", url)
    path.write_text('data_directory = "d"\ndatabase.url_file = "url"\n')
    assert f"{tmp_path / 'url'}: does not begin with" in problems_of(path)[0]


def test_a_missing_key_is_made_by_a_command_that_works_as_pasted(tmp_path: Path) -> None:
    config = Config(data_directory=tmp_path)
    with pytest.raises(Invalid) as caught:
        read_key_encryption_key(config)
    (problem,) = caught.value.problems
    assert (problem.where, problem.what) == (str(default_key_path(tmp_path)), "does not exist")
    command = problem.remedy.partition(": ")[2].partition(". Otherwise")[0]
    subprocess.run(["sh", "-c", command], check=True)
    assert len(read_key_encryption_key(config)) == 32


def test_a_key_that_cannot_be_read_is_never_made_anew(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(Invalid) as caught:
        read_key_encryption_key(Config(data_directory=tmp_path, key_file=tmp_path / "key"))
    remedies = [caught.value.problems[0].remedy, explain_unreadable(tmp_path, PermissionError(13, "Permission denied"))]
    assert "cannot be read (Is a directory)" in str(caught.value)
    assert f"chown {getpass.getuser()} {tmp_path}" in remedies[1]
    assert [remedy for remedy in remedies if "openssl" in remedy or ">" in remedy] == []


def test_where_the_key_comes_from_is_told(tmp_path: Path) -> None:
    config = Config(data_directory=tmp_path)
    assert describe_key(config) == str(tmp_path / "key-encryption.key")
    assert describe_key(replace(config, key_file=tmp_path / "k")) == str(tmp_path / "k")
    assert describe_key(replace(config, key_environment="K")) == "environment variable K"
    assert describe_key(replace(config, key_credential="k")) == "systemd credential k"


def test_changes_are_named_as_they_are_written(tmp_path: Path) -> None:
    before = read_config(write(tmp_path / "estd.toml", 'data_directory = "d"\n'))
    text = (
        'data_directory = "d"\nlisten.port = 1\nops.port = 2\ndatabase.url = "postgresql://db/x"\nlog.level = "debug"\n'
    )
    after = read_config(write(tmp_path / "other.toml", text))
    assert find_changes(before, after) == ["listen.port", "ops.port", "database.url", "log.level"]
    assert find_changes(before, before) == []
    assert before.where("listen.port") == f"{tmp_path / 'estd.toml'}: listen.port"
    assert Config(data_directory=tmp_path).where("listen.port") == "listen.port"
