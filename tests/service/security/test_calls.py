"""Calls of several tenants on one server: nobody reaches another's, whatever they have got hold of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from firstword import CallFailed, Client, ServiceBusy
from firstword.books import Books
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import resume_pb2 as resume_pb
from service.security.api_keys import new_key
from service.security.authenticator import Authenticator
from service.security.identity import Principal
from tests.service.calls import LINES, SYSTEM
from tests.service.pods import LocalPod, local_pods
from tests.service.security.authority import Authority
from tests.service.security.doors import bearer, channel, ending
from tests.service.security.issuer import AUDIENCE, CLAIM, ISSUER, Key, key_set
from tests.service.security.test_api_keys import MISSING, write
from tests.service.security.test_tls import shown_name, tls_section
from tests.service.waiting import until

FORGED = (grpc.StatusCode.PERMISSION_DENIED, "FORGED")
ENDED = (grpc.StatusCode.PERMISSION_DENIED, "TOKEN_EXPIRED")
SIGNING_KEYS = ("the newest of the tests' keys", "the one before it")
ISSUING = Key()


class Tenants:
    """Keys of two of them, and a server that knows both."""

    def __init__(self, directory: Path) -> None:
        (self.acme, ours), (self.other, theirs) = new_key("acme"), new_key("other")
        self.file = directory / "keys.toml"
        write(self.file, ours, theirs)

    @property
    def sections(self) -> dict[str, Any]:
        return {"auth": {"api_keys_file": self.file}}


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    return Tenants(tmp_path_factory.mktemp("tenants"))


@asynccontextmanager
async def pod_of(tenants: Tenants, **sections: Any) -> AsyncIterator[LocalPod]:
    async with local_pods(1, sections={**tenants.sections, **sections}) as (pod,):
        yield pod


def client(pod: LocalPod, api_key: str | None = None, **given: Any) -> Client:
    own = (("grpc.use_local_subchannel_pool", 1), ("grpc.min_reconnect_backoff_ms", 500))
    return Client(pod.address, api_key=api_key, options=own, **given)


async def opened_books(pod: LocalPod, key: str, session: str = "") -> Books:
    """What a client knows of a call that it has opened and whose stream has broken."""
    async with channel(pod.address) as up:
        stream = call_service_pb2_grpc.CallServiceStub(up).Call(metadata=bearer(key))
        await stream.write(call_pb.CallRequest(open=client_pb.Open(system_prompt=SYSTEM, session_id=session)))
        books = Books()
        books.take(await stream.read())
        stream.cancel()
        return books


async def resume(pod: LocalPod, books: Books, key: str | None) -> tuple[grpc.StatusCode, str]:
    """How a stream ends that comes back with these books: CANCELLED where it is taken, and then given up."""
    async with channel(pod.address) as up:
        shown = () if key is None else bearer(key)
        stream = call_service_pb2_grpc.CallServiceStub(up).Call(metadata=shown)
        taken = stream.read()
        request = books.resume(take_over=True)
        try:
            await stream.write(request)
            response = await taken
        except grpc.aio.AioRpcError:
            return await ending(stream)
        if isinstance(response, call_pb.CallResponse):
            assert response.opened.resumed
            stream.cancel()
            return grpc.StatusCode.CANCELLED, ""
        return await ending(stream)


TAKEN = (grpc.StatusCode.CANCELLED, "")


async def test_a_stolen_resume_token_is_of_no_use_to_another_tenant_or_without_credentials(tenants: Tenants) -> None:
    async with pod_of(tenants) as pod:
        books = await opened_books(pod, tenants.acme)
        assert await resume(pod, books, tenants.other) == FORGED
        assert await resume(pod, books, None) == MISSING
        assert await resume(pod, books, tenants.acme) == TAKEN


async def test_whose_a_stolen_token_is_cannot_be_told_from_the_answer(tenants: Tenants) -> None:
    """That of another tenant, and one that was made up."""

    async def message(token: bytes) -> str:
        async with channel(pod.address) as up:
            stream = call_service_pb2_grpc.CallServiceStub(up).Call(metadata=bearer(tenants.other))
            opening = client_pb.Open(resume=resume_pb.Resume(resume_token=token))
            await ending(stream, call_pb.CallRequest(open=opening))
            return str(await stream.details())

    async with pod_of(tenants) as pod:
        books = await opened_books(pod, tenants.acme)
        assert await message(books.token) == await message(b"made up") != ""


async def test_resume_tokens_outlive_the_rotation_of_their_key_and_not_its_removal(tenants: Tenants) -> None:
    """Nor their own time."""
    newest, before = SIGNING_KEYS
    async with pod_of(tenants, resume={"keys": before}) as pod:
        books = await opened_books(pod, tenants.acme)
    async with pod_of(tenants, resume={"keys": f"{newest},{before}"}) as pod:
        assert await resume(pod, books, tenants.acme) == TAKEN
    async with pod_of(tenants, resume={"keys": newest}) as pod:
        assert await resume(pod, books, tenants.acme) == FORGED
    async with pod_of(tenants, resume={"keys": before, "token_ttl_s": 0.001}) as pod:
        late = await opened_books(pod, tenants.acme)
        await asyncio.sleep(0.01)
        assert await resume(pod, late, tenants.acme) == ENDED


async def test_a_record_of_another_tenants_call_cannot_be_brought_into_ones_own(tenants: Tenants) -> None:
    async with pod_of(tenants) as pod:
        theirs, own = await opened_books(pod, tenants.acme, "same"), await opened_books(pod, tenants.other, "same")
        own.records.update(theirs.records)
        assert (await resume(pod, own, tenants.other))[0] in (TAKEN[0], grpc.StatusCode.PERMISSION_DENIED)
        assert {key.tenant for key in pod.services.live if key.session == "same"} == {"acme", "other"}  # type: ignore[union-attr]


async def test_two_tenants_may_give_their_calls_one_name(tenants: Tenants) -> None:
    """They are two calls, also in the engine; within a tenant it is one name."""
    async with pod_of(tenants) as pod, client(pod, tenants.acme) as acme, client(pod, tenants.other) as other:
        opening: dict[str, Any] = {"system": SYSTEM, "session_id": "front desk", "temperature": 0.0, "max_tokens": 12}
        async with acme.call(**opening) as one, other.call(**opening) as two:
            said = [(await call.ask(LINES[0])).text for call in (one, two)]
            assert said[0] == said[1] != ""
            await two.ask(LINES[1])
            assert len(pod.engine._sessions) == 2
            with pytest.raises(CallFailed) as refused:
                async with acme.call(**opening):
                    pass
            assert refused.value.reason == "SESSION_EXISTS"
            assert one.failure is None and (await one.ask(LINES[1])).text


async def test_credentials_are_asked_for_when_a_stream_opens_and_never_for_a_turn(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, principal = [], Authenticator.principal

    async def counted(self: Authenticator, *given: Any) -> Principal:
        asked.append(given)
        return await principal(self, *given)

    monkeypatch.setattr(Authenticator, "principal", counted)
    async with (
        pod_of(tenants) as pod,
        client(pod, tenants.acme) as acme,
        acme.call(system=SYSTEM, max_tokens=4) as call,
    ):
        for line in LINES[:2]:
            await call.partial(line)
            assert (await call.ask(line)).text
        assert len(asked) == 1
        pod.lines.cut_all()
        await until(lambda: call.resumes == 1)
        assert len(asked) == 2


class Later(datetime):
    """A clock that is an hour fast."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(hours=1)


