"""What somebody can do to others at the gateway: `./dev door memory|stall`, on a mesh of its own.

`memory` sends bodies that are far too large, one after the other, and reads how much memory the gateway had at most.
`stall` lets one customer begin as many calls as their limit allows and send no body, while another one books; all
limits are those of the chart's own values.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from rich.console import Console

from bench.__main__ import in_meshes
from bench.overload import keep, regularly
from mesh import CHART
from mesh.machine import Mesh, identity
from vaccination.approval.v1 import hospital_pb2, hospital_service_pb2, hospital_service_pb2_grpc
from vaccination.reservation.v1 import reservation_service_pb2, reservation_service_pb2_grpc

Json = dict[str, Any]
BASE_PORT = 14600
CREATE = "/vaccination.reservation.v1.ReservationService/CreateReservation"
PIECE = 1 << 16
PATIENCE = 120.0  # seconds for one body
STREAMS = 90  # stalled calls on one connection: the gateway's limit is 100
RATE = 2.5  # calls of the other customer, a second


def bearer(mesh: Mesh, subject: str, role: str = "customer") -> str:
    """A value of the header `authorization`."""
    return f"Bearer {identity.token(mesh.home.path, subject=subject, roles=[role])}"


# Memory


async def by_http(mesh: Mesh, path: str, kind: str, size: int, head: bytes) -> str:
    """Sends `head` and so many bytes more, in chunks, until there is an answer; returns what it begins with.

    A client that reads nothing before it has sent everything would find the connection reset.
    """
    host, _, port = mesh.gateway.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = asyncio.create_task(reader.read(1 << 12))
    headers = f"host: door\r\nauthorization: {bearer(mesh, 'greedy')}\r\ncontent-type: {kind}"
    writer.write(f"POST {path} HTTP/1.1\r\n{headers}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    with contextlib.suppress(ConnectionError):  # the gateway answers, and closes the connection a second later
        for piece in itertools.chain([head], itertools.repeat(b"a" * PIECE, size // PIECE)):
            if answer.done():
                break
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
    try:
        text = (await asyncio.wait_for(answer, PATIENCE)).decode()
    except ConnectionError as error:
        text = type(error).__name__
    finally:
        writer.close()
    status = next((line for line in text.splitlines() if line.startswith("grpc-status")), "")
    return f"{text.partition(chr(13))[0]} {status}".strip()


async def by_rest(mesh: Mesh, size: int) -> str:
    """A JSON body whose string does not end."""
    return await by_http(mesh, "/v1/reservations", "application/json", size, b'{"hospital_id":"')


async def by_grpc_web(mesh: Mesh, size: int) -> str:
    """One message, as long as its frame says."""
    return await by_http(mesh, CREATE, "application/grpc-web+proto", size, b"\0" + size.to_bytes(4, "big"))


async def by_grpc(mesh: Mesh, size: int) -> str:
    """One message, which the client's library sends as a whole."""
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(mesh.gateway, options) as channel:
        call: Any = channel.unary_unary(CREATE)
        try:
            await call(bytes(size), metadata=[("authorization", bearer(mesh, "greedy"))], timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


WAYS = {"REST": by_rest, "gRPC": by_grpc, "gRPC-Web": by_grpc_web}


def envoy(mesh: Mesh) -> int:
    """The id of the gateway's process."""
    process = mesh.processes.find("envoy")
    assert process is not None
    return process.pid


def resident(pid: int, field: str) -> float:
    """MB of a process in RAM: VmRSS now, VmHWM at most since `forget`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def forget(pid: int) -> None:
    """Begins VmHWM anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def oversized(mesh: Mesh, sizes: list[int], say: Callable[[str], None]) -> list[Json]:
    """The gateway's memory under each body; each is sent to a gateway that has just started."""
    rows = []
    for (way, send), size in itertools.product(WAYS.items(), sizes):
        say(f"{size} MB by {way}")
        mesh.stop("envoy")
        mesh.up(only=("envoy",))
        pid = envoy(mesh)
        forget(pid)
        before = resident(pid, "VmRSS")
        ended = await send(mesh, size * 1_000_000)
        rows.append({"way": way, "size": size, "before": before, "most": resident(pid, "VmHWM"), "ended": ended})
    return rows


def memory_table(rows: list[Json]) -> str:
    """What `memory` has found."""
    lines = ["| way | body, MB | gateway before, MB | at most, MB | the call ended |", "|---|---|---|---|---|"]
    lines += [f"| {r['way']} | {r['size']} | {r['before']:.0f} | {r['most']:.0f} | {r['ended']} |" for r in rows]
    return "\n".join(lines)


# Stalled calls


def own_values() -> Json:
    """The chart's own limits, in the place of those that a mesh on one machine has."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    crowded = values["components"]["reservation"]["crowded"]
    return {
        "budget": values["budget"],
        "gateway": {"limits": values["gateway"]["limits"]},
        "components": {"reservation": {"crowded": crowded}},
    }


class Staller:
    """A customer who begins calls and sends nothing more, by gRPC and by REST in turns."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._token = mesh, bearer(mesh, "staller")
        self._open: set[asyncio.Task[str]] = set()
        self._channels: list[grpc.aio.Channel] = []
        self.ends = Counter[str]()
        self.begun = 0

    async def begin(self) -> None:
        """Begins one call."""
        if self.begun % (2 * STREAMS) == 0:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            self._channels.append(grpc.aio.insecure_channel(self._mesh.gateway, options))
        task = asyncio.create_task(self._rest() if self.begun % 2 else self._grpc(self._channels[-1]))
        self.begun += 1
        self._open.add(task)
        task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Gives up what is still open."""
        self.ends["open at the end"] = len(self._open)
        open_calls = list(self._open)
        for task in open_calls:
            task.cancel()
        await asyncio.gather(*open_calls, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    def _ended(self, task: asyncio.Task[str]) -> None:
        self._open.discard(task)
        if not task.cancelled():
            self.ends[task.result()] += 1

    async def _grpc(self, channel: grpc.aio.Channel) -> str:
        call: Any = channel.stream_unary(CREATE)(metadata=[("authorization", self._token)])
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def _rest(self) -> str:
        host, _, port = self._mesh.gateway.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            head = f"POST /v1/reservations HTTP/1.1\r\nhost: door\r\nauthorization: {self._token}\r\n"
            writer.write(f"{head}content-type: application/json\r\ncontent-length: 9999\r\n\r\n{{".encode())
            return (await reader.read(1 << 12)).partition(b"\r\n")[0].decode() or "closed"
        except ConnectionError:
            return "closed"
        finally:
            writer.close()


async def stalled(mesh: Mesh, rate: float, seconds: float, say: Callable[[str], None]) -> Json:
    """How the calls of one customer end while another one stalls."""
    day = date.today() + timedelta(days=7)
    async with grpc.aio.insecure_channel(mesh.gateway, [("grpc.enable_retries", 0)]) as channel:
        hospitals = hospital_service_pb2_grpc.HospitalServiceStub(channel)
        operator = [("authorization", bearer(mesh, "operator", "operator"))]
        hospital = hospital_pb2.Hospital(hospital_id="door", name="Door", time_zone="Asia/Seoul")
        wanted = hospital_service_pb2.UpsertHospitalRequest(hospital=hospital)
        await hospitals.UpsertHospital(wanted, metadata=operator)
        offered = hospital_service_pb2.SetDailyCapacityRequest(
            hospital_id="door", first_date=str(day), last_date=str(day), capacity=10
        )
        await hospitals.SetDailyCapacity(offered, metadata=operator)
        stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
        customer = [("authorization", bearer(mesh, "customer"))]
        request = reservation_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()), hospital_id="door", date=str(day)
        )
        await stub.CreateReservation(request, metadata=customer)
        answers: list[str] = []
        ms: list[float] = []

        async def book() -> None:
            began = time.perf_counter()
            try:
                await stub.CreateReservation(request, metadata=customer, timeout=15)
                answers.append("OK")
            except grpc.aio.AioRpcError as error:
                answers.append(f"{error.code().name}: {error.details()}")
            ms.append((time.perf_counter() - began) * 1000)

        pid = envoy(mesh)
        forget(pid)
        staller = Staller(mesh)
        say(f"one customer stalls {rate:g} calls a second")
        stalling = asyncio.create_task(regularly(rate, staller.begin))
        booking = asyncio.create_task(regularly(RATE, book))
        await asyncio.sleep(seconds)
        for task in (booking, stalling):
            task.cancel()
        await asyncio.gather(booking, stalling, return_exceptions=True)
        await staller.stop()
    refused = sum(answer != "OK" for answer in answers)
    return {
        "stalled": staller.begun, "stalled_ended": dict(staller.ends), "calls": len(answers), "refused": refused,
        "answers": dict(Counter(answers)), "ms_max": max(ms), "gateway_mb_most": resident(pid, "VmHWM"),
    }  # fmt: skip


def stall_table(result: Json) -> str:
    """What `stall` has found."""
    share = result["refused"] / result["calls"]
    return (
        f"{result['stalled']} calls stalled ({json.dumps(result['stalled_ended'])}); of {result['calls']} calls of the"
        f" other customer {result['refused']} were refused ({share:.1%}: {json.dumps(result['answers'])}), the slowest"
        f" took {result['ms_max']:.0f} ms; the gateway had {result['gateway_mb_most']:.0f} MB at most."
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser("door", description="What one caller can do to others at the gateway.")
    parser.add_argument("what", choices=["memory", "stall"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 250], help="of bodies, in MB (100 250)")
    parser.add_argument("--rate", type=float, default=20.0, help="stalled calls a second (20: the customer's limit)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of stalling (60)")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        mesh = Mesh(Path(folder) / "mesh", BASE_PORT, values=own_values())

        def work(say: Callable[[str], None]) -> Any:
            mesh.up()
            if arguments.what == "memory":
                return asyncio.run(oversized(mesh, arguments.sizes, say))
            return asyncio.run(stalled(mesh, arguments.rate, arguments.seconds, say))

        result: Any = in_meshes(console, [mesh], work)
    made: str = memory_table(result) if arguments.what == "memory" else stall_table(result)
    keep(f"door-{arguments.what}", {"result": result}, made, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
