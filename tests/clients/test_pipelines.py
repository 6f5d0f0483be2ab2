"""The pipelines are what their readers accept: GitHub Actions as actionlint knows it, and Argo CD's own schema."""

import json
from pathlib import Path
from typing import Any

import yaml
from openapi_schema_validator import OAS30Validator

from mesh import ROOT

from .test_clients import run

ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
ARGO_CD = "github.com/argoproj/argo-cd/v3@v3.4.13"


async def test_actionlint_finds_nothing_in_the_workflows() -> None:
    workflows = [str(file) for file in (ROOT / ".github" / "workflows").iterdir()]
    await run(ROOT, ["go", "run", ACTIONLINT, "-no-color", *workflows])


async def test_argo_cds_application_has_the_form_that_argo_cd_declares(tmp_path: Path) -> None:
    downloaded = json.loads(await run(tmp_path, ["go", "mod", "download", "-json", ARGO_CD]))
    crd = yaml.load((Path(downloaded["Dir"]) / "manifests/crds/application-crd.yaml").read_text(), yaml.CSafeLoader)
    [version] = crd["spec"]["versions"]
    application = yaml.safe_load((ROOT / "helm" / "argo-cd.yaml").read_text())
    assert application["apiVersion"] == f"{crd['spec']['group']}/{version['name']}"
    OAS30Validator(closed(version["schema"]["openAPIV3Schema"])).validate(application)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, but refusing fields that it does not know, which the API server would drop silently."""
    inside = {
        key: closed(schema[key]) for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)
    }
    if known := schema.get("properties"):
        inside["properties"] = {name: closed(field) for name, field in known.items()}
        inside["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    return schema | inside
