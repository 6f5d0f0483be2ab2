"""Postgres: one server or, in a replicated home, a primary and a standby that has every commit before its client knows.

Which of the two is the primary is nowhere written down but in their own data: see `Postgres.primary`.
"""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.machine.home import ATTEMPT, STORE_OF, Home, write_secret
from mesh.machine.processes import MeshError, package_file

if TYPE_CHECKING:
    from asyncpg import Connection, Record

OS_USER = "embedded_postgres"
PROMOTED_WITHIN = 60  # seconds


class Postgres:
    """See mesh.machine.stores.Store."""

    name = "postgres"
    # Its "fast" shutdown, which does not wait for clients to leave.
    stop_signal = signal.SIGINT
    # Its "immediate" shutdown is what a crash is to the data. SIGKILL would leave processes of its own behind, which
    # hold the port.
    crash_signal = signal.SIGQUIT

    def __init__(self, home: Home) -> None:
        self.home = home

    @property
    def members(self) -> list[str]:
        """Names of the servers."""
        return self.home.members(self.name)

    @property
    def url(self) -> str:
        """Superuser's URL of the database `postgres`; with two servers, of whichever is the primary."""
        if self.name in self.home.external:
            return self.home.external[self.name]
        attributes = "&target_session_attrs=read-write" if len(self.members) > 1 else ""
        return self._url(self.home.addresses(self.name)) + attributes

    def _url(self, address: str) -> str:
        return f"postgresql://postgres:{self.home.passwords[self.name]}@{address}/postgres?sslmode=disable"

    def primary(self) -> str:
        """The member whose data are the truth, whether it runs or not.

        A standby has the file standby.signal. A promotion removes it before the first write is accepted, and begins a
        new timeline, whose history file is written before that. So of two former primaries the later one has the
        higher timeline, also when it was killed right after its promotion. The control file would not do: it names the
        new timeline only after the next checkpoint.
        """
        there = [member for member in self.members if (self._data(member) / "PG_VERSION").exists()]
        primaries = [member for member in there if not self._is_standby(member)]
        if there and not primaries:
            raise MeshError(f"{there[0]} is a standby, and the data of its primary are gone")
        return max(primaries, key=self._timeline, default=self.members[0])

    def _data(self, member: str) -> Path:
        return self.home.path / member

    def _is_standby(self, member: str) -> bool:
        return (self._data(member) / "standby.signal").exists()

    def _timeline(self, member: str) -> int:
        histories = (self._data(member) / "pg_wal").glob("*.history")
        return max((int(file.stem, 16) for file in histories), default=1)

    # Starting

    def listens(self, member: str) -> tuple[str, ...]:
        """One port."""
        return (member,)

    def needs(self, member: str) -> Sequence[str]:
        """A standby may have to be copied from its primary."""
        primary = self.primary()
        return () if member == primary else (primary,)

    def os_user(self) -> str:
        """The user that Postgres runs as; empty for the present one. Postgres refuses to run as root."""
        if os.geteuid() != 0:
            return ""
        try:
            pwd.getpwnam(OS_USER)
        except KeyError:
            command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OS_USER]
            subprocess.run(command, check=True, capture_output=True)
        return OS_USER

    def prepare(self, member: str) -> None:
        """Makes the member's data if there are none. Those of a former primary are made anew from the present one.

        Rewinding a former primary would be faster when there are many gigabytes, and one more way that has to be right.
        """
        data, primary = self._data(member), self.primary()
        if self.os_user():
            for folder in (*data.parents, *package_file("embedded_postgres").parents):
                if not folder.stat().st_mode & 0o001:
                    folder.chmod(folder.stat().st_mode | 0o011)  # that user has to get to the files below
        if len(self.members) > 1:
            self._hand_over(self._login(member), f"*:*:*:postgres:{self.home.passwords[self.name]}\n")
        if (data / "PG_VERSION").exists() and (member == primary or self._is_standby(member)):
            data.chmod(0o700)  # Postgres insists, and a volume's owner may have let a group in (fsGroup)
            return
        unfinished = data.with_name(f"{member}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if user := self.os_user():
            shutil.chown(unfinished, user, pwd.getpwnam(user).pw_gid)
        if member == primary:
            self._initialize(unfinished)
        else:
            self._copy(primary, member, unfinished)
        shutil.rmtree(data, ignore_errors=True)  # of a former primary, or left by an initdb that was killed
        unfinished.rename(data)

    def _initialize(self, folder: Path) -> None:
        password_file = self.home.path / "postgres.password"
        self._hand_over(password_file, self.home.passwords[self.name])
        options = "-U postgres --auth=scram-sha-256 --encoding=UTF8 --locale=C"
        options += " --locale-provider=builtin --builtin-locale=C.UTF-8 --no-sync"
        try:
            # Syncing once at the end is faster than syncing file by file.
            self._run("initdb", folder, *options.split(), f"--pwfile={password_file}")
            self._run("initdb", folder, "--sync-only")
        finally:
            password_file.unlink()
        with (folder / "pg_hba.conf").open("a") as hba:
            hba.write("host all all all scram-sha-256\n")  # clients of any address, with a password

    def _copy(self, primary: str, member: str, folder: Path) -> None:
        self._run("pg_basebackup", folder, "-d", self._conninfo(primary, member), "--checkpoint=fast")
        self._hand_over(folder / "standby.signal", "")

    def _run(self, program: str, folder: Path, *arguments: str) -> None:
        """Runs one of Postgres' programs as its user."""
        command: list[str | Path] = [self._program(program), "-D", folder, *arguments]
        if user := self.os_user():
            # Not subprocess' own `user`, with which it forks instead of spawning: in a program that makes gRPC calls
            # at the same time, gRPC's fork handlers then crash one child in three before it has become `command`.
            group = pwd.getpwnam(user).pw_gid
            command = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--", *command]
        try:
            # close_fds is off, since the program has to hold the home's lock too, see Processes.exclusive.
            subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, close_fds=False)
        except subprocess.CalledProcessError as error:
            raise MeshError(f"{program} failed: {error.stderr or error}") from error

    def _program(self, name: str) -> Path:
        return package_file("embedded_postgres", "pginstall", "bin", name)

    def _hand_over(self, file: Path, text: str) -> None:
        """Writes a file that only Postgres' user reads."""
        write_secret(file, text)
        if user := self.os_user():
            shutil.chown(file, user)

    def _login(self, member: str) -> Path:
        return self.home.path / f"{member}.pgpass"

    def _conninfo(self, to: str, member: str) -> str:
        """How a member reaches another one; the password is in a file, since everybody may read a command line."""
        host, _, port = self.home.address(to).partition(":")
        # As libpq reads a value with spaces in it.
        file = str(self._login(member)).replace("\\", r"\\").replace("'", r"\'")
        login = f"user=postgres passfile='{file}' application_name={member}"
        return f"host={host} port={port} {login} sslmode=disable"

    def command(self, member: str) -> list[str | Path]:
        """The command. fsync and synchronous_commit are on by default, so a commit survives a crash."""
        settings: dict[str, object] = {
            "listen_addresses": "*" if self.home.listen.startswith("[") else self.home.listen,  # its :: takes no IPv4
            "port": self.home.port(member),
            "unix_socket_directories": "",  # a socket's path may have 107 bytes, and the home's path may be longer
            "max_connections": 200,  # four services' pools, with room for replicas and tests
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        for peer in self.members:
            if peer != member:  # a primary has no use for these
                settings |= {
                    "primary_conninfo": self._conninfo(peer, member),
                    "wal_retrieve_retry_interval": "500ms",  # the default is 5 s, in which commits wait
                    "wal_keep_size": "512MB",  # what a standby may miss
                }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [self._program("postgres"), "-D", self._data(member), *options]

    # Working

    def stuck(self, member: str) -> bool:
        """Never: it writes as soon as there is room, or ends by itself."""
        return False

    def provision(self, member: str) -> None:
        """On the primary, a database and a role for each service, and nobody else may connect to it.

        On the standby, that it has what the primary acknowledges.
        """
        asyncio.run(self._provision(member))

    async def _provision(self, member: str) -> None:
        async with self.connection(member) as connection:
            if len(self.members) > 1 and await connection.fetchval("SELECT pg_is_in_recovery()"):
                await self._follow(connection, member)
            else:
                await self._make_databases(connection)

    @asynccontextmanager
    async def connection(self, member: str) -> "AsyncIterator[Connection[Record]]":
        import asyncpg

        url = self.url if self.name in self.home.external else self._url(self.home.address(member))
        connection = await asyncpg.connect(url, timeout=ATTEMPT)
        try:
            yield connection
        finally:
            await connection.close()

    async def _make_databases(self, connection: "Connection[Record]") -> None:
        # Else it would wait for a standby that may have to wait for this. It is done again at the next start.
        await connection.execute("SET synchronous_commit = local")
        for name in [service for service, store in STORE_OF.items() if store == self.name]:
            exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
            verb = "ALTER" if exists else "CREATE"
            await connection.execute(f"{verb} ROLE {name} LOGIN PASSWORD '{self.home.passwords[name]}'")
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
            await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")

    async def _follow(self, standby: "Connection[Record]", member: str) -> None:
        """Has the primary wait for this standby at each commit; raises until it does.

        From then on commits wait while the standby is away, which is the price of having two servers: with three, the
        primary would wait for any one of the other two. A primary that was just promoted waits for nobody until the
        other one is its standby.
        """
        # It was copied from a primary that may have waited for a standby. Promoted, it has none.
        await _set(standby, "synchronous_standby_names", "")
        (peer,) = (peer for peer in self.members if peer != member)
        async with self.connection(peer) as primary:
            await _set(primary, "synchronous_standby_names", f'"{member}"')
            state = await primary.fetchval(
                "SELECT sync_state FROM pg_stat_replication WHERE application_name = $1", member
            )
        if state != "sync":
            raise MeshError(f"{peer} does not wait for it yet at each commit")

    def promote(self, member: str) -> None:
        """Makes the standby the primary. The caller has seen that the primary is dead."""

        async def promote() -> None:
            async with self.connection(member) as connection:
                if not await connection.fetchval("SELECT pg_promote(true, $1)", PROMOTED_WITHIN):
                    raise MeshError(f"{member} is still a standby after {PROMOTED_WITHIN} s")

        asyncio.run(promote())


async def _set(connection: "Connection[Record]", name: str, value: str) -> None:
    if await connection.fetchval("SELECT current_setting($1)", name) != value:
        await connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        await connection.execute("SELECT pg_reload_conf()")
