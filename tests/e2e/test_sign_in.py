"""People sign in at the local issuer's page, by authorization code and PKCE, and only for the gateway's own page."""

import base64
import hashlib
import html
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest

from .conftest import World

Json = dict[str, Any]


class Browser:
    """A browser with the page of one gateway in it."""

    def __init__(self, http: httpx.AsyncClient, origin: str, config: Json) -> None:
        self.http, self.origin, self.config = http, origin, config
        self.verifier, self.state, self.nonce = (secrets.token_urlsafe(48) for _ in range(3))

    def wish(self, **others: str) -> dict[str, str]:
        """The parameters with which the page sends a person to the issuer."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()
        wish = {
            "response_type": "code", "client_id": self.config["client_id"], "scope": self.config["scope"],
            "redirect_uri": f"{self.origin}/signed-in", "state": self.state, "nonce": self.nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        return wish | others

    async def choose(self, who: dict[str, str], **others: str) -> dict[str, str]:
        """Presses a button of the sign-in page; returns what comes back to the page."""
        page = await self.http.get(self.config["authorization_endpoint"], params=self.wish(**others))
        assert page.status_code == 200, page.text
        action = re.findall(r'<form method="post" action="([^"]+)"', page.text)[0]
        target = urlsplit(self.config["authorization_endpoint"])._replace(path="", query="").geturl()
        sent = await self.http.post(f"{target}{html.unescape(action)}", data=who)
        assert sent.status_code == 303
        return self.came_back(sent)

    def came_back(self, answer: httpx.Response) -> dict[str, str]:
        """The parameters of a redirect to the page."""
        to = urlsplit(answer.headers["location"])
        assert f"{to.scheme}://{to.netloc}{to.path}" == f"{self.origin}/signed-in"
        found = {name: values[0] for name, values in parse_qs(to.query).items()}
        assert (found["state"], found["iss"]) == (self.state, self.config["issuer"])
        return found

    async def exchange(self, code: str, **others: str) -> httpx.Response:
        """Asks for tokens, as the page does."""
        form = {
            "grant_type": "authorization_code", "code": code, "client_id": self.config["client_id"],
            "redirect_uri": f"{self.origin}/signed-in", "code_verifier": self.verifier,
        }  # fmt: skip
        return await self.token(form | others)

    async def refresh(self, token: str) -> httpx.Response:
        """Asks for new tokens."""
        form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": self.config["client_id"]}
        return await self.token(form)

    async def token(self, form: dict[str, str]) -> httpx.Response:
        """A request of the page to the token endpoint."""
        return await self.http.post(self.config["token_endpoint"], data=form, headers={"origin": self.origin})


@pytest.fixture
async def browser(world: World) -> AsyncIterator[Browser]:
    """A browser at the gateway's own address."""
    async with httpx.AsyncClient(trust_env=False, timeout=15) as http:
        origin = f"http://{world.mesh.gateway}"
        yield Browser(http, origin, (await http.get(f"{origin}/config.json")).json())


def refusal(answer: httpx.Response) -> str:
    """OAuth's error code."""
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"])


async def test_a_customer_signs_in_and_calls_the_gateway(browser: Browser) -> None:
    tokens = (await browser.exchange((await browser.choose({"customer": "minji"}))["code"])).json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 3600)
    about = jwt.decode(tokens["id_token"], options={"verify_signature": False})
    assert (about["sub"], about["aud"], about["nonce"]) == ("minji", browser.config["client_id"], browser.nonce)
    mine = f"{browser.origin}/v1/my/reservations"
    signed_in = await browser.http.get(mine, headers={"authorization": f"Bearer {tokens['access_token']}"})
    assert signed_in.status_code == 200
    other = await browser.http.get(mine, headers={"authorization": f"Bearer {tokens['id_token']}"})
    assert other.status_code == 401, "an id_token is for the page and opens nothing"


async def test_managers_of_each_hospital_and_the_operator_sign_in(world: World, browser: Browser) -> None:
    hospital, _ = await world.new_hospital(doses=3)
    for who, role in (({"manager": hospital}, "manager"), ({"operator": "operator"}, "operator")):
        tokens = (await browser.exchange((await browser.choose(who))["code"])).json()
        claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
        assert (claims["roles"], claims.get("hospital")) == ([role], hospital if role == "manager" else None)
        assert [lot.received for lot in await world.bearer(tokens["access_token"]).lots(hospital)] == [3]


