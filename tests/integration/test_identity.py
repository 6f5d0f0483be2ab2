"""The gateway accepts the right tokens while an identity provider changes the keys that it publishes at a URL.

Envoy is real and has no service behind it. A token is good if the call gets past the gateway and finds nobody there.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mesh.machine import Mesh, identity

from ..conftest import free_base_port

SUBJECT: dict[str, Any] = {"subject": "C1", "roles": ["customer"]}


class Provider:
    """The local issuer, which publishes its keys over HTTP; `port` 0 takes a free one."""

    def __init__(self, home: Path, port: int = 0) -> None:
        provider = self
        self.home, self.asked = home, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                body = identity.jwks(home).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/jwks.json"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        """Stops answering at the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(self, **others: Any) -> str:
        """A token that is signed by the current key."""
        return identity.token(self.home, **SUBJECT | others)


class Gateway:
    """Envoy with nothing behind it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._http = httpx.Client(base_url=f"http://{mesh.gateway}")

    def accepts(self, token: str) -> bool:
        """Whether a call with the token gets past the gateway."""
        answer = self._http.get("/v1/my/reservations", headers={"authorization": f"Bearer {token}"})
        if answer.status_code == 401:
            assert answer.json()["details"][0]["reason"] == "TOKEN_INVALID"
            return False
        assert answer.status_code == 503, answer.text
        return True

    def failed_fetches(self) -> int:
        """How often Envoy could not read the provider's keys, by its own count."""
        stats = httpx.get(f"http://{self.mesh.home.address('envoy-admin')}/stats?filter=jwks_fetch_failed").text
        return sum(int(line.rpartition(":")[2]) for line in stats.splitlines())


@contextmanager
def gateway_for(folder: Path, jwks_uri: str) -> Iterator[Gateway]:
    auth = {"issuer": identity.ISSUER, "audiences": [identity.AUDIENCE], "jwksUri": jwks_uri}
    mesh = Mesh(folder, free_base_port(), values={"auth": auth})
    mesh.up(only=["envoy"])
    try:
        yield Gateway(mesh)
    finally:
        mesh.down()


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    provider = Provider(tmp_path_factory.mktemp("provider"))
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def gateway(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_for(tmp_path_factory.mktemp("gateway"), provider.url) as gateway:
        yield gateway


def eventually(holds: Callable[[], bool], always: Callable[[], bool] = lambda: True, within: float = 30.0) -> None:
    """Returns once `holds` is true; fails after `within` seconds, or as soon as `always` is false."""
    deadline = time.monotonic() + within
    while not holds():
        assert always()
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.05)
    assert always()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_new_keys_tokens_are_accepted_and_the_old_ones_still_are(
    gateway: Gateway, provider: Provider, algorithm: str
) -> None:
    old = provider.token()
    eventually(lambda: gateway.accepts(old))
    identity.rotate(provider.home, algorithm=algorithm)
    new = provider.token()
    assert jwt.get_unverified_header(new)["alg"] == algorithm
    eventually(lambda: gateway.accepts(new), always=lambda: gateway.accepts(old))


def test_a_removed_keys_tokens_are_refused(gateway: Gateway, provider: Provider) -> None:
    old = provider.token()
    eventually(lambda: gateway.accepts(old))
    identity.rotate(provider.home, keep=0)
    eventually(lambda: not gateway.accepts(old))
    assert gateway.accepts(provider.token())


def test_a_gateway_that_starts_before_its_provider_accepts_tokens_once_it_is_there(tmp_path: Path) -> None:
    away = Provider(tmp_path / "provider")
    away.stop()
    with gateway_for(tmp_path / "gateway", away.url) as gateway:
        token = away.token()
        assert not gateway.accepts(token)
        provider = Provider(away.home, away.port)
        try:
            eventually(lambda: gateway.accepts(token))
        finally:
            provider.stop()


