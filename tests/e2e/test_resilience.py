"""What the mesh makes of replicas that fail, hang and die, and of a crowd: retries, ejection, the breaker."""

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

# Reservation's way to approval.
APPROVAL = "reservation>outbound|8080||approval.vaccination.svc.cluster.local;"


class Trouble:
    """A mesh of two replicas of each service, of which approval's can be told to fail."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self._folder = world, folder

    def tell(self, replica: str, what: str = "") -> None:
        """See troubled; nothing: it is well again."""
        file = self._folder / replica
        file.unlink(missing_ok=True)
        if what:
            unfinished = file.with_suffix(".new")
            unfinished.write_text(what)
            unfinished.rename(file)

    async def statistics(self) -> Counter[str]:
        """Envoy's own, of reservation's calls to approval."""
        async with httpx.AsyncClient(trust_env=False) as http:
            url = f"http://{self.world.mesh.home.address('envoy-admin')}/stats"
            answer = await http.get(url, params={"filter": re.escape(APPROVAL)})
        found = re.findall(rf"^cluster\.{re.escape(APPROVAL)}\.(\S+): (\d+)$", answer.text, re.MULTILINE)
        return Counter({name: int(value) for name, value in found})

    async def calls_of(self, replica: str) -> int:
        """How many calls of Approve a replica has served, by its own count."""
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://{self.world.mesh.home.address(f'{replica}-metrics')}/metrics")
        counts = re.findall(r'^rpc_seconds_count\{code="\w+",method="[^"]*/Approve"\} ([\d.]+)', answer.text, re.M)
        return sum(int(float(n)) for n in counts)

    async def calls(self) -> int:
        """Of both replicas."""
        return await self.calls_of("approval") + await self.calls_of("approval-2")

    def signal(self, replica: str, number: signal.Signals) -> None:
        """To a replica's process."""
        process = self.world.mesh.processes.find(replica)
        assert process is not None
        os.kill(process.pid, number)

    async def book(
        self, hospital: str, day: object, people: int, at_once: int = 16, patient: bool = True
    ) -> list[Refusal | int]:
        """So many new customers book; each one's status or refusal. Who is patient comes again when told to."""
        gate = asyncio.Semaphore(at_once)

        async def one(customer: Client) -> Refusal | int:
            request_id = str(uuid.uuid4())
            async with gate:
                for _ in range(5):
                    try:
                        return (await customer.create(hospital, str(day), request_id)).status
                    except grpc.aio.AioRpcError as error:
                        told = refusal(error)
                    if not (patient and told.retry_after):
                        break
                    await asyncio.sleep(told.retry_after)
            return told

        return await asyncio.gather(*(one(self.world.customer()) for _ in range(people)))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Its breaker can be filled by a test."""
    folder = tmp_path_factory.mktemp("troubled")
    os.environ["TROUBLE"] = str(folder)
    values = {"components": {"approval": {"connections": {"maxRequests": 24, "maxPending": 24}}}}
    mesh = Mesh(folder / "mesh", free_base_port(), replicas=2, launcher="tests.e2e.troubled", values=values)
    yield mesh
    mesh.down()


@pytest.fixture
async def trouble(troubled: Mesh) -> AsyncIterator[Trouble]:
    await asyncio.to_thread(troubled.up)
    async with grpc.aio.insecure_channel(troubled.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        trouble = Trouble(World(troubled, channel), troubled.home.path.parent)
        await eventually(trouble.statistics, lambda s: s["outlier_detection.ejections_active"] == 0, within=60)
        yield trouble


APPROVED = Status.RESERVATION_STATUS_APPROVED


async def test_a_replica_that_fails_now_and_then_is_noticed_by_nobody(trouble: Trouble) -> None:
    people = 200
    hospital, day = await trouble.world.new_hospital(capacity=people)
    before, served = await trouble.statistics(), await trouble.calls()
    trouble.tell("approval-2", "flaky 0.3")
    try:
        answers = Counter(map(str, await trouble.book(hospital, day, people, patient=False)))
    finally:
        trouble.tell("approval-2")
    assert answers == {str(APPROVED): people}
    [row] = await trouble.world.query("approval", "SELECT approved FROM days WHERE hospital_id = $1", hospital)
    decisions = await trouble.world.query("approval", "SELECT 1 FROM decisions WHERE hospital_id = $1", hospital)
    assert (row["approved"], len(decisions)) == (people, people)  # each decided once, however often it was tried
    spent = await trouble.statistics() - before
    attempts = await trouble.calls() - served
    print(f"{people} bookings, {attempts} attempts, {spent['upstream_rq_retry']} retries")
    assert spent["upstream_rq_retry"] > 0
    assert attempts == people + spent["upstream_rq_retry"]
    assert attempts <= 2 * people
    assert spent["upstream_rq_retry_success"] == spent["upstream_rq_retry"]


@pytest.mark.parametrize("how", ["hangs", "dies"])
async def test_a_replica_that_is_gone_is_left_alone_until_it_is_back(trouble: Trouble, how: str) -> None:
    hospital, day = await trouble.world.new_hospital(capacity=2000)
    before = await trouble.statistics()
    trouble.signal("approval-2", signal.SIGSTOP if how == "hangs" else signal.SIGKILL)

    async def ejected() -> int:
        assert [a for a in await trouble.book(hospital, day, 8) if a != APPROVED] == []  # nobody notices
        return (await trouble.statistics())["outlier_detection.ejections_active"]

    try:
        await eventually(ejected, lambda n: n == 1, within=60)
        # Its traffic has moved: nothing is tried twice any more.
        retries = (await trouble.statistics())["upstream_rq_retry"]
        assert [a for a in await trouble.book(hospital, day, 8) if a != APPROVED] == []
        assert (await trouble.statistics())["upstream_rq_retry"] == retries
    finally:
        if how == "hangs":
            trouble.signal("approval-2", signal.SIGCONT)
        else:
            await asyncio.to_thread(trouble.world.mesh.up)
    assert (await trouble.statistics() - before)["outlier_detection.ejections_enforced_total"] >= 1
    served = await trouble.calls_of("approval-2")

    async def works_again() -> int:
        assert [a for a in await trouble.book(hospital, day, 8) if a != APPROVED] == []
        return await trouble.calls_of("approval-2")

    await eventually(works_again, lambda n: n > served, within=60)
    assert (await trouble.statistics())["outlier_detection.ejections_active"] == 0


async def test_the_breaker_opens_for_a_crowd_and_closes_when_it_has_gone(trouble: Trouble) -> None:
    hospital, day = await trouble.world.new_hospital(capacity=2000)
    assert await trouble.book(hospital, day, 1) == [APPROVED]
    before = await trouble.statistics()
    assert before["circuit_breakers.default.rq_open"] == 0
    for replica in ("approval", "approval-2"):
        trouble.tell(replica, "slow")
    crowd = asyncio.create_task(trouble.book(hospital, day, 80, at_once=80, patient=False))
    try:
        await eventually(trouble.statistics, lambda s: s["circuit_breakers.default.rq_open"] == 1)
        told = await trouble.book(hospital, day, 5, patient=False)
        async with httpx.AsyncClient(base_url=f"http://{trouble.world.mesh.gateway}", trust_env=False) as http:
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
    assert 0 < overflows <= len(refused) + 1  # who waited too long for a slow answer is told so too
    assert (await trouble.statistics())["circuit_breakers.default.rq_open"] == 0
    assert [a for a in await trouble.book(hospital, day, 20) if a != APPROVED] == []