async def test_a_call_goes_on_when_its_token_expires_and_comes_back_only_with_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision of SECURITY.md: credentials are for opening streams."""
    file = tmp_path / "jwks.json"
    file.write_text(key_set(ISSUING))
    section = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": file, "tenant_claim": CLAIM}
    tokens = [ISSUING.token(exp=int(time.time()) + 1800)]
    async with (
        local_pods(1, sections={"jwt": section}) as (pod,),
        client(pod, token=lambda: tokens[-1]) as fresh,
        client(pod, token=tokens[0]) as stale,
        fresh.call(system=SYSTEM, max_tokens=4) as renewed,
        stale.call(system=SYSTEM, max_tokens=4) as not_renewed,
    ):
        monkeypatch.setattr("jwt.api_jwt.datetime", Later)
        tokens.append(ISSUING.token(exp=int(time.time()) + 7200))
        for call in (renewed, not_renewed):
            assert (await call.ask(LINES[0])).text
        pod.lines.cut_all()
        await until(lambda: renewed.resumes == 1)
        assert (await renewed.ask(LINES[1])).text
        await until(lambda: not_renewed.failure is not None)
        assert not_renewed.failure is not None and not_renewed.failure.reason == "CREDENTIALS_EXPIRED"


async def test_a_call_goes_on_while_the_certificate_is_replaced_and_resumes_under_the_new_one(
    tenants: Tenants, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    own = authority.pair("first")
    sections = {"tls": tls_section(own), "server": {"reload_s": 0.02}}
    async with (
        pod_of(tenants, **sections) as pod,
        client(pod, tenants.acme, tls=authority.trusting()) as encrypted,
        encrypted.call(system=SYSTEM, max_tokens=8) as call,
    ):
        assert (await call.ask(LINES[0])).text
        tls = pod.security.tls
        assert tls is not None
        before = tls.files.value
        turn = await call.final(LINES[1])
        own.replace_with(authority.pair("second"))
        await until(lambda: tls.files.value is not before, 60.0)
        assert (await turn.run()).text
        assert await shown_name(pod.address) == "CN=second"
        assert call.resumes == 0
        pod.lines.cut_all()
        await until(lambda: call.resumes == 1)
        assert (await call.ask(LINES[0])).text


async def test_a_server_that_is_named_by_its_address_is_known_by_the_certificate_of_the_service(
    tenants: Tenants, tmp_path: Path
) -> None:
    """Its address is in nobody's certificate; what leads there is the name of the service."""
    authority = Authority(tmp_path)
    own = authority.pair("service", [x509.DNSName("localhost")])
    async with pod_of(tenants, tls=tls_section(own)) as pod:
        port = pod.lines.port
        async with Client(f"dns:///localhost:{port}", tls=authority.trusting(), api_key=tenants.acme) as known:
            named: Any = known._stub(f"127.0.0.1:{port}")
            stream = named.Call(metadata=bearer(tenants.acme))
            await stream.write(call_pb.CallRequest(open=client_pb.Open(system_prompt=SYSTEM)))
            assert (await stream.read()).opened.session_id
            stream.cancel()
        async with Client(f"127.0.0.1:{port}", tls=authority.trusting(), api_key=tenants.acme) as stranger:
            with pytest.raises(CallFailed) as failed:
                async with stranger.call(system=SYSTEM):
                    pass
            assert failed.value.code is grpc.StatusCode.UNAVAILABLE