def test_while_its_provider_is_away_a_gateway_goes_on_with_the_keys_it_has(tmp_path: Path) -> None:
    provider = Provider(tmp_path / "provider")
    with gateway_for(tmp_path / "gateway", provider.url) as gateway:
        token = provider.token()
        assert gateway.accepts(token)
        provider.stop()
        # Envoy fails about once a second, so this is longer than keys that are fetched on demand stay in the cache.
        eventually(lambda: gateway.failed_fetches() >= 8, always=lambda: gateway.accepts(token))
        identity.rotate(provider.home, keep=0)
        back = Provider(provider.home, provider.port)
        try:
            eventually(lambda: gateway.accepts(provider.token()) and not gateway.accepts(token))
        finally:
            back.stop()


def encoded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def bad_tokens(provider: Provider, elsewhere: str) -> dict[str, str]:
    """Tokens that try to pass one key off as another, by the kind of attack; the attacker's keys are at `elsewhere`."""
    key_id, key = identity.signing_key(provider.home)
    assert isinstance(key, rsa.RSAPrivateKey)
    published = {k["alg"]: k["kid"] for k in json.loads(identity.jwks(provider.home))["keys"]}
    stranger = rsa.generate_private_key(65537, 2048)
    now = int(time.time())
    claims = {"iss": identity.ISSUER, "aud": identity.AUDIENCE, "sub": "C1", "roles": ["operator"], "exp": now + 600}

    def signed(by: rsa.RSAPrivateKey, algorithm: str = "RS256", **header: Any) -> str:
        return jwt.encode(claims, by, algorithm, headers={"kid": key_id} | header)

    def hmac_with(secret: bytes) -> str:
        head = json.dumps({"typ": "JWT", "alg": "HS256", "kid": key_id}).encode()
        text = encoded(head) + b"." + encoded(json.dumps(claims).encode())
        return (text + b"." + encoded(hmac.new(secret, text, hashlib.sha256).digest())).decode()

    public = key.public_key()
    formats, encodings = serialization.PublicFormat, serialization.Encoding
    return {
        "with the id of another key": signed(key, kid=published["ES256"]),
        "with the id of a key that nobody has": signed(key, kid="jwt-0"),
        "by an algorithm that the key is not for": signed(key, "PS256"),
        "by a longer hash than the key is for": signed(key, "RS512"),
        "with the public key's PEM as a secret": hmac_with(
            public.public_bytes(encodings.PEM, formats.SubjectPublicKeyInfo)
        ),
        "with the public key's DER as a secret": hmac_with(
            public.public_bytes(encodings.DER, formats.SubjectPublicKeyInfo)
        ),
        "by a stranger without a key's id": jwt.encode(claims, stranger, "RS256"),
        "by a stranger, who says where his keys are": signed(stranger, jku=elsewhere),
        "by a stranger, who says where his certificate is": signed(stranger, x5u=elsewhere),
    }


def test_no_token_can_pass_one_key_off_as_another(gateway: Gateway, provider: Provider, tmp_path: Path) -> None:
    identity.rotate(provider.home, algorithm="ES256", keep=0)
    identity.rotate(provider.home, algorithm="RS256")
    eventually(lambda: gateway.accepts(provider.token()))
    stranger = Provider(tmp_path)
    try:
        for wrong, token in bad_tokens(provider, stranger.url).items():
            assert not gateway.accepts(token), wrong
        key_id, key = identity.signing_key(provider.home)
        claims = jwt.decode(provider.token(), options={"verify_signature": False})
        assert gateway.accepts(jwt.encode(claims, key, "RS256", headers={"kid": key_id, "jku": stranger.url}))
        assert stranger.asked == 0
    finally:
        stranger.stop()


def test_clocks_may_differ_by_a_few_seconds(gateway: Gateway, provider: Provider) -> None:
    eventually(lambda: gateway.accepts(provider.token()))
    # Each try has a new token, because on a busy machine a token may have become too old on its way.
    eventually(lambda: gateway.accepts(provider.token(expires_in=-1)))
    assert gateway.accepts(provider.token(nbf=int(time.time()) + 2))
    # Istio allows 60 s, which cannot be changed. The services allow less (services/chassis/caller.py).
    assert not gateway.accepts(provider.token(expires_in=-70))
