"""The gateway's limits protect clients from one that is slow, greedy or foreign.

Each test has a door of its own: an Envoy with the gateway's configuration as the mesh runs it. Only numbers in it are
changed, so that no test waits for minutes. A number that the mesh's configuration does not set is an error.
"""

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import grpc.aio
import httpx
import pytest

from mesh.machine import Mesh
from mesh.machine.home import write_secret
from mesh.machine.processes import package_file
from vaccination.mypage.v1 import mypage_service_pb2

from .conftest import Refusal, World, eventually, refusal
from .ways import Ways

Json = dict[str, Any]
ORIGIN = "https://vaccination.example"
LIST = "ListHospitals"
LIST_PATH = "/vaccination.approval.v1.HospitalService/ListHospitals"
CREATE_PATH = "/vaccination.reservation.v1.ReservationService/CreateReservation"
WATCH_PATH = "/vaccination.mypage.v1.MypageService/WatchMyReservations"
EMPTY = bytes(5)  # a gRPC message without fields
MB = 1 << 20
PATIENCE = 20.0  # seconds to wait for what takes one or two


class Door(World):
    """The world behind a gateway that has other numbers."""

    def __init__(self, mesh: Mesh, channel: grpc.aio.Channel, port: int, admin: int, pid: int) -> None:
        super().__init__(mesh, channel)
        self.channel, self.port, self._admin, self._pid = channel, port, admin, pid

    def memory(self) -> int:
        """Bytes in RAM of this door's Envoy, at most until now."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    async def stat(self, name: str) -> int:
        """The sum of Envoy's counters or gauges whose names end with `name`."""

        def read() -> str:
            url = f"http://127.0.0.1:{self._admin}/stats?filter={name}$"
            with build_opener(ProxyHandler({})).open(url, timeout=5) as response:
                return str(response.read().decode())

        lines = (await asyncio.to_thread(read)).splitlines()
        return sum(int(line.rsplit(":", 1)[1]) for line in lines if not line.startswith("http.admin."))

    @contextlib.asynccontextmanager
    async def ways(self, source: str = "127.0.0.1") -> AsyncIterator[Ways]:
        """The ways through this door, from an address of this machine."""
        transport = httpx.AsyncHTTPTransport(local_address=source)
        base = f"http://127.0.0.1:{self.port}"
        async with httpx.AsyncClient(base_url=base, transport=transport, trust_env=False, timeout=PATIENCE) as http:
            yield Ways(self, http)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _found(node: Any, key: str) -> list[Json]:
    """Every object in the tree that has the key."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return ([node] if isinstance(node, dict) and key in node else []) + [x for c in children for x in _found(c, key)]


def _configuration(mesh: Mesh, port: int, admin: int, numbers: Mapping[str, Any], buckets: Mapping[str, int]) -> Json:
    config: Json = json.loads((mesh.home.path / "envoy.json").read_text())
    at = mesh.home.port("gateway")
    [gateway] = [
        x for x in config["static_resources"]["listeners"] if _found(x["address"], "port_value")[0]["port_value"] == at
    ]
    config["static_resources"]["listeners"] = [gateway]
    gateway["address"]["socket_address"]["port_value"] = port
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    manager = gateway["filter_chains"][-1]["filters"][-1]["typed_config"]
    manager.pop("access_log", None)
    for path, value in numbers.items():
        *outer, name = path.split(".")
        node = manager
        for key in outer:
            node = node[key]
        assert name in node, f"the gateway sets no {path}"
        node[name] = value
    for policy in _found(manager, "allow_origin_string_match"):
        policy["allow_origin_string_match"] = [{"exact": ORIGIN}]
    limits = {
        f["typed_config"]["stat_prefix"]: f["typed_config"] for f in manager["http_filters"] if "ratelimit" in f["name"]
    }
    for who, calls in buckets.items():
        bucket = {"max_tokens": calls, "tokens_per_fill": calls, "fill_interval": "3600s"}
        of_routes = [x[f"local_ratelimit.{who}"] for x in _found(manager["route_config"], f"local_ratelimit.{who}")]
        found = of_routes or [limits[who]]
        for limit in found:
            for holder in limit.get("descriptors", [limit]):
                assert "token_bucket" in holder, f"the gateway sets no rate limit {who}"
                holder["token_bucket"] = bucket
    return config


@contextlib.asynccontextmanager
async def door(
    world: World, numbers: Mapping[str, Any] | None = None, *, places: int | None = None, **buckets: int
) -> AsyncIterator[Door]:
    """A door with other numbers, and with rate limits (customer, address, crowd, share) of so many calls an hour.

    Each of its breakers lets so many calls in at once as there are `places`.
    """
    port, admin = _free_port(), _free_port()
    config = _configuration(world.mesh, port, admin, numbers or {}, buckets)
    for thresholds in _found(config, "max_requests") if places is not None else ():
        thresholds["max_requests"] = places
    file = world.mesh.home.path / f"door-{port}.json"
    write_secret(file, json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        package_file("envoy", "_bin", "envoy"), "-c", file,
        "--disable-hot-restart", "--concurrency", "1", "--log-level", "error",
    )  # fmt: skip
    try:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            await asyncio.wait_for(channel.channel_ready(), PATIENCE)
            yield Door(world.mesh, channel, port, admin, process.pid)
    finally:
        process.terminate()
        await process.wait()
        file.unlink()


class Http2:
    """HTTP/2 by hand, to do what no client library does. Requests' headers are literals; responses' are not read."""

    DATA, HEADERS, RESET, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
    END_STREAM, END_HEADERS = 1, 4
    REFUSED_STREAM = 7

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Sends one frame."""
        self._writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload)

    def begin(self, stream: int, path: str, token: str | None, flags: int = END_HEADERS) -> None:
        """Sends the headers of a gRPC call."""
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "door", "te": "trailers"}
        fields |= {"content-type": "application/grpc", "authorization": f"Bearer {token}"}
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self.send(self.HEADERS, flags, stream, block)

    async def frame(self) -> tuple[int, int, bytes]:
        """Kind, stream and payload of the next frame; EOFError when the connection has ended."""
        head = await asyncio.wait_for(self._reader.readexactly(9), PATIENCE)
        payload = await asyncio.wait_for(self._reader.readexactly(int.from_bytes(head[:3], "big")), PATIENCE)
        return head[3], int.from_bytes(head[5:], "big"), payload

    async def until(self, kind: int, stream: int = 0) -> bytes:
        """The payload of the next frame of the kind."""
        while True:
            found, of, payload = await self.frame()
            if (found, of) == (kind, stream):
                return payload


