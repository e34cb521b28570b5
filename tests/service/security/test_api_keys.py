"""API keys: hashes in a file, found by id, several of a tenant, replaced while the service runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.problems import Problem, Reason
from service.security.api_keys import ApiKeys, KeyEntry, new_key, read_keys
from service.security.files import SecurityError
from service.security.new_key import entry_text
from tests.e2e.server import ROOT
from tests.service.security.doors import LOADING, Door, answer, door
from tests.service.waiting import until

INVALID = (grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS")
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED")
MISSING = (grpc.StatusCode.UNAUTHENTICATED, "NO_CREDENTIALS")
KEY, ENTRY = new_key("acme")


def ago(**time: int) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


def write(file: Path, *entries: KeyEntry) -> None:
    """In one step, so that nobody reads half of it."""
    new = file.with_suffix(".new")
    new.write_text("\n".join(map(entry_text, entries)))
    new.rename(file)


def keys_of(*entries: KeyEntry) -> ApiKeys:
    return read_keys(("\n".join(map(entry_text, entries)).encode(),))


def test_a_key_is_its_tenants_and_its_entry_holds_no_secret() -> None:
    assert keys_of(ENTRY, new_key("other")[1]).principal(KEY).tenant == "acme"
    secret = KEY.rpartition(ENTRY.id)[2].strip("_")
    assert secret not in entry_text(ENTRY) and secret not in repr(ENTRY)


@given(st.integers(0, len(KEY) - 1), st.sampled_from("abcXYZ019_-"))
def test_a_key_with_one_character_changed_is_told_what_any_other_is(at: int, other: str) -> None:
    changed = KEY[:at] + other + KEY[at + 1 :]
    if changed == KEY:
        return
    with pytest.raises(Problem) as refused:
        keys_of(ENTRY).principal(changed)
    with pytest.raises(Problem) as stranger:
        keys_of(ENTRY).principal(new_key("acme")[0])
    assert str(refused.value) == str(stranger.value)
    assert refused.value.reason is Reason.INVALID_CREDENTIALS
    assert KEY[16:] not in refused.value.cause  # the log is told the id, which is no secret


def test_what_somebody_made_up_is_no_key_even_if_its_hash_is_there() -> None:
    weak = KeyEntry(id=ENTRY.id, sha256=ENTRY.sha256, tenant="acme")
    with pytest.raises(Problem):
        keys_of(weak).principal(f"fw_{ENTRY.id}_password")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('[[key]]\nid = "x"', "key.0.id"),
        ('[[key]]\nid = "0123456789ab"\ntenant = "a b"', "key.0.tenant"),
        (entry_text(ENTRY) + "expires = 2027-01-01T00:00:00\n", "key.0.expires"),  # by whose clock?
        (entry_text(ENTRY) * 2, "two keys have the same id"),
        (entry_text(ENTRY) + 'secret = "hush"\n', "key.0.secret"),
        ("[[key", "no TOML"),
        ("", "no key in it"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_what_is_in_it(text: str, wrong: str) -> None:
    with pytest.raises(SecurityError) as refused:
        read_keys((text.encode(),))
    assert wrong in str(refused.value)
    assert "hush" not in str(refused.value) and ENTRY.sha256 not in str(refused.value)


def test_the_command_makes_a_key_that_fits_its_entry() -> None:
    program = [sys.executable, "-m", "service.security.new_key", "acme", "--days", "7"]
    made = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    key = made.stderr.split()[-1]
    assert read_keys((made.stdout.encode(),)).principal(key).tenant == "acme"
    (entry,) = tomllib.loads(made.stdout)["key"]
    assert timedelta(days=6) < entry["expires"] - datetime.now(UTC) <= timedelta(days=7)
    assert key not in made.stdout


async def test_only_keys_that_are_known_and_have_not_expired_open_a_call(tmp_path: Path) -> None:
    old, old_entry = new_key("acme", ago(minutes=1))
    other, other_entry = new_key("other")
    write(file := tmp_path / "keys.toml", ENTRY, old_entry, other_entry)
    async with door(auth={"api_keys_file": file}) as at:
        assert await answer(at.address, KEY) == LOADING
        assert await answer(at.address, other) == LOADING
        assert at.book.tenants == ["acme", "other"]
        assert await answer(at.address) == MISSING
        assert await answer(at.address, old) == EXPIRED
        assert await answer(at.address, old[:-1] + ("A" if old[-1] != "A" else "B")) == INVALID
        assert await answer(at.address, "eyJhbGciOiJub25lIn0.e30.") == INVALID
        assert at.book.means == ["api_key", "api_key"]
        assert at.book.reasons == [reason for _, reason in (MISSING, EXPIRED, INVALID, INVALID)]


@pytest.mark.parametrize(
    "headers",
    [[f"Basic {KEY}"], [KEY], ["Bearer"], ["Bearer "], [""], [f"Bearer {KEY}", f"Bearer {KEY}"]],
)
async def test_a_header_of_another_form_is_refused(headers: list[str], tmp_path: Path) -> None:
    write(file := tmp_path / "keys.toml", ENTRY)
    async with door(auth={"api_keys_file": file}) as at:
        assert await answer(at.address, metadata=[("authorization", value) for value in headers]) == INVALID


async def test_keys_are_replaced_one_after_the_other_while_the_service_runs(tmp_path: Path) -> None:
    """A new key is added, both can be used, the old one is taken out. A file that cannot be used changes nothing."""
    new, new_entry = new_key("acme")
    write(file := tmp_path / "keys.toml", ENTRY)
    async with door(auth={"api_keys_file": file}) as at:

        async def replaced(*entries: KeyEntry) -> None:
            before = len(at.book.new)
            write(file, *entries)
            await until(lambda: len(at.book.new) > before)

        assert await answer(at.address, new) == INVALID
        await replaced(ENTRY, new_entry)
        assert await answer(at.address, KEY) == LOADING
        assert await answer(at.address, new) == LOADING
        file.write_text("[[key")
        await until(lambda: at.book.not_new == ["api_keys"])
        assert await answer(at.address, KEY) == LOADING
        file.unlink()
        await until(lambda: at.book.not_new == ["api_keys"] * 2)
        assert await answer(at.address, KEY) == LOADING
        await replaced(new_entry)
        assert await answer(at.address, KEY) == INVALID
        assert await answer(at.address, new) == LOADING


def test_a_service_does_not_start_on_keys_that_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match="api_keys"):
        Door({"auth": {"api_keys_file": tmp_path / "nothing"}})
