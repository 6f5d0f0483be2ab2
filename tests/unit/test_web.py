"""The page's files are served so that browsers keep them, and so that nothing but them is served."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mesh import page
from services.chassis.http import Answer, Request
from services.web.site import Settings, Site

PAGE = b"<!doctype html><title>Vaccination</title>"
SCRIPT = b"export const a = 1;\n" * 100


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A built page."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_bytes(PAGE)
    (tmp_path / "assets" / "main-3FA9.js").write_bytes(SCRIPT)
    (tmp_path / "assets" / "tiny-77B0.css").write_bytes(b"a{}")
    (tmp_path / "robots.txt").write_bytes(b"User-agent: *\n")
    (tmp_path / ".stamp").write_text("0" * 64)
    return tmp_path


def settings(files: Path, **others: Any) -> Settings:
    return Settings(files=files, issuer="https://id.example.org/realm", client_id="page", **others)


async def ask(files: Path, path: str, method: str = "GET", **headers: str) -> Answer:
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    return await Site(settings(files)).answer(Request(method, path, headers=asked))


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/customer", "/manager/lots", "/signed-in", "/anything", "/customer/book/h.2"]
)
async def test_a_path_of_the_page_is_the_page_which_browsers_ask_for_each_time(files: Path, path: str) -> None:
    answer = await ask(files, path)
    assert (answer.status, answer.body) == (200, PAGE)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    again = await ask(files, path, if_none_match=f'"other", {answer.headers["etag"]}')
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]


async def test_a_file_whose_name_tells_its_content_is_kept_for_a_year(files: Path) -> None:
    answer = await ask(files, "/assets/main-3FA9.js")
    assert (answer.status, answer.body) == (200, SCRIPT)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip, deflate, br", True),
        ("*", True),
        ("br", False),
        ("gzip;q=0, br", False),
        ("gzip; q=0.5", True),
        ("", False),
    ],
)
async def test_a_text_is_compressed_for_who_takes_it(files: Path, accepted: str, packed: bool) -> None:
    answer = await ask(files, "/assets/main-3FA9.js", accept_encoding=accepted)
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
    assert (gzip.decompress(answer.body) if packed else answer.body) == SCRIPT
    tiny = await ask(files, "/assets/tiny-77B0.css", accept_encoding=accepted)
    assert "content-encoding" not in tiny.headers, "compressed it would be longer"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/old-0000.js",
        "/assets/",
        "/assets/none",
        "/.stamp",
        "/assets/../index.html",
        "/../pyproject.toml",
        "/x.html",
        "/.git/config",
    ],
)
async def test_nothing_else_is_there_and_nobody_remembers_that_it_was_not(files: Path, path: str) -> None:
    answer = await ask(files, path)
    assert (answer.status, answer.body, answer.headers["cache-control"]) == (404, b"", "no-store")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_the_page_can_only_be_read(files: Path, method: str) -> None:
    answer = await ask(files, "/", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/assets/main-3FA9.js", "/config.json", "/none.js", "/robots.txt"])
async def test_every_answer_forbids_what_the_page_does_not_need(files: Path, path: str) -> None:
    headers = (await ask(files, path)).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == "'self' https://id.example.org"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_the_page_is_told_where_to_sign_in_and_may_call_only_there(files: Path) -> None:
    answer = await ask(files, "/config.json")
    assert json.loads(answer.body) == {
        "issuer": "https://id.example.org/realm",
        "client_id": "page",
        "scope": "openid",
        "roles_claim": "roles",
        "hospital_claim": "hospital",
    }
    assert answer.headers["cache-control"] == "public, max-age=60"
    endpoints = {
        "authorization_endpoint": "https://login.example.org/authorize",
        "token_endpoint": "https://tokens.example.org/token",
    }
    site = Site(settings(files, **endpoints, claim_names='{"roles": "groups"}'))
    told = await site.answer(Request("GET", "/config.json"))
    assert json.loads(told.body).items() >= {**endpoints, "roles_claim": "groups", "hospital_claim": "hospital"}.items()
    allowed = "https://id.example.org https://login.example.org https://tokens.example.org"
    assert f"connect-src 'self' {allowed};" in told.headers["content-security-policy"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "id.example.org"},
        {"issuer": "https://id.example.org; script-src *"},
        {"token_endpoint": "https://id.example.org/token"},
        {"client_id": ""},
    ],
)
def test_settings_that_cannot_work_are_refused(files: Path, wrong: dict[str, str]) -> None:
    given = {"files": files, "issuer": "https://id.example.org", "client_id": "page", **wrong}
    with pytest.raises(ValueError, match=r"ISSUER|issuer|TOKEN_ENDPOINT|client_id"):
        Settings.model_validate(given)


def test_nothing_starts_without_a_page(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "index.html").unlink()
    with pytest.raises(SystemExit):
        Site(settings(files))
    assert "./dev web" in capsys.readouterr().err


# The built page


def test_the_built_page_is_of_the_sources_beside_it() -> None:
    built = page.STAMP.read_text().strip()
    assert built == page.stamp(), "web/dist is older than its sources: run ./dev web, and commit what it builds"


def test_a_stamp_tells_whether_an_input_of_the_build_has_changed(tmp_path: Path) -> None:
    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    for name in page.INPUTS:
        write(name, name)
    seen = [page.stamp(tmp_path)]
    for name, text in (
        ("web/src/main.tsx", "a"), ("web/src/main.tsx", "b"), ("web/src/ui/x.ts", ""), ("web/package-lock.json", "{}"),
        ("protos/x/y.proto", "message X {}"),
    ):  # fmt: skip
        write(name, text)
        seen.append(page.stamp(tmp_path))
    assert len(set(seen)) == len(seen)
    for made in ("web/dist/index.html", "web/node_modules/a/b.js", "web/gen/x_pb.js", "web/test/x.test.ts"):
        write(made, "made")
        assert page.stamp(tmp_path) == seen[-1]
