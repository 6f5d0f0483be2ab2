"""The identity provider of one machine, with a sign-in page instead of passwords: `python -m mesh.machine.issuer`.

It speaks OAuth's authorization code flow with PKCE (RFC 6749, 7636, 9207) to the page that the gateway serves, and to
nobody else. Whoever can open it can be anybody, as with `./dev token`, so it listens on 127.0.0.1 only and is not in
the chart. Codes and refresh tokens are in memory: after a restart people sign in again.
"""

import base64
import hashlib
import html
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlencode

import grpc
import uvloop

from mesh.machine import identity
from services.chassis import http, telemetry
from services.chassis.http import Answer, Request
from services.chassis.settings import Process
from services.chassis.telemetry import log
from vaccination.approval.v1.hospital_service_pb2 import ListHospitalsRequest
from vaccination.approval.v1.hospital_service_pb2_grpc import HospitalServiceStub

CLIENT = "vaccination-page"  # as the chart has it
AUTHORIZE, TOKEN, END_SESSION = "/authorize", "/token", "/end-session"
CODE_SECONDS = 60.0
TOKEN_SECONDS = 3600
REFRESH_SECONDS = 12 * 3600.0
MOST_GRANTS = 10_000  # the oldest makes room
SESSION = re.compile(r"(?:^|; *)mesh_issuer=([\w-]+)")  # the cookie
MOST_HOSPITALS = 30  # with a button each; others are typed

VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
NAME = re.compile(r"[\w.-]{1,64}")

WORDS = {
    "en": {
        "title": "Sign in",
        "about": "This is the identity provider of one machine. There are no passwords: choose who you are.",
        "customer": "Customer",
        "manager": "Vaccine manager of a hospital",
        "operator": "Operator",
        "other_customer": "Name of another customer",
        "other_hospital": "Id of another hospital",
        "as_customer": "Continue as this customer",
        "as_manager": "Continue as its manager",
        "signed_out": "You are signed out.",
        "refused": "This request to sign in cannot be trusted",
    },
    "ko": {
        "title": "로그인",
        "about": "이 컴퓨터에서만 쓰는 로그인 화면입니다. 비밀번호는 없습니다. 누구로 로그인할지 선택하세요.",
        "customer": "고객",
        "manager": "병원의 백신 관리자",
        "operator": "운영자",
        "other_customer": "다른 고객 이름",
        "other_hospital": "다른 병원 아이디",
        "as_customer": "이 고객으로 계속",
        "as_manager": "이 병원의 관리자로 계속",
        "signed_out": "로그아웃되었습니다.",
        "refused": "믿을 수 없는 로그인 요청입니다",
    },
}
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 32rem; padding: 1rem; word-break: keep-all }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 1.5rem 0 .5rem }
button, input { box-sizing: border-box; font: inherit; min-height: 2.75rem; padding: .5rem .75rem; width: 100% }
button { cursor: pointer; margin: .25rem 0; overflow-wrap: anywhere; text-align: start }
label { display: block; margin-top: .5rem }
"""


class Settings(Process):
    """What the process needs to know; `Mesh` tells it."""

    mesh_home: Path
    """The folder of the mesh, which has the keys."""
    origins: str
    """Origins of the gateway, separated by spaces: only its page is answered."""
    gateway: str
    gateway_name: str
    """host:port of the gateway, and the name by which it is called."""
    gateway_certificate: Path | None = None
    """What to trust of a gateway that speaks TLS."""


@dataclass(frozen=True)
class Person:
    """Somebody who signs in."""

    subject: str
    role: str
    hospital: str | None = None


@dataclass
class Grant:
    """What a person allowed the page. `refresh` is the one refresh token that is good; empty: none is any more."""

    person: Person
    redirect_uri: str
    challenge: str
    nonce: str | None
    until: float
    spent: bool = False
    refresh: str = ""


Kept = TypeVar("Kept", Grant, Person)


class Refused(Exception):
    """OAuth's error code, and words for a developer."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


