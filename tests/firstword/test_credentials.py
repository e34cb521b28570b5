"""What a client is told to show, before it shows it to anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from firstword import CallFailed, Client, Tls
from firstword.credentials import metadata_of, server_name


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("voice.example.com:443", "voice.example.com"),
        ("voice.example.com", "voice.example.com"),
        ("dns:///voice.example.com:443", "voice.example.com"),
        ("dns:voice.example.com:443", "voice.example.com"),
        ("dns://8.8.8.8/voice.example.com:443", "voice.example.com"),
        ("ipv4:10.0.0.1:443,10.0.0.2:443", "10.0.0.1"),
        ("ipv6:[::1]:443", "::1"),
        ("[::1]:443", "::1"),
        ("localhost:50051", "localhost"),
    ],
)
def test_the_name_that_a_certificate_must_have_is_the_targets(target: str, name: str) -> None:
    assert server_name(target) == name


@pytest.mark.parametrize(
    "given",
    [
        {"api_key": "a", "token": "b"},
        {"api_key": "a", "metadata": {"authorization": "Bearer b"}},
        {"token": "a", "metadata": {"authorization": "Bearer b"}},
        {"tls": True, "credentials": grpc.ssl_channel_credentials()},
    ],
)
def test_one_thing_is_said_in_one_way(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ways to say one thing"):
        Client("localhost:1", **given)


def test_a_certificate_comes_with_its_key_and_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="together"):
        Tls(certificate="a.crt")
    with pytest.raises(OSError, match=r"nowhere\.pem"):
        Client("localhost:1", tls=Tls(ca=tmp_path / "nowhere.pem"))


def test_a_token_is_asked_for_anew_with_each_stream() -> None:
    tokens = iter("abc")
    metadata = metadata_of({"x": "y"}, lambda: next(tokens))
    assert [dict(metadata()) for _ in "ab"] == [{"x": "y", "authorization": f"Bearer {token}"} for token in "ab"]
    assert dict(metadata_of({"x": "y"}, None)()) == {"x": "y"}


def test_a_token_that_is_not_to_be_had_is_told_as_what_may_pass() -> None:
    def away() -> str:
        raise OSError("the issuer is away")

    with pytest.raises(CallFailed, match="the issuer is away") as failed:
        metadata_of({}, away)()
    assert failed.value.code is grpc.StatusCode.UNAVAILABLE
