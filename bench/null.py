"""The baseline: the same two hops with handlers that do nothing, on plain grpc.aio, without chassis or stores.

Run as `python -m bench.null reservation|approval`, with the environment of the service it stands for.
"""

import os
import sys
from typing import Any

import grpc.aio
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp

from vaccination.approval.v1 import appointment_pb2, approval_service_pb2, approval_service_pb2_grpc
from vaccination.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc

# These constants are as large as the real messages, so that the network and the proxies have the same work.
ID = "6f7c9e0a-5d1b-5c53-9d0e-1f0a7a3c2b44"
ASKED = approval_service_pb2.ApproveRequest(
    reservation_id=ID, customer_id="customer-0000000", hospital_id="bench-00", date="2030-01-01"
)
APPOINTMENT = appointment_pb2.Appointment(
    reservation_id=ID,
    customer_id=ASKED.customer_id,
    hospital_id=ASKED.hospital_id,
    hospital_name="Bench hospital bench-00",
    time_zone="Asia/Seoul",
    date=ASKED.date,
    decide_time=Timestamp(seconds=1_790_000_000, nanos=999_000_000),
)
GRANTED = approval_service_pb2.ApproveResponse(appointment=APPOINTMENT)
RESERVATION = reservation_pb2.Reservation(
    reservation_id=ID,
    hospital_id=ASKED.hospital_id,
    hospital_name=APPOINTMENT.hospital_name,
    time_zone=APPOINTMENT.time_zone,
    date=ASKED.date,
    status=reservation_pb2.RESERVATION_STATUS_APPROVED,
    decide_time=APPOINTMENT.decide_time,
)
PLACED = reservation_service_pb2.CreateReservationResponse(reservation=RESERVATION)


class Approval(approval_service_pb2_grpc.ApprovalServiceServicer):
    """Grants every request with the same answer."""

    async def Approve(self, request: Any, context: Any) -> approval_service_pb2.ApproveResponse:  # noqa: N802
        return GRANTED


class Reservation(reservation_service_pb2_grpc.ReservationServiceServicer):
    """Asks approval and then gives the same answer to every request."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._approval = approval_service_pb2_grpc.ApprovalServiceStub(channel)

    async def CreateReservation(  # noqa: N802
        self, request: Any, context: Any
    ) -> reservation_service_pb2.CreateReservationResponse:
        await self._approval.Approve(ASKED, timeout=2.5)
        return PLACED


async def serve(name: str) -> None:
    """Serves until it is killed, because there is nothing to drain."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if name == "approval":
        approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server(
            Approval(),  # type: ignore[abstract] # the other call is not measured
            server,
        )
    else:
        channel = grpc.aio.insecure_channel(os.environ["APPROVAL_TARGET"], options=[("grpc.enable_retries", 0)])
        servicer = Reservation(channel)  # type: ignore[abstract] # the other calls are not measured
        reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["LISTEN"])
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
