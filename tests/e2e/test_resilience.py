"""Retries, ejection and the breaker protect customers from replicas that fail, hang and die, and from a rush."""

import asyncio
import os
import re
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import httpx
import pytest

from mesh.machine import Mesh

from ..conftest import free_base_port
from .conftest import Client, Refusal, Status, World, eventually, refusal

WAYS = {
    "approval": "reservation>outbound|8080||approval.vaccination.svc.cluster.local;",
    "reservation": "gateway>outbound|8080|createreservation|reservation.vaccination.svc.cluster.local;",
}


class Trouble:
    """A mesh with two replicas of each service. Approval's replicas can be told to fail."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self._folder = world, folder

    def tell(self, replica: str, what: str = "") -> None:
        """Tells a replica how to fail (see troubled.py); with an empty text it works again."""
        file = self._folder / replica
        file.unlink(missing_ok=True)
        if what:
            unfinished = file.with_suffix(".new")
            unfinished.write_text(what)
            unfinished.rename(file)

    async def statistics(self, way: str = WAYS["approval"]) -> Counter[str]:
        """Envoy's statistics of the calls to a component."""
        async with httpx.AsyncClient(trust_env=False) as http:
            url = f"http://{self.world.mesh.home.address('envoy-admin')}/stats"
            answer = await http.get(url, params={"filter": re.escape(way)})
        found = re.findall(rf"^cluster\.{re.escape(way)}\.(\S+): (\d+)$", answer.text, re.MULTILINE)
        return Counter({name: int(value) for name, value in found})

    async def calls_of(self, replica: str) -> int:
        """The number of bookings that a replica has handled, by its own count."""
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://{self.world.mesh.home.address(f'{replica}-metrics')}/metrics")
        method = '[^"]*/(?:Approve|CreateReservation)'
        counts = re.findall(rf'^rpc_seconds_count{{code="\w+",method="{method}"}} ([\d.]+)', answer.text, re.MULTILINE)
        return sum(int(float(n)) for n in counts)

    async def calls(self) -> int:
        """The number of bookings that both replicas have handled."""
        return await self.calls_of("approval") + await self.calls_of("approval-2")

    def signal(self, replica: str, number: signal.Signals) -> None:
        """Sends a signal to a replica's process."""
        process = self.world.mesh.processes.find(replica)
        assert process is not None
        os.kill(process.pid, number)

    async def book(
        self, hospital: str, day: object, people: int, at_once: int = 16, patient: bool = False
    ) -> list[Refusal | int]:
        """So many new customers book; returns the status or refusal of each. If they are `patient` they try again, as
        clients do. A dead replica has the fewest calls in flight, so every try may choose it until it is ejected."""
        gate = asyncio.Semaphore(at_once)

        async def one(customer: Client) -> Refusal | int:
            request_id = str(uuid.uuid4())
            async with gate:
                for _ in range(5 if patient else 1):
                    try:
                        return (await customer.create(hospital, str(day), request_id)).status
                    except grpc.aio.AioRpcError as error:
                        told = refusal(error)
                    await asyncio.sleep((told.retry_after or 0) if patient else 0)
            return told

        return await asyncio.gather(*(one(self.world.customer()) for _ in range(people)))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with a breaker so small that a test can fill it."""
    folder = tmp_path_factory.mktemp("troubled")
    os.environ["TROUBLE"] = str(folder)
    # The deadlines leave time for two tries of approval and of reservation on a busy machine, so no client retries.
    budget = {"gateway": "14s", "gatewayTry": "6s", "reservation": "5.5s", "approval": "5s", "approvalTry": "2s"}
    breaker = {"approval": {"connections": {"maxRequests": 24, "maxPending": 24}}}
    values = {"budget": budget, "components": breaker}
    mesh = Mesh(folder / "mesh", free_base_port(), replicas=2, launcher="tests.e2e.troubled", values=values)
    yield mesh
    mesh.down()


@pytest.fixture
async def trouble(troubled: Mesh) -> AsyncIterator[Trouble]:
    await asyncio.to_thread(troubled.up)
    async with grpc.aio.insecure_channel(troubled.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        trouble = Trouble(World(troubled, channel), troubled.home.path.parent)
        for way in WAYS.values():
            await eventually(
                lambda way=way: trouble.statistics(way),  # type: ignore[misc]
                lambda s: s["outlier_detection.ejections_active"] == 0,
                within=60,
            )
        yield trouble


APPROVED = Status.RESERVATION_STATUS_APPROVED


async def test_a_replica_that_fails_now_and_then_is_noticed_by_nobody(trouble: Trouble) -> None:
    people = 200
    hospital, day = await trouble.world.new_hospital(capacity=people)
    before, served = await trouble.statistics(), await trouble.calls()
    trouble.tell("approval-2", "flaky 0.3")
    try:
        answers = Counter(map(str, await trouble.book(hospital, day, people)))
    finally:
        trouble.tell("approval-2")
    assert answers == {str(APPROVED): people}
    [row] = await trouble.world.query("approval", "SELECT approved FROM days WHERE hospital_id = $1", hospital)
    decisions = await trouble.world.query("approval", "SELECT 1 FROM decisions WHERE hospital_id = $1", hospital)
    assert (row["approved"], len(decisions)) == (people, people)  # each is decided once, however often it was tried
    spent = await trouble.statistics() - before
    attempts = await trouble.calls() - served
    print(f"{people} bookings, {attempts} attempts, {spent['upstream_rq_retry']} retries")
    assert spent["upstream_rq_retry"] > 0
    assert attempts == people + spent["upstream_rq_retry"]
    # One call may be tried a third time, and then both retries led to one success.
    assert 0 < spent["upstream_rq_retry_success"] <= spent["upstream_rq_retry"]


async def test_when_all_replicas_fail_the_retry_budget_limits_the_retries(trouble: Trouble) -> None:
    hospital, day = await trouble.world.new_hospital(capacity=200)
    before = await trouble.statistics()
    for replica in ("approval", "approval-2"):
        trouble.tell(replica, "flaky 1.0")
    try:
        answers = await trouble.book(hospital, day, 200, at_once=24)
    finally:
        for replica in ("approval", "approval-2"):
            trouble.tell(replica)
    assert {answer.reason for answer in answers if isinstance(answer, Refusal)} == {"APPROVAL_BUSY"}
    spent = await trouble.statistics() - before
    print(f"{spent['upstream_rq_total']} calls, {spent['upstream_rq_retry']} retries, "
          f"{spent['upstream_rq_retry_overflow']} beyond the budget")  # fmt: skip
    assert spent["upstream_rq_retry_overflow"] > 0


@pytest.mark.parametrize("service", ["approval", "reservation"])
@pytest.mark.parametrize("how", ["hangs", "dies"])
async def test_a_replica_that_is_gone_is_left_alone_until_it_is_back(trouble: Trouble, how: str, service: str) -> None:
    way, gone = WAYS[service], f"{service}-2"
    hospital, day = await trouble.world.new_hospital(capacity=2000)
    before = await trouble.statistics(way)
    trouble.signal(gone, signal.SIGSTOP if how == "hangs" else signal.SIGKILL)

    async def ejected() -> int:
        assert [a for a in await trouble.book(hospital, day, 8, patient=True) if a != APPROVED] == []  # all are served
        return (await trouble.statistics(way))["outlier_detection.ejections_active"]

    async def retries() -> int:
        before = (await trouble.statistics(way))["upstream_rq_retry"]
        assert [a for a in await trouble.book(hospital, day, 8, patient=True) if a != APPROVED] == []
        return (await trouble.statistics(way))["upstream_rq_retry"] - before

    try:
        await eventually(ejected, lambda n: n == 1, within=60)
        # All calls go to the other replica, so there are no retries until the ejected one gets another chance.
        await eventually(retries, lambda n: n == 0, within=60)
    finally:
        if how == "hangs":
            trouble.signal(gone, signal.SIGCONT)
        else:
            await asyncio.to_thread(trouble.world.mesh.up)
    assert (await trouble.statistics(way) - before)["outlier_detection.ejections_enforced_total"] >= 1
    served = await trouble.calls_of(gone)

    async def works_again() -> int:
        assert [a for a in await trouble.book(hospital, day, 8, patient=True) if a != APPROVED] == []
        return await trouble.calls_of(gone)

    await eventually(works_again, lambda n: n > served, within=60)
    assert (await trouble.statistics(way))["outlier_detection.ejections_active"] == 0


async def test_the_breaker_opens_in_a_rush_and_closes_after_it(trouble: Trouble) -> None:
    hospital, day = await trouble.world.new_hospital(capacity=2000)
    assert await trouble.book(hospital, day, 1) == [APPROVED]
    before = await trouble.statistics()
    assert before["circuit_breakers.default.rq_open"] == 0
    for replica in ("approval", "approval-2"):
        trouble.tell(replica, "slow")
    crowd = asyncio.create_task(trouble.book(hospital, day, 80, at_once=80))
    try:
        await eventually(trouble.statistics, lambda s: s["circuit_breakers.default.rq_open"] == 1)
        told = await trouble.book(hospital, day, 5)
        async with httpx.AsyncClient(
            base_url=f"http://{trouble.world.mesh.gateway}", trust_env=False, timeout=20
        ) as http:
            body = {"request_id": str(uuid.uuid4()), "hospital_id": hospital, "date": str(day)}
            bearer = {"authorization": f"Bearer {trouble.world.customer().token}", "accept-language": "en"}
            by_rest = await http.post("/v1/reservations", json=body, headers=bearer)
    finally:
        for replica in ("approval", "approval-2"):
            trouble.tell(replica)
    answers = [*told, *await crowd]
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    for answer in refused:
        assert (answer.code.name, answer.reason) == ("RESOURCE_EXHAUSTED", "APPROVAL_BUSY")
        assert answer.retry_after
        assert answer.localized
    assert all(isinstance(answer, Refusal) for answer in told)
    assert by_rest.status_code == 429
    assert int(by_rest.headers["retry-after"]) >= 1
    details = {d["@type"].rpartition(".")[2]: d for d in by_rest.json()["details"]}
    assert details["LocalizedMessage"]["message"].startswith("Many people are booking")
    assert details["ErrorInfo"]["reason"] == "APPROVAL_BUSY"
    spent = await trouble.statistics() - before
    overflows = spent["upstream_rq_pending_overflow"] + spent["upstream_rq_active_overflow"]
    print(f"{len(answers)} asked, {len(refused)} told to come again, {overflows} overflows")
    assert 0 < overflows <= len(refused) + 1  # one more may have waited too long for a slow answer
    assert (await trouble.statistics())["circuit_breakers.default.rq_open"] == 0
    assert [a for a in await trouble.book(hospital, day, 20) if a != APPROVED] == []