def _text(value: str) -> bytes:
    """A string as HPACK's literal, without Huffman's code."""
    length, encoded = len(value), b""
    if length >= 127:
        length, encoded = length - 127, b"\x7f"
        while length >= 128:
            encoded += bytes([length % 128 + 128])
            length //= 128
    return encoded + bytes([length]) + value.encode()


@contextlib.asynccontextmanager
async def connected(door: Door) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection on which nothing is sent yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        yield reader, writer
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def http2(door: Door) -> AsyncIterator[Http2]:
    """An HTTP/2 connection on which the client has sent its preface."""
    async with connected(door) as (reader, writer):
        connection = Http2(reader, writer)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        connection.send(Http2.SETTINGS, 0, 0)
        yield connection


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Everything that is received until the other side closes the connection."""
    return await asyncio.wait_for(reader.read(), PATIENCE)


# Size


@pytest.mark.parametrize(
    "headers", [{"x_long": "h" * 20_000}, {f"x_{i}": "h" for i in range(100)}], ids=["long", "many"]
)
async def test_headers_that_are_too_large_or_too_many_are_refused(headers: dict[str, str], world: World) -> None:
    token = world.customer().token
    async with door(world) as at, at.ways() as ways:
        for way in (ways.grpc, ways.rest, ways.grpc_web):
            answer = await way(token, LIST, {}, **headers)
            assert isinstance(answer, Refusal)
            assert (answer.code.name, answer.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
            assert not isinstance(await way(token, LIST, {}, x_short="h" * 1000), Refusal)


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web"])
async def test_a_body_that_is_too_large_is_refused(way: str, world: World) -> None:
    token = world.customer().token
    async with door(world) as at, at.ways() as ways:
        for size, reason in ((4 * MB - 100, "INVALID_FIELD"), (4 * MB, "REQUEST_TOO_LARGE")):
            answer = await getattr(ways, way)(token, "CreateReservation", {"hospital_id": "h" * size})
            assert isinstance(answer, Refusal)
            assert answer.reason == reason


async def test_a_body_without_an_end_is_refused_at_the_limit_and_fills_no_memory(world: World) -> None:
    async with door(world) as at, connected(at) as (reader, writer):
        before = at.memory()
        writer.write(_head(f"Bearer {world.customer().token}", "transfer-encoding: chunked"))
        writer.write(b'10\r\n{"hospital_id":"\r\n')
        answer = asyncio.create_task(reader.read(1 << 16))
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                writer.write(b"10000\r\n" + b"h" * (1 << 16) + b"\r\n")
                await writer.drain()
        assert at.memory() - before < 32 * MB
        head, _, body = (await answer).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413")  # and not 429, which clients repeat
        assert json.loads(body)["details"][0]["reason"] == "REQUEST_TOO_LARGE"


# Streams and connections


async def test_a_connection_has_a_limited_number_of_streams(world: World) -> None:
    token = world.customer().token
    async with door(world, {"http2_protocol_options.max_concurrent_streams": 3}) as at, http2(at) as connection:
        settings = await connection.until(Http2.SETTINGS)
        assert (3).to_bytes(2, "big") + (3).to_bytes(4, "big") in [
            settings[i : i + 6] for i in range(0, len(settings), 6)
        ]
        for stream in (1, 3, 5, 7):
            connection.begin(stream, WATCH_PATH, token)
            connection.send(Http2.DATA, Http2.END_STREAM, stream, EMPTY)
        refused = await connection.until(Http2.RESET, 7)
        assert int.from_bytes(refused, "big") == Http2.REFUSED_STREAM  # a client may send it again at once
        assert await eventually(lambda: at.stat("downstream_rq_active"), lambda active: active == 3, PATIENCE)


async def test_a_connection_on_which_nothing_happens_is_closed(world: World) -> None:
    async with door(world, {"common_http_protocol_options.idle_timeout": "1s"}) as at:
        async with connected(at) as (reader, writer):
            assert await ended(reader) == b""  # this connection never had a request
        async with connected(at) as (reader, writer):
            writer.write(b"GET /v1/hospitals HTTP/1.1\r\nhost: door\r\n\r\n")
            assert (await ended(reader)).startswith(b"HTTP/1.1 401")  # this one had no further request
        async with http2(at) as connection:
            await connection.until(Http2.GOAWAY)
            with pytest.raises(EOFError):
                await connection.until(Http2.DATA)


async def test_connections_are_renewed_and_no_call_fails(world: World) -> None:
    customer = world.customer().token
    async with door(world, {"common_http_protocol_options.max_connection_duration": "0.3s"}) as at, at.ways() as ways:
        for way in (ways.grpc, ways.rest):
            before = renewed = await at.stat("downstream_cx_max_duration_reached")
            while renewed < before + 3:
                assert not isinstance(await way(customer, LIST, {}), Refusal)
                renewed = await at.stat("downstream_cx_max_duration_reached")


# Slow clients

SLOW = {
    "request_headers_timeout": "1s",
    "request_timeout": "1s",
    "stream_idle_timeout": "1s",
    "common_http_protocol_options.idle_timeout": "1s",
}


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Sends a byte now and then, never idle for long, until the other side ends the connection; returns its answer."""
    answer = asyncio.create_task(reader.read(1 << 16))
    for _ in range(1000):
        writer.write(b"0")
        if (await asyncio.wait([answer], timeout=0.05))[0]:
            return answer.result()
    pytest.fail("the door has all the time in the world")