class Issuer:
    """Signs people in."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._origins = settings.origins.split()
        port = settings.listen.rpartition(":")[2]
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._codes: dict[str, Grant] = {}
        self._refresh: dict[str, Grant] = {}
        self._sessions: dict[str, Person] = {}
        self._hospitals: dict[str, str] = {}
        style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        # A form's target counts with everything that it is redirected to, so the page's origin is there too.
        self._policy = (
            f"default-src 'none'; style-src 'sha256-{style}'; form-action 'self' {settings.origins}; "
            "base-uri 'none'; frame-ancestors 'none'"
        )

    async def answer(self, request: Request) -> Answer:
        """Answers one request."""
        if request.headers.get("host") not in self._hosts:
            return Answer(421)  # another name leads here: a page of that name could act for whoever opens it
        match request.method, request.path:
            case (("GET" | "POST"), path) if path == AUTHORIZE:
                return await self._authorize(request)
            case (("POST" | "OPTIONS"), path) if path == TOKEN:
                return self._token(request)
            case "GET", path if path == END_SESSION:
                return self._end_session(request)
        return Answer(404)

    # Signing in

    async def _authorize(self, request: Request) -> Answer:
        wish = request.parameters()
        redirect_uri = wish.get("redirect_uri", "")
        if wish.get("client_id") != CLIENT or redirect_uri not in [f"{origin}/signed-in" for origin in self._origins]:
            # Nobody is sent to an address that is not the page's.
            return self._page(request, "refused", "<p>client_id, redirect_uri</p>", status=400)
        back = {"state": wish["state"]} if "state" in wish else {}
        cookie: dict[str, str] = {}
        try:
            self._check(wish)
            person = _person(request.form()) if request.method == "POST" else self._signed_in(request, wish)
            if person is None:
                if "none" in wish.get("prompt", "").split():
                    raise Refused("login_required", "nobody is signed in here")
                return self._page(request, "title", await self._choice(request))
        except Refused as refused:
            back |= {"error": refused.code, "error_description": str(refused)}
        else:
            code = secrets.token_urlsafe(32)
            until = time.monotonic() + CODE_SECONDS
            grant = Grant(person, redirect_uri, wish["code_challenge"], wish.get("nonce"), until)
            _keep(self._codes, code, grant)
            back |= {"code": code}
            if request.method == "POST":
                session = secrets.token_urlsafe(32)
                _keep(self._sessions, session, person)
                cookie = {"set-cookie": f"mesh_issuer={session}; Path=/; HttpOnly; SameSite=Lax"}
        return _redirect(redirect_uri, back | {"iss": identity.ISSUER}, cookie)

    def _signed_in(self, request: Request, wish: Mapping[str, str]) -> Person | None:
        """Who chose before in this browser to be the person that the page asks for: nobody is asked twice.

        A page that asks for nobody by name wants to know who it is, so the choice is offered again.
        """
        known = SESSION.search(request.headers.get("cookie", ""))
        person = self._sessions.get(known[1]) if known else None
        if person is None or "login" in wish.get("prompt", "").split():
            return None
        return person if wish.get("login_hint") == person.subject else None

    def _check(self, wish: Mapping[str, str]) -> None:
        if wish.get("response_type") != "code":
            raise Refused("unsupported_response_type", "response_type is code")
        if wish.get("code_challenge_method") != "S256" or not CHALLENGE.fullmatch(wish.get("code_challenge", "")):
            raise Refused("invalid_request", "PKCE with S256 is needed")
        if "openid" not in wish.get("scope", "").split():
            raise Refused("invalid_scope", "scope has openid in it")

    async def _choice(self, request: Request) -> str:
        """The page's forms: whom one can be."""
        words = WORDS[_language(request)]
        action = html.escape(f"{AUTHORIZE}?{request.query}", quote=True)

        def section(title: str, *fields: str) -> str:
            forms = "".join(f'<form method="post" action="{action}">{field}</form>' for field in fields)
            return f"<section><h2>{words[title]}</h2>{forms}</section>"

        def button(name: str, value: str, text: str) -> str:
            return f'<button name="{name}" value="{html.escape(value, quote=True)}">{html.escape(text)}</button>'

        def typed(name: str, label: str) -> str:
            return (
                f'<label>{words[label]} <input name="{name}" required maxlength="64" pattern="[\\w.\\-]+" '
                f'autocomplete="off"></label><button>{words[f"as_{name}"]}</button>'
            )

        hospitals = await self._known_hospitals()
        buttons = [button("manager", hospital, name) for hospital, name in hospitals.items()]
        return (
            f"<p>{words['about']}</p>"
            + section("customer", button("customer", "minji", "Minji · 민지"), typed("customer", "other_customer"))
            + section("manager", *buttons, typed("manager", "other_hospital"))
            + section("operator", button("operator", "operator", words["operator"]))
        )

    async def _known_hospitals(self) -> dict[str, str]:
        """Names by id: the first few, or those of last time while approval does not answer."""
        settings = self._settings
        token = identity.token(settings.mesh_home, subject="issuer", roles=["operator"], expires_in=60)
        options = [("grpc.enable_http_proxy", 0), ("grpc.default_authority", settings.gateway_name)]
        try:
            if settings.gateway_certificate:
                trust = grpc.ssl_channel_credentials(settings.gateway_certificate.read_bytes())
                channel = grpc.aio.secure_channel(settings.gateway, trust, options)
            else:
                channel = grpc.aio.insecure_channel(settings.gateway, options)
            async with channel:
                answer = await HospitalServiceStub(channel).ListHospitals(
                    ListHospitalsRequest(page_size=MOST_HOSPITALS),
                    metadata=(("authorization", f"Bearer {token}"),),
                    timeout=2,
                )
            self._hospitals = {hospital.hospital_id: hospital.name for hospital in answer.hospitals}
        except (grpc.RpcError, OSError) as error:
            log.warning("hospitals are as last time", error=str(error))
        return self._hospitals

    # Tokens

    def _token(self, request: Request) -> Answer:
        origin = request.headers.get("origin", "")
        headers = {"cache-control": "no-store", "content-type": "application/json", "vary": "origin"}
        if origin in self._origins:
            headers |= {
                "access-control-allow-origin": origin,
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": "content-type",
            }
        if request.method == "OPTIONS":
            return Answer(204, headers)
        try:
            answer, status = self._exchange(request.form()), 200
        except Refused as refused:
            answer, status = {"error": refused.code, "error_description": str(refused)}, 400
        return Answer(status, headers, json.dumps(answer).encode())

    def _exchange(self, form: Mapping[str, str]) -> dict[str, str | int]:
        if form.get("client_id") != CLIENT:
            raise Refused("invalid_client", f"client_id is {CLIENT}")
        match form.get("grant_type"):
            case "authorization_code":
                grant = self._of_code(form)
            case "refresh_token":
                grant = self._of_refresh_token(form.get("refresh_token", ""))
            case _:
                raise Refused("unsupported_grant_type", "grant_type is authorization_code or refresh_token")
        grant.until, grant.refresh = time.monotonic() + REFRESH_SECONDS, secrets.token_urlsafe(32)
        _keep(self._refresh, grant.refresh, grant)
        home, person = self._settings.mesh_home, grant.person
        access = identity.token(
            home, subject=person.subject, roles=[person.role], hospital=person.hospital, expires_in=TOKEN_SECONDS
        )
        about = identity.token(
            home, subject=person.subject, roles=[person.role], expires_in=TOKEN_SECONDS, aud=CLIENT, nonce=grant.nonce
        )
        return {
            "access_token": access, "token_type": "Bearer", "expires_in": TOKEN_SECONDS,
            "refresh_token": grant.refresh, "id_token": about, "scope": "openid",
        }  # fmt: skip

    def _of_code(self, form: Mapping[str, str]) -> Grant:
        grant = self._codes.get(form.get("code", ""))
        if grant is None or (not grant.spent and grant.until < time.monotonic()):
            raise Refused("invalid_grant", "the code is unknown or too old")
        if grant.spent:
            grant.refresh = ""  # two have the code, so that neither is trusted any more
            raise Refused("invalid_grant", "the code was used before")
        grant.spent = True
        verifier = form.get("code_verifier", "")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        if form.get("redirect_uri") != grant.redirect_uri:
            raise Refused("invalid_grant", "redirect_uri is not the one that the code was sent to")
        if not VERIFIER.fullmatch(verifier) or not secrets.compare_digest(challenge, grant.challenge):
            raise Refused("invalid_grant", "code_verifier does not fit the challenge")
        return grant

    def _of_refresh_token(self, token: str) -> Grant:
        grant = self._refresh.get(token)
        if grant is None or grant.refresh != token or grant.until < time.monotonic():
            if grant is not None:
                grant.refresh = ""  # the same: who has an old one should not have it
            raise Refused("invalid_grant", "the refresh token is unknown, too old, or was used before")
        return grant

    # Signing out

    def _end_session(self, request: Request) -> Answer:
        if known := SESSION.search(request.headers.get("cookie", "")):
            self._sessions.pop(known[1], None)
        wish = request.parameters()
        target = wish.get("post_logout_redirect_uri", "")
        if target in [f"{origin}/" for origin in self._origins]:
            return _redirect(target, {"state": wish["state"]} if "state" in wish else {})
        return self._page(request, "signed_out", "")

    def _page(self, request: Request, title: str, content: str, status: int = 200) -> Answer:
        language = _language(request)
        heading = WORDS[language][title]
        page = (
            f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>{heading}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
            f"<body><main><h1>{heading}</h1>{content}</main></body></html>"
        )
        headers = {
            "content-type": "text/html; charset=utf-8", "cache-control": "no-store", "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff", "content-security-policy": self._policy,
        }  # fmt: skip
        return Answer(status, headers, page.encode())


