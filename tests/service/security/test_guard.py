"""The guard stands before methods of every kind, those that a later version adds too; and lets nobody in by mistake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.security.api_keys import new_key
from service.security.authenticator import Authenticator
from service.security.guard import LOGGED_AT_ONCE
from service.security.identity import tenant_of_stream
from tests.service.security.doors import Door, bearer, channel, reason_of
from tests.service.security.test_api_keys import write

KEY, ENTRY = new_key("acme")
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Methods(grpc.GenericRpcHandler):
    """One of each kind. Each says whose its stream is."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        kind = details.method.rpartition("/")[2]

        async def whole(request: Any, context: Any) -> bytes:
            self.ran.append(kind)
            return tenant_of_stream().encode()

        async def written(request: Any, context: Any) -> None:
            self.ran.append(kind)
            await context.write(tenant_of_stream().encode())

        async def yielded(request: Any, context: Any) -> AsyncIterator[bytes]:
            self.ran.append(kind)
            yield tenant_of_stream().encode()

        behaviours = {"unary_stream": written, "stream_stream": yielded}
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(behaviours.get(kind, whole))


@asynccontextmanager
async def guarded(directory: Path) -> AsyncIterator[tuple[str, Methods, Door]]:
    """A server of such methods behind the guard of a service: its address, the methods, and the guard's book."""
    write(file := directory / "keys.toml", ENTRY)
    door, methods = Door({"auth": {"api_keys_file": file}}), Methods()
    assert door.security.guard is not None
    server = grpc.aio.server(interceptors=[door.security.guard])
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", methods, door
    finally:
        await server.stop(0)


async def said(address: str, kind: str, credential: str | None) -> str:
    """What a method of this kind says, or the reason for which it does not."""
    metadata = () if credential is None else bearer(credential)
    async with channel(address) as up:
        call = getattr(up, kind)(f"/some.Service/{kind}")(
            iter([b""]) if kind.startswith("stream") else b"", metadata=metadata
        )
        try:
            if kind.endswith("unary"):
                return str((await call).decode())
            return "".join([part.decode() async for part in call])
        except grpc.aio.AioRpcError as error:
            return reason_of(error.trailing_metadata())


@pytest.mark.parametrize("kind", KINDS)
async def test_no_method_of_any_kind_runs_for_whoever_is_nobody(kind: str, tmp_path: Path) -> None:
    async with guarded(tmp_path) as (address, methods, _):
        assert await said(address, kind, None) == "NO_CREDENTIALS"
        assert await said(address, kind, KEY[:-1]) == "INVALID_CREDENTIALS"
        assert methods.ran == []
        assert await said(address, kind, KEY) == "acme"
        assert methods.ran == [kind]


async def test_whoever_cannot_be_looked_at_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is told as one, and is no way in."""

    async def fails(*_: Any) -> None:
        raise RuntimeError(f"a fault with {KEY}")

    monkeypatch.setattr(Authenticator, "principal", fails)
    async with guarded(tmp_path) as (address, methods, door):
        assert await said(address, "unary_unary", KEY) == "INTERNAL"
        assert methods.ran == [] and door.book.reasons == ["INTERNAL"]


async def test_strangers_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = LOGGED_AT_ONCE + 60
    async with guarded(tmp_path) as (address, _, door), channel(address) as up:
        for _ in range(asked):
            with pytest.raises(grpc.aio.AioRpcError):
                await up.unary_unary("/some.Service/unary_unary")(b"")
        assert len(door.book.reasons) == asked
    told = [record for record in caplog.records if record.message == "turned away"]
    assert LOGGED_AT_ONCE <= len(told) < asked


def test_a_method_outside_of_any_stream_has_no_tenant() -> None:
    with pytest.raises(LookupError):
        tenant_of_stream()
