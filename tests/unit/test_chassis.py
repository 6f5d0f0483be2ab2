"""The chassis keeps its promises. The only servers are gRPC's own, in this process."""

import asyncio
import base64
import errno
import fcntl
import itertools
import json
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.approval.domain import Appointment, ReservationId
from services.chassis import edge as edge_module
from services.chassis import paging, telemetry
from services.chassis.batch import Batcher
from services.chassis.caller import CLAIMS_HEADER, CLOCK_SKEW, Caller, admit, allow, caller, internal, while_valid
from services.chassis.contract import violations
from services.chassis.convert import calendar_day, canonical_id, from_message, to_message
from services.chassis.edge import Edge, status_of, time_left
from services.chassis.errors import (
    Answer,
    Details,
    Errors,
    InvalidFields,
    InvalidPageToken,
    InvalidToken,
    OtherScope,
    Overloaded,
    Refusal,
    RoleNotAllowed,
    StoreUnavailable,
    TimedOut,
    Unauthenticated,
    to_status,
)
from services.chassis.events import Outgoing, Relay
from services.chassis.settings import Settings
from services.chassis.telemetry import traceparent, traces_by_key
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.mypage.v1 import mypage_service_pb2, mypage_service_pb2_grpc
from vaccination.reservation.v1 import reservation_service_pb2 as pb
from vaccination.reservation.v1 import reservation_service_pb2_grpc

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
APPOINTMENT = Appointment(
    ReservationId(str(uuid.UUID(int=1))), "c1", "h1", "Clinic", "Asia/Seoul", date(2027, 3, 10), "", NOW
)


def details(status: status_pb2.Status) -> dict[str, Message]:
    """The status' details by their type's name."""
    known = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        error_details_pb2.LocalizedMessage,
    )
    found: dict[str, Message] = {}
    for detail in status.details:
        for cls in known:
            message = cls()
            if detail.Unpack(message):
                found[cls.__name__] = message
    return found


def claims(**values: Any) -> dict[str, str]:
    """The header as the gateway writes it: base64url without padding."""
    values = {"exp": time.time() + 600} | values
    return {CLAIMS_HEADER: base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")}


class TestPaging:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        customer=st.text(st.characters(codec="utf-8")),
        day=st.dates(),
        at=st.datetimes(timezones=st.just(UTC)),
        key=st.uuids(),
    )
    def test_a_token_brings_back_its_position(self, customer: str, day: date, at: datetime, key: UUID) -> None:
        token = paging.encode(f"lots of {customer}", day.isoformat(), at.isoformat(), str(key), "h-1")
        position = paging.decode(f"lots of {customer}", token, date.fromisoformat, paging.instant, canonical_id, str)
        assert position == [day, at, str(key), "h-1"]

    def test_no_token_is_the_first_page(self) -> None:
        assert paging.decode("lots of h1", "", date.fromisoformat) is None

    def test_a_token_of_another_listing_is_refused(self) -> None:
        token = paging.encode("lots of h1", "2027-03-10")
        with pytest.raises(InvalidPageToken):
            paging.decode("lots of h2", token, date.fromisoformat)

    @pytest.mark.parametrize(
        "token",
        [
            "x",
            "é",
            "[]",
            base64.urlsafe_b64encode(b"{}").decode(),
            base64.urlsafe_b64encode(b"7").decode(),
            base64.urlsafe_b64encode(b"\xff\xfe").decode(),
            paging.encode("lots"),
            paging.encode("lots", "2027-03-10", "more"),
            paging.encode("lots", "2027-02-30"),
            base64.urlsafe_b64encode(b'["lots", 7]').decode(),
            base64.urlsafe_b64encode(b'["lots", null]').decode(),
            base64.urlsafe_b64encode(b"[" * 700).decode(),
        ],
    )
    def test_a_token_that_this_listing_did_not_give_out_is_refused(self, token: str) -> None:
        with pytest.raises(InvalidPageToken):
            paging.decode("lots", token, date.fromisoformat)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_a_token_with_a_changed_character_is_refused(self, data: st.DataObject) -> None:
        token = paging.encode("lots", "2027-03-10", str(uuid.UUID(int=9)))
        at = data.draw(st.integers(0, len(token) - 1))
        tampered = token[:at] + data.draw(st.characters(codec="ascii")) + token[at + 1 :]
        if tampered != token:
            with pytest.raises(InvalidPageToken):
                paging.decode("lots", tampered, date.fromisoformat, canonical_id)


class Refused(Exception):
    pass


class NearerRefused(Refused):
    pass


class FieldRefused(Refused):
    pass


ERRORS = Errors(
    "vaccination.test",
    {
        Refused: Answer(StatusCode.FAILED_PRECONDITION, "REFUSED"),
        FieldRefused: Answer(StatusCode.INVALID_ARGUMENT, "BAD_FIELD", "field"),
        KeyError: Answer(StatusCode.NOT_FOUND, "NO_SUCH_KEY", "key", hint="; see the list"),
    },
)


