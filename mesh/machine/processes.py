"""The processes of one home: started in sessions of their own, found again by their records, and stopped exactly.

A record is `run/NAME.json` with pid and start time. A pid alone does not identify a process, since pids are reused.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.machine.launch import LOCK_FD


class MeshError(Exception):
    """What went wrong and what to do about it, in words for the person who called."""


def package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, found without an import: importing some of these packages has side effects."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MeshError(f"the package {package} is not installed: run ./dev")
    return Path(next(iter(spec.submodule_search_locations)), *parts)


@dataclass(frozen=True)
class Process:
    """A process that lives. `start` is in clock ticks since boot."""

    pid: int
    start: int

    @property
    def uptime(self) -> float:
        """Seconds."""
        since_boot = float(Path("/proc/uptime").read_text().split()[0])
        return since_boot - self.start / os.sysconf("SC_CLK_TCK")


def _start_of(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it has ended, also if it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _reap(pid: int) -> None:
    """Waits for a process that has ended, if it is a child of this one: otherwise it would stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class Processes:
    """Starts, finds and stops the processes of the home."""

    def __init__(self, home: Path) -> None:
        self.run = home / "run"
        self.logs = home / "logs"

    @contextlib.contextmanager
    def exclusive(self, patience: float = 120) -> Iterator[int]:
        """One command at a time works on a home. Yields the lock's file descriptor.

        Children hold the lock too until they have recorded themselves, and initdb until it ends. So after a `kill -9`
        of `up` in the middle of a start, the next command waits until every process has its record.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        lock = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.set_inheritable(lock, True)
        deadline = time.monotonic() + patience
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise MeshError(f"another mesh command is still at work in {self.run.parent}") from None
                    time.sleep(0.05)
            yield lock
        finally:
            os.close(lock)

    def recorded(self) -> list[str]:
        """Names that have a record, whether alive or not."""
        return sorted(path.stem for path in self.run.glob("*.json"))

    def find(self, name: str) -> Process | None:
        """The process, if it lives and is the one that was recorded."""
        try:
            record = json.loads((self.run / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        _reap(record["pid"])
        return Process(**record) if _start_of(record["pid"]) == record["start"] else None

    def log(self, name: str) -> Path:
        """The file that the process' output goes to."""
        return self.logs / f"{name}.log"

    def launch(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str], directory: Path, user: str, lock: int
    ) -> None:
        """Starts a process in a session of its own, so that a Ctrl-C for this command does not reach it.

        MeshError: it could not be started.
        """
        record = self.run / f"{name}.json"
        record.unlink(missing_ok=True)
        script = Path(__file__).with_name("launch.py")
        arguments = [sys.executable, "-I", "-S", script, record, directory, user, *command]
        pid = os.posix_spawn(
            sys.executable,
            [str(a) for a in arguments],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log(name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lock, LOCK_FD),
            ],
            setsid=True,
        )
        deadline = time.monotonic() + 30
        while not record.exists():
            over = os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > deadline
            # Since the look above, the process may have written its record and ended.
            if over and not record.exists():
                raise MeshError(f"{name} could not be started, see {self.log(name)}")
            time.sleep(0.005)

    def stop(self, name: str, with_signal: signal.Signals, grace: float) -> bool:
        """Ends the process, with SIGKILL after `grace` seconds; returns whether it was running."""
        process = self.find(name)
        stopped = process is not None and _end(process, with_signal, grace)
        (self.run / f"{name}.json").unlink(missing_ok=True)
        return stopped


def _end(process: Process, with_signal: signal.Signals, grace: float) -> bool:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor is of whatever process has the pid now; if that is the one that was found, it stays that one.
        if _start_of(process.pid) != process.start:
            return False
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for attempt, seconds in ((with_signal, grace), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, attempt)
            if poll.poll(seconds * 1000):
                _reap(process.pid)
                return True
        raise MeshError(f"process {process.pid} survives SIGKILL")
    finally:
        os.close(pidfd)


def holder_of(port: int) -> str | None:
    """Describes who listens on a port of 127.0.0.1, as far as that can be found out; None if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            import psutil

            with contextlib.suppress(psutil.Error):
                for connection in psutil.net_connections("tcp"):
                    if connection.laddr and connection.laddr[1] == port and connection.pid and not connection.raddr:
                        process = psutil.Process(connection.pid)
                        return f"process {process.pid} ({' '.join(process.cmdline())[:80] or process.name()})"
            return f"another process ({error.strerror})"
    return None
