"""OpenAPI describes every REST form, and the chart's copy is what the contracts give."""

import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from mesh import CHART
from mesh.contracts import openapi
from mesh.contracts.generation import IMAGE, chart_files
from tests.e2e.ways import ROUTES


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return openapi.document(IMAGE.read_bytes())


def operations(described: dict[str, Any]) -> dict[str, str]:
    """Verb and path by operationId."""
    forms = ((verb, path, form) for path, verbs in described["paths"].items() for verb, form in verbs.items())
    return {form["operationId"]: f"{verb.upper()} {path}" for verb, path, form in forms}


def test_the_charts_files_are_what_the_contracts_give() -> None:
    for name, made in chart_files().items():
        committed = (CHART / name).read_bytes()
        assert committed == made, f"{name} is of other contracts or values: ./dev gen, and commit it"


def test_it_is_a_valid_document(described: dict[str, Any]) -> None:
    validate(described, cls=OpenAPIV31SpecValidator)


def test_it_has_every_rest_form_and_nothing_internal(described: dict[str, Any]) -> None:
    known = {name.split("_")[1]: form for name, form in operations(described).items()}
    assert {name: known.get(name) for name in ROUTES} == ROUTES
    assert "Approve" not in json.dumps(described["paths"])


def test_every_operation_says_who_may_call_it_and_how_it_fails(described: dict[str, Any]) -> None:
    assert described["security"] == [{"bearerAuth": []}]
    for verbs in described["paths"].values():
        for form in verbs.values():
            assert form["summary"]
            assert form["responses"].keys() == {"200", "429", "default"}
    details = described["components"]["schemas"]["google.rpc.Status"]["properties"]["details"]["items"]["anyOf"]
    kinds = {kind["$ref"].rsplit(".", 1)[1] for kind in details}
    assert kinds == {"ErrorInfo", "BadRequest", "RetryInfo", "LocalizedMessage"}


def test_the_contracts_rules_are_the_schemas(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    request = schemas["vaccination.reservation.v1.CreateReservationRequest"]
    assert request["required"] == ["requestId", "hospitalId", "date"]  # vaccine_code may be empty
    assert request["properties"]["requestId"]["format"] == "uuid"
    assert request["properties"]["date"]["pattern"] == "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
    page_size = described["paths"]["/v1/hospitals"]["get"]["parameters"][0]
    assert page_size["schema"] == {"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000}
    assert schemas["vaccination.approval.v1.DenialReason"]["enum"][1] == "DENIAL_REASON_DAY_FULL"
    redrive = described["paths"]["/v1/operations/{service}/deadLetters:redrive"]["post"]["requestBody"]
    schema = redrive["content"]["application/json"]["schema"]
    assert schema["oneOf"] == [{"required": ["sequence"]}, {"required": ["all"]}]
    assert schema["properties"].keys() == {"sequence", "all"}  # the service is in the path
    assert schema["properties"]["sequence"]["type"] == "string"  # an int64 in JSON


def test_a_form_that_it_cannot_describe_is_an_error_that_names_it() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())
    [file] = (f for f in files.file if f.name == "vaccination/approval/v1/hospital_service.proto")
    twice = file.service[0].method.add()
    twice.CopyFrom(next(m for m in file.service[0].method if m.name == "ListHospitals"))
    twice.name = "ListThemAgain"
    with pytest.raises(ValueError, match=r"HospitalService\.ListThemAgain: get /v1/hospitals is another's"):
        openapi.document(files.SerializeToString())


def test_the_transcoders_contracts_are_complete() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(chart_files()["files/contracts.binpb"])
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)  # raises an error if an import is missing
    for name in ("vaccination.reservation.v1.ReservationService", "vaccination.operations.v1.OperationsService"):
        assert pool.FindServiceByName(name)
    for name in ("ErrorInfo", "BadRequest", "RetryInfo", "LocalizedMessage"):  # so that they become JSON
        assert pool.FindMessageTypeByName(f"google.rpc.{name}")