def _person(form: Mapping[str, str]) -> Person | None:
    """Who was chosen; None if nobody was who can be."""
    for role in ("customer", "manager", "operator"):
        if (name := form.get(role)) is not None and NAME.fullmatch(name):
            hospital = name if role == "manager" else None
            return Person(f"manager-{name}" if hospital else name if role == "customer" else role, role, hospital)
    return None


def _language(request: Request) -> str:
    """The first language that is asked for and known; else English."""
    asked = (
        f"{request.parameters().get('ui_locales', '').replace(' ', ',')},{request.headers.get('accept-language', '')}"
    )
    return next((tag for one in asked.split(",") if (tag := one.strip()[:2].lower()) in WORDS), "en")


def _redirect(target: str, parameters: Mapping[str, str], also: Mapping[str, str] = MappingProxyType({})) -> Answer:
    headers = {"location": f"{target}?{urlencode(parameters)}" if parameters else target}
    return Answer(303, headers | {"cache-control": "no-store", "referrer-policy": "no-referrer"} | dict(also))


def _keep(known: dict[str, Kept], name: str, one: Kept) -> None:
    while len(known) >= MOST_GRANTS:
        del known[next(iter(known))]
    known[name] = one


async def issuer() -> None:
    """Serves the provider."""
    settings = Settings.load()
    telemetry.start("issuer", settings.log_level, settings.metrics_listen)
    await http.serve("issuer", settings, Issuer(settings).answer)


if __name__ == "__main__":
    uvloop.run(issuer())
