"""The reasons that clients may see and the public enums are the same, and the contracts explain each of them."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf import descriptor_pb2
from google.rpc import code_pb2

from mesh import ROOT
from mesh.contracts import replies
from mesh.contracts.generation import IMAGE
from services.approval.adapters import grpc as approval
from services.chassis import errors as chassis
from services.chassis.events import operations
from services.mypage import server as mypage
from services.reservation.adapters import approval as reservation_to_approval
from services.reservation.adapters import grpc as reservation
from services.vaccinemgmt.adapters import grpc as vaccinemgmt

# OtherScope's reason ends with the name of the claim that was asked for.
CLAIMS = {
    claim.upper()
    for file in (ROOT / "services").rglob("*.py")
    for claim in re.findall(r'check_scope\("(\w+)"', file.read_text())
}


def _codes(errors: chassis.Errors) -> dict[str, str]:
    return {answer.reason: answer.code.name for answer in errors.answers.values()}


def _edge() -> dict[str, str]:
    known = _codes(chassis._CHASSIS)
    scoped = known.pop("OTHER_")
    return known | {f"OTHER_{claim}": scoped for claim in CLAIMS} | replies.reasons()


# By context, the reason and the gRPC code of every error that it can answer with.
ANSWERS = {
    "approval": _codes(approval.ERRORS),
    "reservation": _codes(reservation.ERRORS),
    "vaccinemgmt": _codes(vaccinemgmt.ERRORS),
    "mypage": _codes(mypage.ERRORS),
    "operations": _codes(operations.ERRORS),
    "edge": _edge(),
}


class Context(NamedTuple):
    """What the comments of one context's contracts say."""

    # By reason, the comment of the ErrorReason's value; without those that only earlier versions answer with.
    reasons: dict[str, str]
    rpcs: dict[str, str]


def _contract(name: str) -> Context:
    reasons: dict[str, str] = {}
    rpcs: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(Path(IMAGE).read_bytes()).file:
        if file.package != f"vaccination.{name}.v1":
            continue
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for i, enum in enumerate(file.enum_type):
            for j, value in enumerate(enum.value if enum.name == "ErrorReason" else ()):
                comment = comments.get((5, i, 2, j), "")
                if value.number and "Sent by versions up to" not in comment:
                    reasons[value.name.removeprefix("ERROR_REASON_")] = comment
        for i, service in enumerate(file.service):
            rpcs |= {m.name: comments.get((6, i, 2, j), "") for j, m in enumerate(service.method)}
    return Context(reasons, rpcs)


@pytest.mark.parametrize("context", ANSWERS)
def test_the_public_enum_has_exactly_the_reasons_that_can_be_answered(context: str) -> None:
    assert _contract(context).reasons.keys() == ANSWERS[context].keys()


@pytest.mark.parametrize("context", ANSWERS)
def test_every_reason_is_explained_by_its_code_and_an_example_message(context: str) -> None:
    for reason, comment in _contract(context).reasons.items():
        assert re.match(rf" ?{ANSWERS[context][reason]}\b", comment), f"{reason}: {comment}"
        assert re.search(r'"[^"]+.*"', comment), f"{reason} has no example: {comment}"


@pytest.mark.parametrize("context", sorted(ANSWERS.keys() - {"edge"}))
def test_every_reason_is_listed_by_the_rpcs_that_may_answer_with_it_and_no_rpc_lists_others(context: str) -> None:
    told = set()
    for rpc, comment in _contract(context).rpcs.items():
        _, _, reasons = comment.partition("Reasons:")
        named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", reasons)) - set(code_pb2.Code.keys())
        unknown = {name for name in named if "_" in name} - ANSWERS[context].keys()
        assert not unknown, f"{rpc} tells {unknown}"
        told |= named
    assert ANSWERS[context].keys() <= told


def test_every_domain_is_its_contracts_package() -> None:
    tables = {"approval": approval, "reservation": reservation, "vaccinemgmt": vaccinemgmt, "mypage": mypage}
    assert {name: module.ERRORS.domain for name, module in tables.items()} == {n: f"vaccination.{n}" for n in tables}
    assert chassis.EDGE == "vaccination.edge"


def test_reservation_knows_approvals_reasons_and_passes_them_on_under_the_same_name() -> None:
    for reason, error in reservation_to_approval.REFUSALS.items():
        assert reason in ANSWERS["approval"]
        assert reservation.ERRORS.answers[error].reason == reason