async def test_the_gateway_does_not_wait_for_headers_that_never_end(world: World) -> None:
    async with door(world, SLOW) as at:
        async with connected(at) as (reader, writer):
            writer.write(b"GET /v1/hospitals HTTP/1.1\r\nhost: door\r\nx-slow: ")
            assert (await drip(reader, writer)).startswith(b"HTTP/1.1 408")
        async with http2(at) as connection:
            connection.begin(1, LIST_PATH, world.customer().token, flags=0)
            with pytest.raises(EOFError):
                await connection.until(Http2.DATA)


async def test_the_gateway_does_not_wait_for_a_body_that_never_ends(world: World) -> None:
    token = world.customer().token
    async with door(world, SLOW) as at:
        async with connected(at) as (reader, writer):
            writer.write(_head(f"Bearer {token}", "content-length: 9999"))
            answer = await drip(reader, writer)
            assert answer.startswith(b"HTTP/1.1 408")
            told = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert told["code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
            assert told["details"][0]["reason"] == "TIMED_OUT"
        call: Any = at.channel.stream_unary(LIST_PATH)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(_never(), metadata=[("authorization", f"Bearer {token}")], timeout=PATIENCE)
        ended = refusal(error.value)  # by the gateway's time-out, not by the client's
        assert (ended.code, ended.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TIMED_OUT")


def _head(authorization: str, field: str) -> bytes:
    """The headers of a booking by REST, whose body is to follow."""
    fields = f"host: door\r\nauthorization: {authorization}\r\n{field}"
    return f"POST /v1/reservations HTTP/1.1\r\n{fields}\r\n\r\n".encode()


async def test_calls_whose_bodies_never_come_keep_nobody_else_out(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1)
    staller = world.customer().token
    async with door(world, places=1) as at, contextlib.AsyncExitStack() as stack:
        for stream in (1, 3, 5):
            connection = await stack.enter_async_context(http2(at))
            connection.begin(stream, CREATE_PATH, staller)
            _, writer = await stack.enter_async_context(connected(at))
            writer.write(_head(f"Bearer {staller}", "content-length: 9999") + b"{")
        await eventually(lambda: at.stat("downstream_rq_active"), lambda active: active == 6, PATIENCE)
        assert await at.stat("upstream_rq_active") == 0
        assert not turned_away(await at.customer().create(hospital, day))
        assert await at.stat("downstream_rq_active") == 6


async def test_nobody_without_a_token_is_waited_for(world: World) -> None:
    async with door(world) as at:
        async with connected(at) as (reader, writer):
            writer.write(_head("none", "content-length: 9999"))
            assert (await asyncio.wait_for(reader.read(1 << 16), PATIENCE)).startswith(b"HTTP/1.1 401")
        async with http2(at) as connection:
            connection.begin(1, CREATE_PATH, "forged")
            await connection.until(Http2.HEADERS, 1)


async def _never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def test_a_watch_on_which_nothing_happens_is_kept_open(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    async with door(world, SLOW) as at:
        customer = at.customer()
        request = mypage_service_pb2.WatchMyReservationsRequest()
        watch: Any = customer.mypage.WatchMyReservations(request, metadata=customer.metadata, timeout=60)
        assert not (await watch.read()).reservations
        for _ in range(2):  # longer than any limit of other streams or connections
            async with connected(at) as (reader, _writer):
                assert await ended(reader) == b""
        assert await at.stat("downstream_rq_active") == 1
        created = await world.bearer(customer.token).create(hospital, day)
        assert [r.reservation_id for r in (await watch.read()).reservations] == [created.reservation_id]
        watch.cancel()


async def test_a_watch_that_comes_to_its_clients_deadline_says_so(world: World) -> None:
    async with door(world) as at:
        customer = at.customer()
        request = mypage_service_pb2.WatchMyReservationsRequest()
        watch: Any = customer.mypage.WatchMyReservations(request, metadata=customer.metadata, timeout=2)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            _ = [update async for update in watch]
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# Browsers


async def test_a_browser_may_call_from_the_origins_that_are_allowed(world: World) -> None:
    token = world.customer().token
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
    asks = "authorization,content-type,x-grpc-web,x-user-agent,grpc-timeout"
    async with door(world) as at, at.ways() as ways:
        for path in (LIST_PATH, "/v1/reservations", "/v1/my/reservations:watch"):
            told = await ways.http.options(path, headers=preflight | {"access-control-request-headers": asks})
            assert told.status_code == 200
            assert told.headers["access-control-allow-origin"] == ORIGIN
            assert {"GET", "POST", "PUT"} <= set(told.headers["access-control-allow-methods"].split(","))
            assert set(asks.split(",")) <= set(told.headers["access-control-allow-headers"].split(","))
            assert "access-control-allow-credentials" not in told.headers  # a program sends the token, not a cookie
        for bearer, status in ((token, 200), ("forged", 401), (None, 401)):  # the gateway's refusals too
            headers = {"origin": ORIGIN} | ({"authorization": f"Bearer {bearer}"} if bearer else {})
            rest = await ways.http.get("/v1/hospitals", headers=headers)
            web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
            grpc_web = await ways.http.post(LIST_PATH, content=EMPTY, headers=headers | web)
            assert rest.status_code == status
            for answer in (rest, grpc_web):
                assert answer.headers["access-control-allow-origin"] == ORIGIN
                seen = set(answer.headers["access-control-expose-headers"].split(","))
                assert {"grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after"} <= seen


async def test_a_browser_may_not_call_from_any_other_origin(world: World) -> None:
    token = world.customer().token
    async with door(world) as at, at.ways() as ways:
        for origin in ("https://evil.example", f"{ORIGIN}.evil.example", "null", ORIGIN.replace("https", "http")):
            preflight = {"origin": origin, "access-control-request-method": "POST"}
            told = await ways.http.options("/v1/reservations", headers=preflight)
            real = await ways.http.get("/v1/hospitals", headers={"origin": origin, "authorization": f"Bearer {token}"})
            for answer in (told, real):
                assert not {"access-control-allow-origin", "access-control-expose-headers"} & answer.headers.keys()


# Greedy callers


def turned_away(answer: Any, reason: str = "RATE_LIMITED") -> bool:
    """Whether the answer is "try again later" with all its details; fails if it is another refusal."""
    if not isinstance(answer, Refusal):
        return False
    assert (answer.code.name, answer.reason, answer.domain) == ("RESOURCE_EXHAUSTED", reason, "vaccination.edge")
    assert answer.retry_after is not None
    assert answer.retry_after > 0
    return True


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web"])
async def test_a_customer_who_calls_too_often_is_turned_away_and_no_other(way: str, world: World) -> None:
    greedy = "greedy"
    async with door(world, customer=3) as at, at.ways() as ways, at.ways("127.0.0.2") as elsewhere:
        call = getattr(ways, way)
        # A customer with another token or another address is still the same customer.
        answers = [await call(at.token(greedy, ["customer"], jti=str(i)), LIST, {}) for i in range(5)]
        assert [turned_away(answer) for answer in answers] == [False, False, False, True, True]
        assert turned_away(await elsewhere.rest(at.token(greedy, ["customer"]), LIST, {}))
        assert not turned_away(await call(at.customer().token, LIST, {}))


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web"])
async def test_an_address_that_calls_too_often_is_turned_away_and_no_other(way: str, world: World) -> None:
    async with door(world, address=3) as at, at.ways() as ways, at.ways("127.0.0.2") as elsewhere:
        call = getattr(ways, way)
        for i in range(3):  # calls refused for another reason count too, as when somebody guesses tokens
            assert (await call("forged", LIST, {}, x_forwarded_for=f"192.0.2.{i}")).reason == "TOKEN_INVALID"
        # A client that claims another address in a header is still counted by its own address.
        assert turned_away(await call(at.customer().token, LIST, {}, x_forwarded_for="192.0.2.9"))
        assert turned_away(await call(None, LIST, {}))
        assert not turned_away(await elsewhere.rest(at.customer().token, LIST, {}))


async def test_rest_says_when_to_try_again_in_the_header_too(world: World) -> None:
    async with door(world, customer=1) as at, at.ways() as ways:
        headers = {"authorization": f"Bearer {at.customer().token}"}
        assert (await ways.http.get("/v1/hospitals", headers=headers)).status_code == 200
        answer = await ways.http.get("/v1/hospitals", headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (429, "application/json")
        assert int(answer.headers["retry-after"]) >= 1
        assert {d["@type"].rsplit(".", 1)[1] for d in answer.json()["details"]} == {"ErrorInfo", "RetryInfo"}


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web"])
async def test_calls_that_a_service_has_no_room_for_are_told_to_try_again(way: str, world: World) -> None:
    async with door(world, places=0) as at, at.ways() as ways:
        assert turned_away(await getattr(ways, way)(at.customer().token, LIST, {}), "OVERLOADED")


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web"])
async def test_a_rush_is_let_in_at_a_limited_rate_and_unauthorized_calls_do_not_count(way: str, world: World) -> None:
    hospital, day = await world.new_hospital(capacity=10)
    async with door(world, crowd=3) as at, at.ways() as ways:
        call = getattr(ways, way)

        async def book(token: str | None) -> Any:
            request = {"request_id": str(uuid.uuid4()), "hospital_id": hospital, "date": str(day)}
            return await call(token, "CreateReservation", request)

        for stranger in (None, "forged", at.operator.token, None):  # those who may not book do not count
            assert (await book(stranger)).reason in ("TOKEN_MISSING", "TOKEN_INVALID", "ROLE_NOT_ALLOWED")
        answers = [await book(at.customer().token) for _ in range(5)]
        assert [turned_away(answer, "OVERLOADED") for answer in answers] == [False, False, False, True, True]
        assert not turned_away(await call(at.customer().token, LIST, {}))  # reads have no such limit


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web"])
async def test_one_customer_gets_a_share_of_a_rush_and_no_more(way: str, world: World) -> None:
    hospital, day = await world.new_hospital(capacity=10)
    async with door(world, share=2) as at, at.ways() as ways:
        request = {"request_id": str(uuid.uuid4()), "hospital_id": hospital, "date": str(day)}
        greedy, call = at.customer().token, getattr(ways, way)
        answers = [await call(greedy, "CreateReservation", request) for _ in range(4)]
        assert [turned_away(answer) for answer in answers] == [False, False, True, True]
        assert not turned_away(await call(greedy, LIST, {}))
        assert not turned_away(await call(at.customer().token, "CreateReservation", request))
