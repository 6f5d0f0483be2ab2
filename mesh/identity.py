"""Who is calling: the local identity provider's key pair, and the tokens that it signs.

Stands in for a real OIDC provider on one machine. The gateway trusts the public half (`jwks`) and nothing else.
"""

import json
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER = "https://mesh.local"
AUDIENCE = "vaccination"
KEY_ID = "local"


@lru_cache
def _private_key(home: Path) -> ec.EllipticCurvePrivateKey:
    """The home's key, made on first use. Loaded once a process: tests and bench sign tens of thousands of tokens."""
    path = home / "keys" / "jwt.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        unfinished = path.with_name(f"jwt.pem.{os.getpid()}")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        try:
            os.link(unfinished, path)  # unlike a rename it keeps the key of whoever was first
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} is not an EC key")
    return key


def jwks(home: Path) -> str:
    """The public half, as a JSON Web Key Set."""
    public = jwt.algorithms.ECAlgorithm.to_jwk(_private_key(home.resolve()).public_key(), as_dict=True)
    return json.dumps({"keys": [public | {"kid": KEY_ID, "alg": "ES256", "use": "sig"}]})


def token(
    home: Path,
    *,
    subject: str,
    roles: list[str],
    hospital: str | None = None,
    expires_in: float = 3600,
    **overrides: Any,
) -> str:
    """A signed JWT.

    `roles` are customer, manager, operator; `hospital` is the one that a manager manages; `expires_in` is in seconds
    and may be negative. `overrides` replace claims (`iss="https://evil"`); one that is None is left out.
    """
    now = int(time.time())
    claims: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "roles": roles, "hospital": hospital}
    claims |= {"iat": now, "exp": now + int(expires_in)} | overrides
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, _private_key(home.resolve()), algorithm="ES256", headers={"kid": KEY_ID})
