"""Tokens of an issuer: for us, of ours, in their time; keys that change, in a file and at an address."""

from __future__ import annotations

import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.security.files import SecurityError
from service.security.key_sets import read_key_set
from tests.service.security.doors import LOADING, Door, answer, door
from tests.service.security.issuer import AUDIENCE, CLAIM, ISSUER, Key, KeyServer, key_set
from tests.service.waiting import until

INVALID = (grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS")
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED")
MISSING = (grpc.StatusCode.UNAUTHENTICATED, "NO_CREDENTIALS")
NO_TENANT = (grpc.StatusCode.PERMISSION_DENIED, "NO_TENANT")
NOT_YET = (grpc.StatusCode.UNAVAILABLE, "AUTHENTICATION_UNAVAILABLE")

LEEWAY_S = 5
KEY = Key()


def jwt_section(**keys: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audience": AUDIENCE, "tenant_claim": CLAIM, "leeway_s": LEEWAY_S, **keys}


def in_file(tmp_path: Path, *keys: Key) -> Path:
    """In one step, so that nobody reads half of it."""
    file, new = tmp_path / "jwks.json", tmp_path / "jwks.new"
    new.write_text(key_set(*keys))
    new.rename(file)
    return file


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token made by hand."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


def signed_with_the_public_key() -> str:
    """The old trick: the public key as an HMAC secret."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 300, CLAIM: "acme"}
    unsigned = forged({"alg": "HS256", "kid": KEY.name}, claims).rpartition(".")[0]
    secret = json.dumps(KEY.public).encode()
    mac = base64.urlsafe_b64encode(hmac.digest(secret, unsigned.encode(), "sha256")).rstrip(b"=").decode()
    return f"{unsigned}.{mac}"


def tokens() -> dict[str, tuple[str | None, tuple[grpc.StatusCode, str]]]:
    """By what is the matter with them: a token of this moment, and how a call ends that is opened with it."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 3000, CLAIM: "acme"}
    return {
        "good": (KEY.token(), LOADING),
        "good, for several": (KEY.token(aud=["other", AUDIENCE]), LOADING),
        "expired within the leeway": (KEY.token(exp=now - 1, iat=now - 60), LOADING),
        "none": (None, MISSING),
        "expired": (KEY.token(exp=now - 60), EXPIRED),
        "of tomorrow": (KEY.token(nbf=now + 86_400, exp=now + 90_000), INVALID),
        "issued tomorrow": (KEY.token(iat=now + 86_400, exp=now + 90_000), INVALID),
        "for ever": (KEY.token(exp=None), INVALID),
        "for another audience": (KEY.token(aud="somebody else"), INVALID),
        "for no audience": (KEY.token(aud=None), INVALID),
        "of another issuer": (KEY.token(iss="https://elsewhere.example"), INVALID),
        "of no issuer": (KEY.token(iss=None), INVALID),
        "expired, of another issuer's key": (Key().token(exp=now - 60), INVALID),
        "of another key with the same id": (Key().token(), INVALID),
        "of an unknown key": (Key("unknown").token(), INVALID),
        "changed": (KEY.token()[:-4] + "AAAA", INVALID),
        "of no tenant": (KEY.token(tenant=None), NO_TENANT),
        "of an empty tenant": (KEY.token(tenant=""), NO_TENANT),
        "of a tenant that is none": (KEY.token(tenant="a\nb"), NO_TENANT),
        "of a list of tenants": (KEY.token(tenant=["acme"]), NO_TENANT),
        "unsigned": (forged({"alg": "none", "kid": KEY.name}, good), INVALID),
        "signed with the public key": (signed_with_the_public_key(), INVALID),
        "with a key of its own": (forged({"alg": "ES256", "jwk": Key().public}, good, b"x" * 64), INVALID),
        "with a list for a key id": (forged({"alg": "ES256", "kid": [KEY.name]}, good, b"x" * 64), INVALID),
        "no token": ("hello", INVALID),
        "three parts of nothing": ("..", INVALID),
        "brackets in brackets": (base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.e30", INVALID),
        "for longer than there are numbers": (KEY.token(exp=float("inf")), INVALID),
        "for somebody with a number": (KEY.token(sub=7), INVALID),
    }


@pytest.fixture(scope="module")
def jwks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_file(tmp_path_factory.mktemp("jwks"), KEY, Key("another", "EdDSA"))


async def test_only_a_token_that_is_right_in_every_way_opens_a_call(jwks: Path) -> None:
    async with door(jwt=jwt_section(jwks_file=jwks)) as at:
        for name, (token, wanted) in tokens().items():
            assert await answer(at.address, token) == wanted, name
        assert set(at.book.tenants) == {"acme"}
        assert at.book.means == ["jwt"] * 3


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_algorithms_are_those_that_are_allowed(algorithm: str, tmp_path: Path) -> None:
    key = Key("only", algorithm)
    file = in_file(tmp_path, key)
    async with door(jwt=jwt_section(jwks_file=file)) as at:
        assert await answer(at.address, key.token()) == LOADING
    others = [name for name in ("RS256", "ES256", "EdDSA") if name != algorithm]
    async with door(jwt=jwt_section(jwks_file=file, algorithms=others)) as at:
        assert await answer(at.address, key.token()) == INVALID


async def test_a_key_without_an_id_is_the_one_of_tokens_without_one_if_there_is_no_other(tmp_path: Path) -> None:
    nameless = Key("")
    async with door(jwt=jwt_section(jwks_file=in_file(tmp_path, nameless))) as at:
        assert await answer(at.address, nameless.token()) == LOADING
        in_file(tmp_path, nameless, KEY)
        await until(lambda: at.book.new == ["jwks"])
        assert await answer(at.address, nameless.token()) == INVALID


async def test_keys_in_a_file_are_replaced_while_the_service_runs(tmp_path: Path) -> None:
    new = Key("second")
    file = in_file(tmp_path, KEY)
    async with door(jwt=jwt_section(jwks_file=file)) as at:
        assert await answer(at.address, new.token()) == INVALID
        in_file(tmp_path, KEY, new)
        await until(lambda: at.book.new == ["jwks"])
        assert await answer(at.address, KEY.token()) == LOADING
        assert await answer(at.address, new.token()) == LOADING
        file.write_text("{}")
        await until(lambda: bool(at.book.not_new))
        assert await answer(at.address, KEY.token()) == LOADING
        in_file(tmp_path, new)
        await until(lambda: at.book.new == ["jwks"] * 2)
        assert await answer(at.address, KEY.token()) == INVALID
        assert await answer(at.address, new.token()) == LOADING


async def test_keys_at_an_address_are_asked_for_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at once for a key that nobody knows, but not for each."""
    new = Key("second")
    async with KeyServer(KEY).serving() as issuer, door(jwt=jwt_section(jwks_url=issuer.url)) as at:
        await until(lambda: at.book.new == ["jwks_url"])
        assert await answer(at.address, KEY.token()) == LOADING
        issuer.keys = (KEY, new)
        asked = issuer.asked
        assert await answer(at.address, new.token()) == INVALID  # it was asked a moment ago
        assert issuer.asked == asked
        monkeypatch.setattr("service.security.key_sets.AGAIN_S", 0.0)
        assert await answer(at.address, new.token()) == LOADING
        assert await answer(at.address, KEY.token()) == LOADING
        assert issuer.asked == asked + 1
        issuer.broken = True
        assert await answer(at.address, Key("third").token()) == INVALID
        assert at.book.not_new == ["jwks_url"]
        assert await answer(at.address, new.token()) == LOADING  # what was known stays


async def test_an_issuer_that_is_away_at_the_start_is_told_as_what_passes() -> None:
    issuer = KeyServer(KEY)
    issuer.broken = True
    async with issuer.serving(), door(jwt=jwt_section(jwks_url=issuer.url, refresh_s=1)) as at:
        await until(lambda: bool(at.book.not_new))
        assert await answer(at.address, KEY.token()) == NOT_YET
        assert await answer(at.address) == MISSING
        issuer.broken = False
        await until(lambda: at.book.new == ["jwks_url"])
        assert await answer(at.address, KEY.token()) == LOADING


SYMMETRIC = {"kty": "oct", "kid": "shared", "k": "aHVzaC1odXNoLWh1c2gtaHVzaC1odXNoLWh1c2gtaHVzaA"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": []}', json.dumps({"keys": [SYMMETRIC]}), '{"keys": [{}]}'])
def test_a_key_set_without_a_public_key_is_refused(text: str) -> None:
    with pytest.raises(SecurityError) as refused:
        read_key_set((text.encode(),))
    assert SYMMETRIC["k"] not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ({"jwks_url": "http://issuer.example/jwks"}, "https://"),
        ({"jwks_url": "file:///etc/passwd"}, "https://"),
        ({"jwks_file": None}, "jwks_file or jwks_url"),
        ({"audience": ""}, "audience"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": "none"}, "algorithms"),
    ],
)
def test_a_configuration_that_would_let_too_many_in_is_refused(section: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Door({"jwt": jwt_section(jwks_file="jwks.json") | section})