async def test_a_code_is_good_once_and_its_second_use_ends_what_came_of_the_first(browser: Browser) -> None:
    code = (await browser.choose({"customer": "minji"}))["code"]
    first = await browser.exchange(code)
    assert first.status_code == 200
    assert refusal(await browser.exchange(code)) == "invalid_grant"
    assert refusal(await browser.refresh(first.json()["refresh_token"])) == "invalid_grant"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"code_verifier": "x" * 43}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1/signed-in"}, "invalid_grant"),
        ({"code": "guessed"}, "invalid_grant"),
        ({"client_id": "another"}, "invalid_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
async def test_a_code_is_worth_nothing_without_what_belongs_to_it(
    browser: Browser, wrong: dict[str, str], error: str
) -> None:
    code = (await browser.choose({"customer": "minji"}))["code"]
    assert refusal(await browser.exchange(**({"code": code} | wrong))) == error


async def test_a_refresh_token_is_good_once_and_an_old_one_ends_the_session(browser: Browser) -> None:
    first = (await browser.exchange((await browser.choose({"customer": "minji"}))["code"])).json()
    second = (await browser.refresh(first["refresh_token"])).json()
    assert jwt.decode(second["access_token"], options={"verify_signature": False})["sub"] == "minji"
    assert refusal(await browser.refresh(first["refresh_token"])) == "invalid_grant"
    assert refusal(await browser.refresh(second["refresh_token"])) == "invalid_grant"


async def test_who_has_signed_in_is_not_asked_again_until_signing_out(browser: Browser) -> None:
    await browser.choose({"customer": "minji"})
    url = browser.config["authorization_endpoint"]

    async def again(**others: str) -> httpx.Response:
        return await browser.http.get(url, params=browser.wish(**others))

    back = browser.came_back(await again(login_hint="minji", prompt="none"))
    tokens = (await browser.exchange(back["code"])).json()
    assert jwt.decode(tokens["access_token"], options={"verify_signature": False})["sub"] == "minji"
    for other in ({}, {"login_hint": "operator"}, {"login_hint": "minji", "prompt": "login"}):
        assert (await again(**other)).status_code == 200, "the page to choose on"
    await browser.http.get(browser.config["end_session_endpoint"])
    assert (await again(login_hint="minji")).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"redirect_uri": "https://evil.example/signed-in"},
        {"redirect_uri": "ORIGIN/signed-in/"},
        {"redirect_uri": "ORIGIN/signed-in?a=b"},
        {"redirect_uri": "ORIGIN.evil.example/signed-in"},
        {"redirect_uri": ""},
        {"client_id": "another"},
    ],
)
async def test_nobody_is_sent_to_another_address_than_the_pages(browser: Browser, wrong: dict[str, str]) -> None:
    wrong = {name: value.replace("ORIGIN", browser.origin) for name, value in wrong.items()}
    url, wish = browser.config["authorization_endpoint"], browser.wish(**wrong)
    for answer in (
        await browser.http.get(url, params=wish),
        await browser.http.post(url, params=wish, data={"operator": "operator"}),
    ):
        assert answer.status_code == 400
        assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "profile"}, "invalid_scope"),
        ({"prompt": "none"}, "login_required"),
    ],
)
async def test_a_wish_that_is_not_granted_comes_back_to_the_page(
    browser: Browser, wrong: dict[str, str], error: str
) -> None:
    answer = await browser.http.get(browser.config["authorization_endpoint"], params=browser.wish(**wrong))
    assert browser.came_back(answer)["error"] == error


async def test_only_the_gateways_page_may_read_tokens(browser: Browser) -> None:
    for origin, allowed in ((browser.origin, True), ("https://evil.example", False), ("null", False)):
        for answer in (
            await browser.http.options(browser.config["token_endpoint"], headers={"origin": origin}),
            await browser.http.post(browser.config["token_endpoint"], headers={"origin": origin}),
        ):
            assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in answer.headers
    foreign = await browser.http.get(
        browser.config["authorization_endpoint"], params=browser.wish(), headers={"host": "evil.example"}
    )
    assert foreign.status_code == 421


async def test_signing_out_leads_back_to_the_page_and_nowhere_else(browser: Browser) -> None:
    url = browser.config["end_session_endpoint"]
    back = {"post_logout_redirect_uri": f"{browser.origin}/", "state": "s"}
    answer = await browser.http.get(url, params=back)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{browser.origin}/?state=s")
    answer = await browser.http.get(url, params=back | {"post_logout_redirect_uri": "https://evil.example/"})
    assert (answer.status_code, answer.headers.get("location")) == (200, None)


@pytest.mark.parametrize(
    ("wish", "accepted", "language", "title"),
    [
        ({}, "ko-KR,ko;q=0.9,en;q=0.8", "ko", "로그인"),
        ({}, "fr,en;q=0.5", "en", "Sign in"),
        ({}, "", "en", "Sign in"),
        ({"ui_locales": "ko"}, "en", "ko", "로그인"),
    ],
)
async def test_the_sign_in_page_speaks_korean_and_english(
    browser: Browser, wish: dict[str, str], accepted: str, language: str, title: str
) -> None:
    page = await browser.http.get(
        browser.config["authorization_endpoint"],
        params=browser.wish(**wish),
        headers={"accept-language": accepted},
    )
    assert f'<html lang="{language}">' in page.text
    assert f"<h1>{title}</h1>" in page.text
    assert "unsafe" not in page.headers["content-security-policy"]


async def test_what_a_link_says_is_text_on_the_sign_in_page_and_nothing_else(browser: Browser) -> None:
    attack = '"><script>alert(1)</script>'
    page = await browser.http.get(browser.config["authorization_endpoint"], params=browser.wish(state=attack))
    assert "<script" not in page.text
    raw = f'{browser.config["authorization_endpoint"]}?{httpx.QueryParams(browser.wish())}&x="><script>'
    assert "<script" not in (await browser.http.get(raw)).text
