"""A PostgreSQL as ``deploy/postgresql`` sets one up: its settings, its pg_hba.conf, its roles; from the wheel's programs,
or from the system's.

What differs from production: it listens on loopback; the wheel's is without TLS, for which it is not built; and the
superuser, known to the kernel by its socket as in production, may have another name among the system's users.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from estd.store.launcher import Launcher, find_account, find_binaries, find_launcher
from estd.store.private import VERSION

SHIPPED = Path(__file__).parents[1] / "deploy" / "postgresql"
ROLES = ("estd_owner", "estd", "estd_admin", "estd_auditor", "estd_standby")
SETTINGS = "/etc/estd"


class ProductionPostgres:
    """One server in `folder`, which others may enter and which is on a path short enough for a socket.

    With `system`, a directory of PostgreSQL's programs, it is one that knows TLS.
    """

    def __init__(self, folder: Path, system: Path | None = None) -> None:
        self.folder = folder
        self.has_tls = system is not None
        self.settings = folder / "etc"
        self.data = folder / "data"
        self.archive = folder / "archive"
        self.sockets = folder / "socket"
        self.binaries = find_binaries(VERSION) if system is None else system
        own = find_launcher if system is None else lambda data, _: Launcher(find_account(data))
        self.launcher = own(self.data, self.binaries)
        self.passwords = {role: secrets.token_urlsafe(16) for role in ROLES}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        for directory in (self.archive, self.sockets, self.settings):
            self.launcher.own_directory(directory)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "postgresql.log"

    def create(self) -> None:
        """Make the cluster, start it, and set up roles and database."""
        self.make_cluster(f"include '{self.settings}/estd.conf'")
        self.configure()
        self.start()
        self.psql("postgres", "-f", str(SHIPPED / "roles.sql"))
        self.give_passwords()

    def make_cluster(self, own: str) -> None:
        """Make the cluster; `own` is what its maker adds to the settings."""
        self.launcher.own_directory(self.data)
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "--data-checksums", "-E", "UTF8")
        self.give("postgresql.conf", f"{(self.data / 'postgresql.conf').read_text(encoding='utf-8')}\n{own}\n")

    def give_passwords(self) -> None:
        """What an operator types at psql's prompt."""
        for role, password in self.passwords.items():
            self.psql("postgres", "-c", f"ALTER ROLE {role} PASSWORD '{password}'")

    def adapt(self, text: str) -> str:
        """With places of this machine."""
        return text.replace("/var/lib/estd-archive", str(self.archive)).replace(SETTINGS, str(self.settings))

    def configure(self, more: str = "") -> None:
        """Put the shipped files where PostgreSQL reads them, with places of this machine in them."""
        conf = self.adapt((SHIPPED / "estd.conf").read_text(encoding="utf-8"))
        hba = (SHIPPED / "pg_hba.conf").read_text(encoding="utf-8").replace("192.0.2.0/28", "127.0.0.1/32")
        if not self.has_tls:
            conf = re.sub(r"^ssl.*\n", "", conf, flags=re.MULTILINE)
            hba = re.sub(r"^hostssl ", "host ", hba, flags=re.MULTILINE)
        self.give("../etc/estd.conf", conf)
        self.give("../etc/pg_hba.conf", hba.replace("peer", "peer map=here"))
        self.give("pg_ident.conf", f"here {self.launcher.account.name} postgres\n")
        self.place(more)

    def place(self, more: str = "") -> None:
        """Where it listens, and more settings of the test's own."""
        own = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.sockets}
        own |= {"ident_file": self.data / "pg_ident.conf"}
        text = "".join(f"{name} = '{value}'\n" for name, value in own.items())
        self.give("postgresql.auto.conf", f"{text}{more}")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as output:
            self._process = self.launcher.popen([str(self.binaries / "postgres"), "-D", str(self.data)], output)
        deadline = time.monotonic() + 60
        while True:
            ready = self.popen("pg_isready", "-h", str(self.sockets), "-p", str(self.port), "-q")
            if ready.wait(20) == 0:
                return
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self, *, kill: bool = False) -> None:
        """Stop it in order, or as a power cut does."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if kill else signal.SIGINT)
        self._process.wait(60)
        self._process = None

    def url(self, role: str) -> str:
        """The database, as that role sees it: over TCP, by password."""
        if self.has_tls:
            how = f"?sslmode=verify-full&sslrootcert={self.settings}/postgresql.pem"
            return f"postgresql://{role}:{self.passwords[role]}@localhost:{self.port}/estd{how}"
        return f"postgresql://{role}:{self.passwords[role]}@127.0.0.1:{self.port}/estd"

    def psql(self, database: str, *arguments: str, role: str = "postgres") -> str:
        """psql as the superuser, or as a role."""
        own = ["-h", "127.0.0.1"] if role != "postgres" else ["-h", str(self.sockets)]
        return self.run(
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            *own,
            "-p",
            str(self.port),
            "-U",
            role,
            "-d",
            database,
            *arguments,
            password=self.passwords.get(role),
        )

    def popen(self, program: str, *arguments: str, password: str | None = None) -> subprocess.Popen[bytes]:
        """One of PostgreSQL's programs, as the account that runs the server."""
        environment = [f"PGPASSWORD={password}"] if password is not None else []
        command = ["/usr/bin/env", *environment, str(self.binaries / program), *arguments]
        output = (self.folder / "output").open("wb")
        try:
            return self.launcher.popen(command, output)
        finally:
            output.close()

    def run(self, program: str, *arguments: str, password: str | None = None) -> str:
        """The same, to its end, which has to be good; what it said."""
        process = self.popen(program, *arguments, password=password)
        status = process.wait(120)
        said = (self.folder / "output").read_text(encoding="utf-8", errors="replace")
        assert status == 0, said
        return said

    def wait_until_promoted(self) -> None:
        """Wait until a restored server has replayed what there is and takes writes."""
        deadline = time.monotonic() + 60
        while self.psql("postgres", "-c", "SELECT pg_is_in_recovery()").strip() != "f":
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def take_over(self, path: Path) -> None:
        """Give files that somebody else wrote to the account that runs the server."""
        if os.geteuid() == 0:
            for one in (path, *path.rglob("*")):
                shutil.chown(one, self.launcher.account.uid, self.launcher.account.gid)
        path.chmod(0o700)

    def give(self, name: str, text: str) -> None:
        """Write a file of the cluster."""
        path = self.data / name
        path.write_text(text, encoding="utf-8")
        if os.geteuid() == 0:
            shutil.chown(path, self.launcher.account.uid, self.launcher.account.gid)
        path.chmod(0o600)