class TestErrors:
    def test_a_subclass_answers_as_its_nearest_ancestor_in_the_table(self) -> None:
        code, reason, status = to_status(NearerRefused("no more"), ERRORS)
        assert (code, reason, status.message) == (StatusCode.FAILED_PRECONDITION, "REFUSED", "no more")
        info = details(status)["ErrorInfo"]
        assert info == error_details_pb2.ErrorInfo(reason="REFUSED", domain="vaccination.test")
        assert status.code == StatusCode.FAILED_PRECONDITION.value[0]

    def test_the_text_of_an_exception_that_nobody_maps_does_not_leave_the_process(self) -> None:
        code, reason, status = to_status(RuntimeError("password=hunter2"), ERRORS)
        assert (code, reason, status.message) == (StatusCode.INTERNAL, "INTERNAL", "internal error")
        assert b"hunter2" not in status.SerializeToString()
        assert details(status)["ErrorInfo"] == error_details_pb2.ErrorInfo(reason="INTERNAL", domain="vaccination.edge")

    def test_a_refusal_names_the_field_of_its_answer_or_its_own(self) -> None:
        _, _, by_answer = to_status(KeyError("k"), ERRORS)
        place = Details([("deliveries[3].expiry_date", "too early")])
        _, reason, own = to_status(Refusal(FieldRefused("too early"), place), ERRORS)
        [violation] = details(by_answer)["BadRequest"].field_violations  # type: ignore[attr-defined]
        assert (violation.field, by_answer.message) == ("key", "key: 'k'; see the list")
        [violation] = details(own)["BadRequest"].field_violations  # type: ignore[attr-defined]
        assert (violation.field, violation.description) == ("deliveries[3].expiry_date", "too early")
        assert (reason, own.message) == ("BAD_FIELD", "deliveries[3].expiry_date: too early")

    def test_the_details_of_a_bug_do_not_leave_the_process(self) -> None:
        bug = Refusal(RuntimeError("hunter2"), Details([("field", "hunter2")], 1.0, ("en", "hunter2")))
        code, _, status = to_status(bug, ERRORS)
        assert code is StatusCode.INTERNAL
        assert b"hunter2" not in status.SerializeToString()

    def test_invalid_fields_are_all_told(self) -> None:
        code, reason, status = to_status(InvalidFields([("a", "is empty"), ("b[1].c", "too long")]), ERRORS)
        assert (code, reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        found = details(status)["BadRequest"].field_violations  # type: ignore[attr-defined]
        assert [(v.field, v.description) for v in found] == [("a", "is empty"), ("b[1].c", "too long")]

    def test_an_answer_tells_when_to_try_again_and_has_a_text_in_the_callers_language(self) -> None:
        busy = Refusal(Refused("busy"), Details(retry_after=1.25, localized=("ko", "잠시 후")))
        assert to_status(busy, ERRORS)[:2] == to_status(busy.error, ERRORS)[:2]
        found = details(to_status(busy, ERRORS)[2])
        assert found["RetryInfo"] == error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=250_000_000))
        assert found["LocalizedMessage"] == error_details_pb2.LocalizedMessage(locale="ko", message="잠시 후")

    @pytest.mark.parametrize(
        ("error", "code", "reason"),
        [
            (Unauthenticated("no"), StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
            (InvalidToken("no"), StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"),
            (RoleNotAllowed("no"), StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED"),
            (OtherScope("hospital", "no"), StatusCode.PERMISSION_DENIED, "OTHER_HOSPITAL"),
            (InvalidPageToken("no"), StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"),
            (Overloaded(1.0), StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
            (StoreUnavailable("no"), StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_what_the_chassis_refuses_has_its_own_answer(self, error: Exception, code: StatusCode, reason: str) -> None:
        assert to_status(error, ERRORS)[:2] == (code, reason)


class Colour(Enum):
    RED = 3


@dataclass
class Odd:
    reservation_id: str | None
    status: Colour | None
    unknown_to_the_contract: int = 7


class TestConvert:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        key=st.uuids(),
        text=st.text(),
        day=st.dates(min_value=date(1000, 1, 1)),
        at=st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
    )
    def test_a_dataclass_comes_back_from_its_message(self, key: UUID, text: str, day: date, at: datetime) -> None:
        appointment = Appointment(ReservationId(str(key)), text, text, text, text, day, text, at)
        message = appointment_pb2.Appointment.FromString(
            to_message(appointment, appointment_pb2.Appointment).SerializeToString()
        )
        assert from_message(message, Appointment) == appointment

    def test_an_enum_becomes_its_number_and_none_stays_unset(self) -> None:
        vaccination = to_message(Odd(str(uuid.UUID(int=1)), Colour.RED), pb.CancelReservationRequest)
        assert vaccination.reservation_id == str(uuid.UUID(int=1))
        assert to_message(Odd(None, None), pb.CancelReservationRequest).reservation_id == ""

    def test_fields_that_the_dataclass_lacks_are_given_beside_it(self) -> None:
        response = to_message(Odd(None, None), pb.CreateReservationRequest, hospital_id="h1")
        assert response.hospital_id == "h1"

    def test_a_text_that_is_not_a_date_is_refused_with_its_field(self) -> None:
        message = to_message(APPOINTMENT, appointment_pb2.Appointment)
        message.date = "2027-02-30"
        with pytest.raises(InvalidFields, match="date: 2027-02-30 is not a calendar day"):
            from_message(message, Appointment)
        with pytest.raises(InvalidFields) as refusal:
            calendar_day("first_date", "2027-13-01")
        assert refusal.value.violations == [("first_date", "2027-13-01 is not a calendar day")]

    def test_the_contracts_rules_name_the_field_that_breaks_them(self) -> None:
        message = to_message(APPOINTMENT, appointment_pb2.Appointment)
        assert violations(approval_events_pb2.ApprovalGranted(appointment=message)) == []
        message.customer_id = ""
        [(path, _)] = violations(approval_events_pb2.ApprovalGranted(appointment=message))
        assert path == "appointment.customer_id"


def admitted(metadata: dict[str, str], *roles: str, **claim_names: str) -> Caller:
    def act() -> Caller:
        admit(metadata, frozenset(roles), claim_names)
        return caller()

    return copy_context().run(act)


class TestCaller:
    def test_the_person_whom_the_token_names_becomes_the_caller(self) -> None:
        who = admitted(claims(sub="c1", roles=["customer"], hospital="h1"), "customer", "manager")
        assert (who.subject, who.roles, who.claims["hospital"]) == ("c1", frozenset({"customer"}), "h1")

    def test_without_a_token_there_is_no_caller(self) -> None:
        with pytest.raises(Unauthenticated, match="no bearer token"):
            admitted({}, "customer")

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "!!!",
            "é",
            claims(roles=["customer"])[CLAIMS_HEADER],
            claims(sub=None, roles=["customer"])[CLAIMS_HEADER],
            claims(sub=7, roles=["customer"])[CLAIMS_HEADER],
            claims(sub="", roles=["customer"])[CLAIMS_HEADER],
            claims(sub="x" * 129, roles=["customer"])[CLAIMS_HEADER],
            claims(sub="c\n1", roles=["customer"])[CLAIMS_HEADER],
            claims(sub="c1", roles=["customer"], exp=None)[CLAIMS_HEADER],
            claims(sub="c1", roles=["customer"], exp="never")[CLAIMS_HEADER],
            claims(sub="c1", roles=["customer"], exp=time.time() - 6)[CLAIMS_HEADER],
            claims(sub="c1", roles=["customer"], exp=float("nan"))[CLAIMS_HEADER],
            claims(sub="c1", roles=["customer"], exp=10**400)[CLAIMS_HEADER],
            claims(sub="c1", roles=7)[CLAIMS_HEADER],
            claims(sub="c1", roles="customer")[CLAIMS_HEADER],
            claims(sub="c1", roles=[["customer"]])[CLAIMS_HEADER],
            base64.urlsafe_b64encode(b'["sub"]').decode(),
            base64.urlsafe_b64encode(b"\xff").decode(),
        ],
        ids=itertools.count(),
    )
    def test_claims_that_do_not_say_who_is_calling_make_no_caller(self, header: str) -> None:
        with pytest.raises((InvalidToken, Unauthenticated)):
            admitted({CLAIMS_HEADER: header}, "customer")

    async def test_a_stream_ends_with_its_callers_token_and_closes_its_source(self) -> None:
        closed = asyncio.Event()

        async def responses() -> AsyncGenerator[int, None]:
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                closed.set()

        ends = time.time() - CLOCK_SKEW + 0.2
        admit(claims(sub="c1", roles=["customer"], exp=ends), frozenset({"customer"}), {})
        stream = while_valid(responses())
        assert await anext(stream) == 1
        with pytest.raises(InvalidToken, match="expired meanwhile"):
            await asyncio.wait_for(anext(stream), 10)
        assert closed.is_set()

    async def test_a_stream_ends_at_its_clients_deadline_and_says_so(self) -> None:
        async def responses() -> AsyncGenerator[int, None]:
            yield 1
            await asyncio.Event().wait()

        admit(claims(sub="c1", roles=["customer"]), frozenset({"customer"}), {})
        stream = while_valid(responses(), time_left=0.05)
        assert await anext(stream) == 1
        with pytest.raises(TimedOut):
            await asyncio.wait_for(anext(stream), 10)

    async def test_a_timeout_inside_a_stream_is_not_taken_for_the_end_of_the_token(self) -> None:
        async def responses() -> AsyncGenerator[int, None]:
            raise TimeoutError("its own")
            yield

        admit(claims(sub="c1", roles=["customer"]), frozenset({"customer"}), {})
        with pytest.raises(TimeoutError, match="its own"):
            await anext(while_valid(responses()))

    @pytest.mark.parametrize("roles", [[], ["manager"], ["Customer"]], ids=str)
    def test_a_caller_with_another_role_is_refused(self, roles: Any) -> None:
        with pytest.raises(RoleNotAllowed, match="for customer"):
            admitted(claims(sub="c1", roles=roles), "customer")

    def test_a_claim_may_have_another_name_at_the_provider(self) -> None:
        names = {"roles": "cognito:groups", "hospital": "https://example.org/hospital"}
        token = claims(sub="m", **{"cognito:groups": ["manager"], "https://example.org/hospital": "h1"})
        admitted(token, "manager", **names).check_scope("hospital", "h1")
        with pytest.raises(RoleNotAllowed):
            admitted(token, "manager")

    def test_a_claim_with_another_name_at_the_provider_is_not_also_read_under_ours(self) -> None:
        with pytest.raises(RoleNotAllowed):
            admitted(claims(sub="c", roles=["manager"], groups=["customer"]), "manager", roles="groups")
        with pytest.raises(RoleNotAllowed, match="no role"):
            admitted(claims(sub="c", roles=["manager"]), "manager", roles="groups")
        manager = admitted(claims(sub="m", roles=["manager"], hospital="h1"), "manager", hospital="clinic")
        with pytest.raises(OtherScope, match="not set"):
            manager.check_scope("hospital", "h1")

    def test_an_internal_call_needs_no_token_and_has_no_caller(self) -> None:
        with pytest.raises(Unauthenticated):
            admitted(claims(sub="c1", roles=["operator"]))

    def test_a_manager_acts_for_the_hospital_of_the_token_and_an_operator_for_all(self) -> None:
        manager = admitted(claims(sub="m", roles=["manager"], hospital="h1"), "manager")
        manager.check_scope("hospital", "h1")
        with pytest.raises(OtherScope, match="hospital is h1, not h2"):
            manager.check_scope("hospital", "h2")
        with pytest.raises(OtherScope, match="not set"):
            admitted(claims(sub="m", roles=["manager"]), "manager").check_scope("hospital", "h1")
        for nowhere in ({}, {"hospital": ""}, {"hospital": None}):  # an empty value may mean all hospitals
            with pytest.raises(OtherScope, match="not set"):
                admitted(claims(sub="m", roles=["manager"], **nowhere), "manager").check_scope("hospital", "")
        admitted(claims(sub="o", roles=["operator"]), "operator").check_scope("hospital", "h2")


class Desk(reservation_service_pb2_grpc.ReservationServiceServicer):
    """A servicer with a method of each kind."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.entered, self.finished = asyncio.Event(), asyncio.Event(), 0, 0
        self.time_left = 0.0

    @allow("customer")
    async def GetReservation(self, request: Any, context: Any) -> pb.GetReservationResponse:  # noqa: N802
        raise RuntimeError("password=hunter2")

    @allow("customer")
    async def CancelReservation(self, request: Any, context: Any) -> pb.CancelReservationResponse:  # noqa: N802
        self.begun.set()
        self.entered += 1
        await self.go_on.wait()
        self.finished += 1
        return pb.CancelReservationResponse()

    @internal
    async def CreateReservation(self, request: Any, context: Any) -> pb.CreateReservationResponse:  # noqa: N802
        self.time_left = time_left(60)
        return pb.CreateReservationResponse()

    async def ListReservations(self, request: Any, context: Any) -> pb.ListReservationsResponse:  # noqa: N802
        raise AssertionError("nobody may call what is for nobody")

    async def MoveReservation(self, request: Any, context: Any) -> pb.MoveReservationResponse:  # noqa: N802
        raise AssertionError("nobody may call what is for nobody")


class Screen(mypage_service_pb2_grpc.MypageServiceServicer):
    """A servicer whose stream ends with an error."""

    @allow("customer")
    async def WatchMyReservations(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[mypage_service_pb2.WatchMyReservationsResponse]:
        yield mypage_service_pb2.WatchMyReservationsResponse()
        raise NearerRefused(f"{caller().subject} has seen enough")


@asynccontextmanager
async def serving(
    desk: Desk, max_calls: int = 100, max_streams: int = 100
) -> AsyncIterator[tuple[Edge, grpc.aio.Channel]]:
    edge = Edge(ERRORS, max_calls=max_calls, max_streams=max_streams)
    server = grpc.aio.server(interceptors=[edge])
    reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server(desk, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    mypage_service_pb2_grpc.add_MypageServiceServicer_to_server(Screen(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
            yield edge, channel
    finally:
        await server.stop(None)


CUSTOMER = tuple(claims(sub="c1", roles=["customer"]).items())
CANCEL = pb.CancelReservationRequest(reservation_id=str(uuid.UUID(int=1)))
CREATE = pb.CreateReservationRequest(request_id=str(uuid.UUID(int=1)), hospital_id="h1", date="2027-03-10")


async def within(holds: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def refused(call: Any) -> tuple[StatusCode, str, str]:
    with pytest.raises(AioRpcError) as error:
        await call
    status = status_of(error.value)
    assert status is not None
    return error.value.code(), details(status)["ErrorInfo"].reason, error.value.details() or ""  # type: ignore[attr-defined]


class TestEdge:
    async def test_a_method_without_declared_roles_cannot_be_called_by_anybody(self) -> None:
        async with serving(Desk()) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            for metadata in (None, CUSTOMER, tuple(claims(sub="o", roles=["operator"]).items())):
                call = stub.ListReservations(pb.ListReservationsRequest(), metadata=metadata)
                assert (await refused(call))[:2] == (StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")

    async def test_the_caller_is_checked_before_the_request(self) -> None:
        async with serving(Desk()) as (_, channel):
            stub, broken = reservation_service_pb2_grpc.ReservationServiceStub(channel), pb.GetReservationRequest()
            assert (await refused(stub.GetReservation(broken)))[:2] == (StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
            code, reason, message = await refused(stub.GetReservation(broken, metadata=CUSTOMER))
            assert (code, reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
            assert "reservation_id" in message

    async def test_a_bug_answers_internal_and_tells_nothing(self) -> None:
        async with serving(Desk()) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            call = stub.GetReservation(pb.GetReservationRequest(reservation_id=str(uuid.uuid4())), metadata=CUSTOMER)
            assert await refused(call) == (StatusCode.INTERNAL, "INTERNAL", "internal error")

    async def test_an_internal_method_needs_no_token_but_keeps_the_contracts_rules(self) -> None:
        async with serving(Desk()) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            await stub.CreateReservation(CREATE)
            assert (await refused(stub.CreateReservation(pb.CreateReservationRequest())))[1] == "INVALID_FIELD"

    async def test_a_stream_that_fails_ends_with_the_errors_status(self) -> None:
        async with serving(Desk()) as (_, channel):
            watch = mypage_service_pb2_grpc.MypageServiceStub(channel).WatchMyReservations
            call = watch(mypage_service_pb2.WatchMyReservationsRequest(), metadata=CUSTOMER)
            assert await call.read() == mypage_service_pb2.WatchMyReservationsResponse()
            expected = (StatusCode.FAILED_PRECONDITION, "REFUSED", "c1 has seen enough")
            assert await refused(call.read()) == expected

    async def test_a_call_that_may_have_begun_to_commit_finishes_after_its_client_has_gone(self) -> None:
        desk = Desk()
        async with serving(desk) as (edge, channel):
            call = reservation_service_pb2_grpc.ReservationServiceStub(channel).CancelReservation(
                CANCEL, metadata=CUSTOMER
            )
            await desk.begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            finishing = asyncio.create_task(edge.finish())
            await asyncio.sleep(0)
            assert not finishing.done()
            desk.go_on.set()
            await asyncio.wait_for(finishing, 5)
            assert desk.finished == 1

    async def test_calls_over_the_limit_are_refused_at_once_but_probes_are_answered(self) -> None:
        desk = Desk()
        async with serving(desk, max_calls=2) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            held = stub.CancelReservation(CANCEL, metadata=CUSTOMER)
            gone = stub.CancelReservation(CANCEL, metadata=CUSTOMER)  # its client leaves, but its work goes on
            await within(lambda: desk.entered == 2)
            gone.cancel()
            with pytest.raises(AioRpcError) as refusal:
                await stub.CreateReservation(CREATE)
            status = status_of(refusal.value)
            assert status is not None
            assert refusal.value.code() is StatusCode.RESOURCE_EXHAUSTED
            found = details(status)
            assert found["ErrorInfo"].reason == "OVERLOADED"  # type: ignore[attr-defined]
            milliseconds = found["RetryInfo"].retry_delay.ToMilliseconds()  # type: ignore[attr-defined]
            assert 1000 <= milliseconds <= 2000
            trailers = dict(refusal.value.trailing_metadata() or ())
            assert int(trailers["retry-after"]) == math.ceil(milliseconds / 1000)
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            desk.go_on.set()
            await held
            await within(lambda: desk.finished == 2)
            await stub.CreateReservation(CREATE)

    async def test_refused_clients_are_told_different_times_to_try_again(self) -> None:
        pauses = set()
        async with serving(Desk(), max_calls=0) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            for _ in range(20):
                with pytest.raises(AioRpcError) as refusal:
                    await stub.CreateReservation(CREATE)
                status = status_of(refusal.value)
                assert status is not None
                pauses.add(details(status)["RetryInfo"].retry_delay.ToMilliseconds())  # type: ignore[attr-defined]
        assert len(pauses) > 5

    async def test_calls_refused_as_overloaded_are_counted(self) -> None:
        def counted() -> float:
            method = "/vaccination.reservation.v1.ReservationService/CreateReservation"
            return REGISTRY.get_sample_value("rpc_refusals_total", {"method": method, "reason": "OVERLOADED"}) or 0.0

        before = counted()
        async with serving(Desk(), max_calls=0) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            assert (await refused(stub.CreateReservation(CREATE)))[1] == "OVERLOADED"
        assert counted() == before + 1

    async def test_a_call_has_no_more_time_than_its_client_waits(self) -> None:
        desk = Desk()
        async with serving(desk) as (_, channel):
            stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
            await stub.CreateReservation(CREATE)
            assert desk.time_left == 60  # without a client's deadline the edge's own holds
            await stub.CreateReservation(CREATE, timeout=30)
            assert 0 < desk.time_left < 40  # not exactly 30, because gRPC rounds a timeout up
            await stub.CreateReservation(CREATE, timeout=3600)
            assert desk.time_left == 60

    async def test_streams_have_a_limit_of_their_own(self) -> None:
        async with serving(Desk(), max_streams=0) as (_, channel):
            watch = mypage_service_pb2_grpc.MypageServiceStub(channel).WatchMyReservations
            for _ in range(2):
                call = watch(mypage_service_pb2.WatchMyReservationsRequest(), metadata=CUSTOMER)
                assert (await refused(call.read()))[1] == "OVERLOADED"
            await reservation_service_pb2_grpc.ReservationServiceStub(channel).CreateReservation(CREATE)
        async with serving(Desk(), max_streams=1) as (_, channel):
            watch = mypage_service_pb2_grpc.MypageServiceStub(channel).WatchMyReservations
            for _ in range(2):  # a stream that has ended makes room for another
                call = watch(mypage_service_pb2.WatchMyReservationsRequest(), metadata=CUSTOMER)
                await call.read()
                assert (await refused(call.read()))[1] == "REFUSED"


class NothingToPublish:
    """An outbox that is always empty."""

    @asynccontextmanager
    async def taken(self, limit: int, left: float = 0.0) -> AsyncIterator[Sequence[Outgoing]]:
        yield []

    async def remove(self, ids: Sequence[str]) -> None: ...

    async def backlog(self) -> tuple[int, float]:
        return 0, 0.0


class TestRelay:
    @pytest.mark.parametrize("steps", range(6))
    async def test_a_relay_that_is_woken_and_told_to_stop_at_the_same_moment_stops(self, steps: int) -> None:
        async def publish(rows: Sequence[Outgoing]) -> None: ...

        relay = Relay(NothingToPublish(), publish)
        task = asyncio.create_task(relay.run())
        for _ in range(20):
            await asyncio.sleep(0)  # until the relay is idle
        relay.committed([])
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        _, running = await asyncio.wait([task], timeout=1)
        task.cancel()
        assert not running


class Store:
    """Writes what it is given, when the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.traces: list[dict[str, str]] = []
        self.may = asyncio.Event()
        self.began = asyncio.Event()

    async def write(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.traces.append(dict(traces_by_key.get()))
        self.began.set()
        await self.may.wait()
        if 13 in items:
            raise ValueError("13")
        if 99 in items:
            raise StoreUnavailable("away")
        if 66 in items:
            return []
        return [Refused(str(i)) if i < 0 else 10 * i for i in items]


async def outcomes(tasks: Sequence[asyncio.Task[int]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


class TestBatcher:
    async def test_calls_that_arrive_during_a_write_form_the_next_batch(self) -> None:
        store = Store()
        call: Batcher[int, int] = Batcher("test", store.write, str, limit=3)
        tasks = [asyncio.create_task(call(0))]
        await store.began.wait()  # a caller who is alone is written at once
        tasks += [asyncio.create_task(call(i)) for i in range(1, 6)]
        await asyncio.sleep(0)
        store.may.set()
        assert await outcomes(tasks) == [0, 10, 20, 30, 40, 50]
        assert store.batches == [[0], [1, 2, 3], [4, 5]]

    async def test_an_items_own_refusal_reaches_only_its_caller(self) -> None:
        store = Store()
        store.may.set()
        call: Batcher[int, int] = Batcher("test", store.write, str)
        first, bad, last = await outcomes([asyncio.create_task(call(i)) for i in (1, -1, 2)])
        assert (first, type(bad), last) == (10, Refused, 20)
        assert len(store.batches) == 1

    async def test_one_item_that_makes_the_write_fail_does_not_spoil_the_others(self) -> None:
        store = Store()
        store.may.set()
        call: Batcher[int, int] = Batcher("test", store.write, str)
        first, bad, last = await outcomes([asyncio.create_task(call(i)) for i in (1, 13, 2)])
        assert (first, type(bad), last) == (10, ValueError, 20)
        assert store.batches == [[1, 13, 2], [1], [13, 2], [13], [2]]

    async def test_when_the_store_is_away_nobody_is_tried_again(self) -> None:
        store = Store()
        store.may.set()
        call: Batcher[int, int] = Batcher("test", store.write, str)
        answers = await outcomes([asyncio.create_task(call(i)) for i in (1, 99)])
        assert [type(a) for a in answers] == [StoreUnavailable, StoreUnavailable]
        assert store.batches == [[1, 99]]

    async def test_a_caller_who_has_gone_disturbs_nobody(self) -> None:
        store = Store()
        call: Batcher[int, int] = Batcher("test", store.write, str)
        tasks = [asyncio.create_task(call(0))]
        await store.began.wait()
        tasks += [asyncio.create_task(call(i)) for i in (1, 2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        store.may.set()
        answers = await outcomes(tasks)
        assert [type(a) for a in answers[:2]] == [asyncio.CancelledError] * 2
        assert answers[2] == 20
        assert store.batches == [[0], [1, 2]]  # the item of the caller who left is written nevertheless

    async def test_a_write_that_forgets_an_answer_fails_its_callers_and_serves_the_next(self) -> None:
        store = Store()
        store.may.set()
        call: Batcher[int, int] = Batcher("test", store.write, str)
        answers = await outcomes([asyncio.create_task(call(i)) for i in (66, 1)])
        assert isinstance(answers[0], Exception)
        assert answers[1] == 10
        assert await asyncio.wait_for(call(2), 5) == 20

    async def test_each_items_effect_finds_its_own_callers_trace(self) -> None:
        store = Store()
        store.may.set()
        call: Batcher[int, int] = Batcher("test", store.write, str)

        async def traced(i: int) -> int:
            traceparent.set(f"trace-{i}")
            return await call(i)

        await outcomes([asyncio.create_task(traced(i)) for i in (1, 2)])
        assert store.traces == [{"1": "trace-1", "2": "trace-2"}]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sets every setting that has no default in the process' environment; returns the folder of secrets."""
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:4222")
    monkeypatch.setenv("NATS_USER", "test")
    (tmp_path / "database_url").write_text("postgresql://a:hunter2@127.0.0.1/a\n")
    (tmp_path / "nats_password").write_text("hunter2\n")
    return tmp_path


class TestSettings:
    def test_secrets_come_from_files_and_do_not_show(self, environment: Path) -> None:
        loaded = Settings.load()
        assert loaded.database_url.get_secret_value() == "postgresql://a:hunter2@127.0.0.1/a"
        assert loaded.nats_password.get_secret_value() == "hunter2"
        assert "hunter2" not in repr(loaded) + str(loaded)

    @pytest.mark.parametrize(
        ("passed", "stream", "good"),
        [(366, 733, True), (366, 732, False), (0, 0, True), (0, 36500, False), (30, 0, True), (30, 400, True)],
    )
    def test_events_outlive_the_bookings_that_a_view_is_rebuilt_of(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        passed: int, stream: int, good: bool,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("RETENTION_PASSED_DAYS", str(passed))
        monkeypatch.setenv("RETENTION_STREAM_DAYS", str(stream))
        if good:
            assert Settings.load().retention_stream_days == stream
            return
        with pytest.raises(SystemExit):
            Settings.load()
        assert "RETENTION_STREAM_DAYS should be" in capsys.readouterr().err

    def test_the_names_of_claims_are_given_as_json(self, environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings.load().claim_names == {}
        monkeypatch.setenv("CLAIM_NAMES", '{"roles": "groups"}')
        assert Settings.load().claim_names == {"roles": "groups"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("STREAM_REPLICAS", "hunter2"),
            ("DRAIN_SECONDS", "hunter2"),
            ("SHUTDOWN_SECONDS", ""),
            ("LOG_LEVEL", "hunter2"),
            ("LISTEN", "hunter2"),
            ("METRICS_LISTEN", "hunter2"),
            ("METRICS_LISTEN", "127.0.0.1:hunter2"),
            ("CLAIM_NAMES", "roles=hunter2"),
            ("CLAIM_NAMES", '{"roles": ["hunter2"]}'),
        ],
    )
    def test_a_wrong_setting_ends_the_process_with_a_line_that_names_it_and_not_its_value(
        self,
        environment: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        name: str,
        value: str,
    ) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            Settings.load()
        [line] = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert line.startswith(f"setting {name} ")
        assert "hunter2" not in line

    @pytest.mark.parametrize(
        "url",
        [
            "hunter2",
            "hunter2:5432/a",
            "postgresql://a:hunter2@",
            "postgresql://a:hunter2@/a",
            "postgresql://a:hunter2@h1:5432,/a",
            "postgresql://a:b@h1:hunter2,h2:5432/a",
            "//[hunter2",
            "x://hunter2\uff0f/a",
        ],
    )
    def test_a_text_that_is_not_a_database_url_is_not_quoted(
        self, environment: Path, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        (environment / "database_url").write_text(url)
        with pytest.raises(SystemExit):
            Settings.load()
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("setting DATABASE_URL (or the file database_url in SECRETS_DIR): ")
        assert "hunter2" not in line

    def test_each_missing_setting_has_a_line(self, environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (environment / "database_url").unlink()
        (environment / "nats_password").unlink()
        with pytest.raises(SystemExit) as end:
            Settings.load()
        lines = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert [line.split()[1] for line in lines] == ["DATABASE_URL", "NATS_PASSWORD"]

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://a:p%40ss@h1:5432,h2:5433/a?sslmode=require",
            "postgresql://a:p@h1,h2/a",
            "postgresql://a:p@[::1]:5432,127.0.0.1/a",
            "mongodb://a:p@m1:27017,m2:27017,m3:27017/a?replicaSet=rs0",
        ],
    )
    def test_a_database_url_may_name_several_hosts(self, environment: Path, url: str) -> None:
        (environment / "database_url").write_text(url)
        assert Settings.load().database_url.get_secret_value() == url

    def test_a_password_may_be_a_secret_of_its_own(self, environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (environment / "database_password").write_text("p@ss/:word\n")
        for name in ("postgresql://a@h1:5432,h2/a?sslmode=require", "mongodb+srv://a@cluster.example.org/a"):
            (environment / "database_url").write_text(name)
            assert Settings.load().database_url.get_secret_value() == name.replace("//a@", "//a:p%40ss%2F%3Aword@")
        for name in ("postgresql://a:hunter2@h/a", "postgresql://h/a"):
            (environment / "database_url").write_text(name)
            with pytest.raises(SystemExit):
                Settings.load()
            said = capsys.readouterr().err
            assert "beside DATABASE_PASSWORD it should be" in said
            assert "hunter2" not in said

    @pytest.mark.parametrize("level", ["INFO", "debug", "Warning"])
    def test_a_log_level_may_be_in_capitals_or_not(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch, level: str
    ) -> None:
        monkeypatch.setenv("LOG_LEVEL", level)
        assert Settings.load().log_level == level


class TestOutgoing:
    event = approval_events_pb2.ApprovalGranted(appointment=to_message(APPOINTMENT, appointment_pb2.Appointment))

    def test_an_event_travels_as_cloudevents_in_binary_mode(self) -> None:
        row = Outgoing.of("key", NOW, self.event)
        assert row.headers() == {
            "Nats-Msg-Id": row.id,
            "ce-specversion": "1.0",
            "ce-id": row.id,
            "ce-type": "vaccination.approval.v1.ApprovalGranted",
            "ce-source": "/vaccination/approval/v1",
            "ce-subject": "key",
            "ce-time": "2027-03-01T03:00:00+00:00",
            "content-type": "application/protobuf",
        }
        assert UUID(row.id).version == 4
        assert approval_events_pb2.ApprovalGranted.FromString(row.payload) == self.event
        assert row.subject == "vaccination.approval.v1.ApprovalGranted"

    def test_two_events_never_share_an_id(self) -> None:
        assert Outgoing.of("key", NOW, self.event).id != Outgoing.of("key", NOW, self.event).id

    def test_an_event_carries_the_trace_of_the_call_that_caused_it(self) -> None:
        def caused() -> list[str]:
            traceparent.set("00-call")
            traces_by_key.set({"key": "00-event", "no trace": ""})
            return [Outgoing.of(key, NOW, self.event).headers()["traceparent"] for key in ("key", "other", "no trace")]

        assert copy_context().run(caused) == ["00-event", "00-call", "00-call"]

    def test_the_domains_and_the_contracts_appointment_have_the_same_fields(self) -> None:
        assert [f.name for f in fields(Appointment)] == [f.name for f in appointment_pb2.Appointment.DESCRIPTOR.fields]
        assert NOW + timedelta(0) == from_message(self.event.appointment, Appointment).decide_time


# A log that cannot be written


class FullDisk:
    """A logger that has no room."""

    def error(self, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    info = error


async def test_what_the_logger_raises_never_takes_the_place_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "log", FullDisk())
    async with serving(desk := Desk()) as (_, channel):
        desk.go_on.set()
        stub = reservation_service_pb2_grpc.ReservationServiceStub(channel)
        await stub.CancelReservation(CANCEL, metadata=CUSTOMER)
        with pytest.raises(AioRpcError) as caught:
            await stub.GetReservation(pb.GetReservationRequest(reservation_id=CANCEL.reservation_id), metadata=CUSTOMER)
    assert caught.value.code() is StatusCode.INTERNAL


def test_a_log_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (os.open("/dev/full", os.O_WRONLY), writer):
        telemetry._Lines(descriptor).write("a line\n")
        os.close(descriptor)


def test_after_a_part_of_a_log_line_the_next_one_begins_anew() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    lines = telemetry._Lines(writer)
    lines.write("x" * 5000 + "\n")
    lines.write("lost\n")
    assert os.read(reader, 9999) == b"x" * 4096
    lines.write("next\n")
    lines.write("last\n")
    assert os.read(reader, 9999) == b"\nnext\nlast\n"
    os.close(reader)
    os.close(writer)
