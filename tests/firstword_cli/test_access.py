"""Certificates by options, secrets by the environment: to a real port that asks for both."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from firstword import CallFailed, Client
from firstword.access import Access, AccessError, access_of, add_options
from firstword.cli import main
from firstword.top.scrape import ScrapeError, scrape
from service.security.api_keys import new_key
from tests.service.security.authority import Authority
from tests.service.security.doors import door
from tests.service.security.test_api_keys import write


def access(*arguments: str, **environ: str) -> Access:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return access_of(parser.parse_args(arguments), environ)


def test_nothing_is_asked_for_where_nothing_is_given() -> None:
    assert access() == Access()
    assert access(FIRSTWORD_API_KEY="") == Access()


async def test_what_is_given_opens_the_port_and_without_any_of_it_nothing_does(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own, (key, entry) = authority.pair("backend"), new_key("acme")
    write(keys := tmp_path / "keys.toml", entry)
    (token := tmp_path / "token").write_text(f"{key}\n")
    files = {"--ca": authority.ca, "--cert": own.certificate, "--cert-key": own.key}
    options = [text for name, file in files.items() for text in (name, str(file))]
    server = authority.pair()
    tls = {"certificate": server.certificate, "key": server.key, "client_ca": authority.ca}

    async def reason(given: Access) -> str:
        async with Client(at.address, tls=given.tls or False, token=given.token) as client:
            with pytest.raises(CallFailed) as failed:
                async with client.call():
                    pass
            return failed.value.reason

    async with door(tls=tls, auth={"api_keys_file": keys}) as at:
        assert await reason(access(*options, FIRSTWORD_API_KEY=key)) == "ENGINE_UNAVAILABLE"  # which is inside
        assert await reason(access(*options, FIRSTWORD_TOKEN=key)) == "ENGINE_UNAVAILABLE"
        assert await reason(access(*options, "--token-file", str(token))) == "ENGINE_UNAVAILABLE"
        assert await reason(access(*options)) == "NO_CREDENTIALS"
        assert await reason(access("--ca", str(authority.ca), FIRSTWORD_API_KEY=key)) == ""
        assert await reason(access("--tls", FIRSTWORD_API_KEY=key)) == ""  # the system knows no such authority


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--ca", "nowhere.pem"], {}, "nowhere.pem is no file"),
        (["--token-file", "nowhere"], {}, "nowhere is no file"),
        (["--cert", __file__], {}, "together"),
        (["--token-file", __file__], {"FIRSTWORD_TOKEN": "a"}, "three ways"),
        ([], {"FIRSTWORD_TOKEN": "a", "FIRSTWORD_API_KEY": "b"}, "three ways"),
    ],
)
def test_what_cannot_be_used_is_said(
    arguments: list[str],
    environ: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(AccessError, match=said):
        access(*arguments, **environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["top", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_secret_is_not_sent_in_plain_text_to_whoever_shows_metrics() -> None:
    assert access(FIRSTWORD_TOKEN="a").headers == {}
    assert access("--tls", FIRSTWORD_TOKEN="a").headers == {"Authorization": "Bearer a"}
    with pytest.raises(ScrapeError, match="https://127"):
        scrape("127.0.0.1:1", access("--tls"))