# Limits


async def test_each_tenant_has_its_own_limits(tenants: Tenants) -> None:
    limits = {"admission": {"max_calls_per_tenant": 1}, "tenant": {"other": {"max_calls": 2}}}
    async with (
        pod_of(tenants, **limits) as pod,
        client(pod, tenants.acme) as acme,
        client(pod, tenants.other) as other,
        acme.call(),
        other.call(),
        other.call(),
    ):
        for one, limit in ((acme, 1), (other, 2)):
            with pytest.raises(ServiceBusy, match=f"at most {limit}") as refused:
                async with one.call():
                    pass
            assert refused.value.reason == "TENANT_TOO_MANY_CALLS"


async def test_who_opens_calls_too_often_is_told_when_to_come_again_and_nobody_else_is(tenants: Tenants) -> None:
    limits = {
        "admission": {"max_opens_per_minute_per_tenant": 2},
        "tenant": {"other": {"max_opens_per_minute": 4}},
    }
    async with pod_of(tenants, **limits) as pod, client(pod, tenants.acme) as acme, client(pod, tenants.other) as other:
        for one, limit in ((acme, 2), (other, 4)):
            for _ in range(limit):
                async with one.call():
                    pass
            with pytest.raises(ServiceBusy) as refused:
                async with one.call():
                    pass
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.reason == "TENANT_TOO_MANY_OPENS"
            assert refused.value.retry_after_s is not None and 0 < refused.value.retry_after_s <= 60 / limit


