"""NATS JetStream: one server, or a cluster of three in a replicated home."""

import asyncio
import json
import random
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from mesh.machine.home import ATTEMPT, SERVICES, Home, write_secret
from mesh.machine.processes import MeshError

if TYPE_CHECKING:
    from nats.js import JetStreamContext

Answer = TypeVar("Answer")
STREAM_SHARE = 0.8  # of the disk; what is left is for the consumers' state, and for deleting


class Nats:
    """See mesh.machine.stores.Store."""

    name = "nats"
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL

    def __init__(self, home: Home) -> None:
        self.home = home

    @property
    def members(self) -> list[str]:
        """Names of the servers."""
        return self.home.members(self.name)

    @property
    def url(self) -> str:
        """URLs of the servers, comma separated, with a user who may do everything."""
        if self.name in self.home.external:
            return self.home.external[self.name]
        login = f"admin:{self.home.passwords[self.name]}"
        return ",".join(f"nats://{login}@{self.home.address(member)}" for member in self.members)

    def login(self, service: str) -> tuple[str, str]:
        """User and password. On a server that was there already all services use those of the URL."""
        if self.name in self.home.external:
            parts = urlsplit(self.url)
            return parts.username or "", parts.password or ""
        return service, self.home.passwords[service]

    # Starting

    def listens(self, member: str) -> tuple[str, ...]:
        """For clients, for operators, and for the other servers of a cluster."""
        routes = (f"{member}-routes",) if self.home.nats_routes else ()
        return (member, f"{member}-monitor", *routes)

    def needs(self, member: str) -> Sequence[str]:
        """Servers of a cluster wait for each other by themselves."""
        return ()

    def os_user(self) -> str:
        """Ours."""
        return ""

    def prepare(self, member: str) -> None:
        """Writes the configuration, with a user for each service, who may publish only its own context's events."""
        users: list[dict[str, object]] = [{"user": "admin", "password": self.home.passwords[self.name]}]
        for service in SERVICES:
            own = [f"vaccination.{service}.>", "DEAD_LETTERS.>", "$JS.API.>", "$JS.ACK.>", "_INBOX.>"]
            permissions = {"publish": {"allow": own}, "subscribe": {"allow": ["_INBOX.>"]}}
            users.append({"user": service, "password": self.home.passwords[service], "permissions": permissions})
        config: dict[str, object] = {
            "server_name": self.home.nats_server(member),
            "listen": f"{self.home.listen}:{self.home.port(member)}",
            "http": f"{self.home.listen}:{self.home.port(f'{member}-monitor')}",
            "authorization": {"users": users},
            "jetstream": {
                "store_dir": str(self.home.path / member),
                # An acknowledged event is on the disk, like a commit of the other stores.
                "sync_interval": "always",
                # Beyond it the stream answers that it has no room, and takes events again as soon as it has. By default
                # it is a share of what is free at the start: who starts on a full disk would stay without room.
                "max_file_store": int(STREAM_SHARE * shutil.disk_usage(self._volume(member)).total),
            },
        }
        if routes := self.home.nats_routes:
            password = self.home.passwords[self.name]
            config["cluster"] = {
                "name": "vaccination",
                "listen": f"{self.home.listen}:{self.home.port(f'{member}-routes')}",
                "authorization": {"user": "admin", "password": password},
                "routes": [f"nats-route://admin:{password}@{route}" for route in routes],
            }
        # NATS reads almost JSON: it knows no escapes for letters beyond ASCII, which may be in the home's path.
        write_secret(self._config(member), json.dumps(config, indent=1, ensure_ascii=False))

    def _volume(self, member: str) -> Path:
        """A folder that is on the same disk as the streams, and there before they are."""
        store = self.home.path / member
        return store if store.exists() else self.home.path

    def _config(self, member: str) -> Path:
        return self.home.path / "secrets" / f"{member}.json"

    def command(self, member: str) -> list[str | Path]:
        """The command. The wheel installs the server beside this interpreter."""
        return [Path(sys.executable).parent / "nats-server", "-c", self._config(member)]

    def provision(self, member: str) -> None:
        """Raises until the server has caught up with its streams, which the services make themselves."""
        if self.name in self.home.external:
            self._ask_jetstream(lambda jetstream: jetstream.account_info())
            return
        self._ask_health(member)

    def stuck(self, member: str) -> bool:
        """Whether a write has failed: the server then takes nothing more, however much room there is, but goes on to
        deliver what it has. Where it is one of a cluster it may also switch its streams off altogether."""
        try:
            self._ask_health(member)
        except urllib.error.HTTPError as error:
            return b"write error" in error.read() or not self._streams_are_on(member)
        return False

    def _streams_are_on(self, member: str) -> bool:
        try:
            self._ask_health(member, "?js-enabled-only=true")
        except urllib.error.HTTPError:
            return False
        return True

    def _ask_health(self, member: str, about: str = "") -> None:
        """Raises urllib's HTTPError with what is wrong with the server, and OSError if it does not answer."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{self.home.address(f'{member}-monitor')}/healthz{about}", timeout=ATTEMPT):
            pass

    # Looking into it

    def leader(self, stream: str) -> str:
        """The server that takes what is published to the stream; MeshError while there is none."""
        import nats.errors

        try:
            cluster = self._ask_jetstream(lambda jetstream: jetstream.stream_info(stream), ATTEMPT).cluster
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise MeshError(f"nobody tells who leads the stream {stream}: {error}") from error
        if cluster is None or not cluster.leader:
            raise MeshError(f"nobody leads the stream {stream}")
        leader: str = cluster.leader
        return leader

    def pending(self, stream: str, consumer: str) -> int:
        """How many messages of the stream the consumer has not processed yet."""
        info = self._ask_jetstream(lambda jetstream: jetstream.consumer_info(stream, consumer))
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    def handled(self, stream: str, consumer: str) -> int:
        """The number up to which the consumer has processed every message of the stream that is meant for it."""
        info = self._ask_jetstream(lambda jetstream: jetstream.consumer_info(stream, consumer))
        floor = info.ack_floor.stream_seq if info.ack_floor else 0
        return info.delivered.stream_seq if info.delivered and not info.num_ack_pending else floor

    def count(self, stream: str, subjects: str) -> int:
        """How many messages of these subjects the stream has."""
        info = self._ask_jetstream(lambda jetstream: jetstream.stream_info(stream, subjects_filter=subjects))
        return sum((info.state.subjects or {}).values())

    def keys(self, stream: str, subject: str) -> set[str]:
        """The correlation keys of the stream's messages of a subject."""

        async def read(jetstream: "JetStreamContext") -> set[str]:
            subscription = await jetstream.subscribe(subject, stream=stream, ordered_consumer=True)
            count = (await jetstream.stream_info(stream, subjects_filter=subject)).state.subjects or {}
            messages = [await subscription.next_msg(timeout=5) for _ in range(sum(count.values()))]
            return {(message.headers or {})["ce-subject"] for message in messages}

        return self._ask_jetstream(read)

    def last_sequence(self, stream: str) -> int:
        """The number of the stream's last message."""
        return self._ask_jetstream(lambda jetstream: jetstream.stream_info(stream)).state.last_seq

    def republish(self, stream: str, count: int, seed: int) -> int:
        """Publishes up to `count` of the stream's messages again as new ones, shuffled, to test consumers."""

        async def again(jetstream: "JetStreamContext") -> int:
            last = (await jetstream.stream_info(stream)).state.last_seq
            chosen = random.Random(seed).sample(range(1, last + 1), min(count, last))  # noqa: S311 - not a secret
            for sequence in chosen:
                message = await jetstream.get_msg(stream, sequence)
                headers = {k: v for k, v in (message.headers or {}).items() if not k.startswith("Nats-")}
                await jetstream.publish(message.subject or "", message.data or b"", headers=headers)
            return len(chosen)

        return self._ask_jetstream(again)

    def _ask_jetstream(
        self, question: "Callable[[JetStreamContext], Awaitable[Answer]]", patience: float = 5.0
    ) -> Answer:
        async def ask() -> Answer:
            import nats

            async def quiet(_: Exception) -> None: ...

            # The client's own timeouts are for each attempt; all its attempts together take two minutes.
            async with asyncio.timeout(ATTEMPT):
                client = await nats.connect(self.url.split(","), allow_reconnect=False, error_cb=quiet)
            try:
                return await question(client.jetstream(timeout=patience))
            finally:
                await client.close()

        with ThreadPoolExecutor(1) as pool:  # the caller's thread may have a running event loop
            return pool.submit(asyncio.run, ask()).result()
