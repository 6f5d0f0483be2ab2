"""Runs Canaille, an identity provider that organizations use, and logs people in at it."""

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

CALLBACK = "http://app.example/callback"
PAGE = "vaccination-page"  # as auth.signIn.clientId says
PASSWORD = "correct horse battery staple"
# Canaille's names of the claims that a token needs. It has no custom claims. It has groups, and a standard claim that
# can be configured to hold the organization that an administrator entered for the person.
CLAIMS = {"roles": "groups", "hospital": "website"}
# What has to be asked for, so that these claims are in the token.
SCOPE = "openid profile groups"

Jwk = dict[str, str]
Json = dict[str, Any]


def new_key(algorithm: str) -> Jwk:
    """A key pair for RS256 or ES256."""
    key = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    private: Json = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {name: value for name, value in private.items() if name != "key_ops"} | {"kid": secrets.token_hex(4)}


class Canaille:
    """One running provider. `people` are its users: the name, the group and the organization of each.

    Every application is a public client (PKCE), whose access tokens are for one audience and signed by one algorithm.
    `applications` are the client id, audience and algorithm of each. One more is the page, if `page` is its origin:
    scripts of that origin may then read the provider's answers, which is CORS.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        people: Sequence[tuple[str, str, str]],
        applications: Sequence[tuple[str, str, str]],
        *,
        host: str = "127.0.0.1",
        page: str = "",
    ) -> None:
        self._folder, self._address, self.page = folder, f"{host}:{port}", page
        self._process: subprocess.Popen[bytes] | None = None
        self.issuer = f"http://{self._address}"
        self.signing, self.published = [new_key("RS256"), new_key("ES256")], list[Jwk]()
        folder.mkdir(parents=True)
        self._secret = secrets.token_hex()
        self.start()
        self._restore(_models(people, applications, page))

    def start(self) -> None:
        """Starts the process, with the keys that are set now."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("run", "--bind", self._address),
                cwd=self._folder, env=self._env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 300  # it needs 5 s of a processor before it listens, and others are busy too
        while True:
            try:
                self.discovered = httpx.get(f"{self.issuer}/.well-known/openid-configuration").json()
                return
            except httpx.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def _command(self, *arguments: str) -> list[str | Path]:
        return [Path(sys.executable).with_name("canaille"), *arguments]

    def _env(self) -> dict[str, str]:
        settings = {
            "SECRET_KEY": self._secret,
            "SERVER_NAME": self._address,
            "PREFERRED_URL_SCHEME": "http",
            "AUTHLIB_INSECURE_TRANSPORT": "1",  # else an address that is not this machine's alone needs TLS
            "CANAILLE_SQL": json.dumps({"DATABASE_URI": f"sqlite:///{self._folder}/canaille.sqlite"}),
            "CANAILLE_OIDC": json.dumps(
                {
                    "ACTIVE_JWKS": self.signing,
                    "INACTIVE_JWKS": self.published,
                    "USERINFO_MAPPING": {CLAIMS["hospital"].upper(): "{{ user.organization or '' }}"},
                }
            ),
        }
        return {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | settings

    def _restore(self, models: Json) -> None:
        """Puts people and applications into the database, which exists once Canaille has started."""
        command, given = self._command("restore"), json.dumps(models)
        done = subprocess.run(command, cwd=self._folder, env=self._env(), input=given, capture_output=True, text=True)
        if done.returncode:
            self.stop()
            raise RuntimeError(done.stderr)

    def log_in(self, application: str, person: str) -> Json:
        """Goes through the authorization code flow with PKCE; returns the token endpoint's answer.

        It does what a browser and an application do: the application's redirect, the provider's forms, and the exchange
        of the code.
        """
        verifier, state, nonce = (secrets.token_urlsafe(48) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        wish = {
            "response_type": "code", "client_id": application, "redirect_uri": CALLBACK,
            "scope": SCOPE, "state": state, "nonce": nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        with httpx.Client(timeout=60) as http:
            browser = _Browser(http)
            browser.visit(http.build_request("GET", self.discovered["authorization_endpoint"], params=wish))
            browser.submit(login=person)
            browser.submit(password=PASSWORD)
            if not browser.left_for:  # a person who has consented once is not asked again
                browser.submit(answer="accept")
            returned = {name: values[0] for name, values in parse_qs(urlsplit(browser.left_for).query).items()}
            assert (returned["state"], returned["iss"]) == (state, self.issuer)
            exchange = {
                "grant_type": "authorization_code", "code": returned["code"], "redirect_uri": CALLBACK,
                "client_id": application, "code_verifier": verifier,
            }  # fmt: skip
            answer: Json = http.post(self.discovered["token_endpoint"], data=exchange).json()
        assert jwt.decode(answer["id_token"], options={"verify_signature": False})["nonce"] == nonce, answer
        return answer


def _models(people: Sequence[tuple[str, str, str]], applications: Sequence[tuple[str, str, str]], page: str) -> Json:
    """People and applications in the form of Canaille's own dump."""
    audiences = {audience for _, audience, _ in applications}
    clients = [_client(application, audience, algorithm, CALLBACK) for application, audience, algorithm in applications]
    if page:
        # Canaille's id_tokens have the same audience as its access tokens, and an id_token has to be for its client.
        its = {"client_uri": page, "post_logout_redirect_uris": [f"{page}/"], "audience": [PAGE, "vaccination"]}
        clients.append(_client(PAGE, "vaccination", "ES256", f"{page}/signed-in") | its)
    return {
        "user": [
            {
                "id": name, "user_name": name, "password": PASSWORD, "family_name": name,
                "emails": [f"{name}@example.org"], "organization": organization,
            }
            for name, _, organization in people
        ],
        "group": [
            {"id": group, "display_name": group, "members": [name for name, its, _ in people if its == group]}
            for group in {group for _, group, _ in people}
        ],
        "client": [
            *({"id": audience, "client_id": audience, "client_name": audience} for audience in audiences),
            *clients,
        ],
    }  # fmt: skip


def _client(application: str, audience: str, algorithm: str, back: str) -> Json:
    """A public client in the same form; `back` is where people are sent back to."""
    return {
        "id": application, "client_id": application, "client_name": application,
        "redirect_uris": [back], "grant_types": ["authorization_code"], "response_types": ["code"],
        "scope": SCOPE.split(), "token_endpoint_auth_method": "none",
        "audience": [audience], "id_token_signed_response_alg": algorithm,
    }  # fmt: skip


class _Form(HTMLParser):
    """The action of a page's form, and its fields with the values that they have."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action, self.fields = "", dict[str, str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        has = dict(attributes)
        if tag == "form":
            self.action = has.get("action") or ""
        elif tag == "input" and has.get("name") and has.get("type") != "checkbox":
            self.fields[has["name"] or ""] = has.get("value") or ""


class _Browser:
    """Follows redirects and keeps cookies, until it is sent back to the application."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.left_for = ""

    def visit(self, request: httpx.Request) -> None:
        self._page = self._http.send(request)
        while following := self._page.next_request:
            if str(following.url).startswith(CALLBACK):
                self.left_for = str(following.url)
                return
            self._page = self._http.send(following)
        assert self._page.status_code == 200, self._page.text

    def submit(self, **filled: str) -> None:
        """Fills the page's form and sends it."""
        form = _Form(self._page.text)
        url = urljoin(str(self._page.url), form.action)
        self.visit(self._http.build_request("POST", url, data=form.fields | filled))