async def test_coming_back_is_not_opening(tenants: Tenants) -> None:
    """A tenant whose lines all break at once must get its calls back."""
    limits = {"admission": {"max_opens_per_minute_per_tenant": 1}}
    async with (
        pod_of(tenants, **limits) as pod,
        client(pod, tenants.acme) as acme,
        acme.call(system=SYSTEM, max_tokens=4) as call,
    ):
        for times in range(1, 4):
            pod.lines.cut_all()
            await until(lambda: call.resumes == times)  # noqa: B023
        assert (await call.ask(LINES[0])).text


async def test_a_tenant_does_not_push_out_calls_of_another_that_may_come_back(tenants: Tenants) -> None:
    limits = {"admission": {"max_calls_per_tenant": 1}}
    async with pod_of(tenants, **limits) as pod, client(pod, tenants.other) as other:
        await opened_books(pod, tenants.acme, "left")
        await until(lambda: not next(iter(pod.services.live.values())).attended)  # type: ignore[union-attr]
        async with other.call():
            with pytest.raises(ServiceBusy):
                async with other.call():
                    pass
        assert pod.sessions == {"left"}
        async with client(pod, tenants.acme) as acme, acme.call(session_id="new"):
            assert pod.sessions == {"new"}  # its own it may


async def test_who_sends_too_fast_is_read_no_faster_and_loses_nothing(tenants: Tenants) -> None:
    limits = {"call": {"max_events_per_s": 100}, "tenant": {"other": {"max_events_per_s": 100_000}}}
    events = 300
    async with pod_of(tenants, **limits) as pod:
        took = {}
        for key in (tenants.other, tenants.acme):
            async with client(pod, key) as one, one.call(system=SYSTEM, max_tokens=2) as call:
                began = time.monotonic()
                for _ in range(events):
                    await call.speech_started()
                assert (await call.ask(LINES[0])).report is not None
                took[key] = time.monotonic() - began
        assert took[tenants.acme] >= (events - 200) / 100  # 200 at once; and no upper bound, on any machine


@pytest.mark.parametrize("when", ["first", "later"])
async def test_a_message_that_is_too_large_ends_the_stream_with_its_size(when: str, tenants: Tenants) -> None:
    async with pod_of(tenants, server={"max_message_bytes": 10_000}) as pod, client(pod, tenants.acme) as one:
        with pytest.raises(CallFailed) as failed:
            async with one.call(system="x" * (20_000 if when == "first" else 10)) as call:
                await (await call.final("x" * 20_000)).run()
        assert failed.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in failed.value.message
        assert when == "first" or call.resumes == 0  # it would be as large on the next stream


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"\x12\x03\x0a\x01", b"\x1a\x05\x08\x01\x1a\x01\xff"])
async def test_a_message_that_is_none_ends_the_stream_as_an_invalid_argument(
    content: bytes, when: str, tenants: Tenants
) -> None:
    async with pod_of(tenants) as pod, channel(pod.address) as up:
        call = up.stream_stream("/firstword.v1.CallService/Call", lambda sent: sent, call_pb.CallResponse.FromString)
        stream = call(metadata=bearer(tenants.acme))
        if when == "later":
            await stream.write(call_pb.CallRequest(open=client_pb.Open(system_prompt=SYSTEM)).SerializeToString())
            assert (await stream.read()).opened.session_id
        assert await ending(stream, content) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        await until(lambda: not pod.sessions)


async def test_a_stream_that_says_nothing_is_ended(tenants: Tenants) -> None:
    async with pod_of(tenants, server={"first_event_s": 0.05}) as pod, channel(pod.address) as up:
        stream = call_service_pb2_grpc.CallServiceStub(up).Call(metadata=bearer(tenants.acme))
        assert await ending(stream) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_IDLE")
