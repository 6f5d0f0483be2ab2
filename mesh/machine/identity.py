"""Who is calling: the local identity provider's keys, and the tokens that it signs.

Stands in for a real OIDC provider on one machine. The gateway trusts the public halves (`jwks`) and nothing else.
"""

import json
import os
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER = "https://mesh.local"
AUDIENCE = "vaccination"

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _files(home: Path) -> list[Path]:
    """The keys, each named by its id: jwt, jwt-2, jwt-3 and so on. The last one signs; the first is made on demand."""
    folder = home / "keys"
    if not (names := _names(folder)):
        _make(folder / "jwt.pem", "ES256")
        names = ["jwt.pem"]
    return [folder / name for name in sorted(names, key=lambda name: (len(name), name))]


def _names(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".pem")] if folder.is_dir() else []


def has_key(home: Path) -> bool:
    """Whether there is a key already, which some gateway may trust."""
    return bool(_names(home.resolve() / "keys"))


def _make(file: Path, algorithm: str) -> None:
    """Makes a new key, unless another process has made it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(pem)
    try:
        os.link(unfinished, file)  # unlike a rename, this does not replace a key that is there
    except FileExistsError:
        pass
    finally:
        unfinished.unlink()


@lru_cache
def _load(file: Path) -> PrivateKey:
    """Reads a key, once a process: tests and bench sign tens of thousands of tokens. A key's id is never reused."""
    key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    if not isinstance(key, PrivateKey):
        raise TypeError(f"{file} is neither an EC nor an RSA key")
    return key


def _algorithm(key: PrivateKey) -> str:
    return "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"


def signing_key(home: Path) -> tuple[str, PrivateKey]:
    """The id of the key that signs now, and the key."""
    file = _files(home.resolve())[-1]
    return file.stem, _load(file)


def rotate(home: Path, *, algorithm: str = "ES256", keep: float = 24 * 3600) -> None:
    """Makes a new key, for ES256 or RS256, that signs from now on.

    A replaced key stays published for `keep` seconds, so that its tokens are valid until they expire. With 0, which is
    for a key that has leaked, they are refused as soon as the new set is read.
    """
    home = home.resolve()
    last, _ = signing_key(home)
    _make(home / "keys" / f"jwt-{int(last.removeprefix('jwt').removeprefix('-') or 1) + 1}.pem", algorithm)
    for file, successor in pairwise(_files(home)):
        if successor.stat().st_mtime + keep <= time.time():
            file.unlink()


def jwks(home: Path) -> str:
    """The public keys, as a JSON Web Key Set."""
    published = []
    for file in _files(home.resolve()):
        key = _load(file)
        algorithm = jwt.get_algorithm_by_name(_algorithm(key))
        public: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
        published.append(public | {"kid": file.stem, "alg": _algorithm(key), "use": "sig"})
    return json.dumps({"keys": published})


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
    key_id, key = signing_key(home)
    return jwt.encode(claims, key, algorithm=_algorithm(key), headers={"kid": key_id})
