"""TLS on the port: its certificate is replaced while connections are up, clients may have to show their own, and health
is answered in plain text where that is asked for.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.security.api_keys import new_key
from service.security.files import SecurityError
from service.server import LIVENESS
from tests.service.security.authority import Authority, Pair
from tests.service.security.doors import LOADING, Door, answer, bearer, channel, door, ending
from tests.service.security.test_api_keys import MISSING, write
from tests.service.waiting import until

NO_TENANT = (grpc.StatusCode.PERMISSION_DENIED, "NO_TENANT")
OTHER_TENANT = (grpc.StatusCode.PERMISSION_DENIED, "OTHER_TENANT")
PREFIX = "spiffe://voice.example/tenant/"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls_section(own: Pair, **more: Any) -> dict[str, Any]:
    return {"certificate": own.certificate, "key": own.key, **more}


async def shown_name(address: str) -> str:
    """The common name in the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), timeout=20)
    return str(x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string())


def uri(tenant: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(PREFIX + tenant)


async def test_nobody_gets_through_who_does_not_encrypt_or_does_not_trust_it(
    authority: Authority, tmp_path: Path
) -> None:
    async with door(tls=tls_section(authority.pair())) as at:
        assert await answer(at.address, credentials=authority.channel()) == LOADING
        assert (await answer(at.address))[0] is grpc.StatusCode.UNAVAILABLE
        assert at.book.tenants == [""]
        stranger = Authority(tmp_path, "stranger")
        assert await answer(at.address, credentials=stranger.channel()) == (grpc.StatusCode.UNAVAILABLE, "")


async def test_a_certificate_is_replaced_while_a_stream_is_up(authority: Authority) -> None:
    own = authority.pair("first")
    async with door(tls=tls_section(own)) as at, channel(at.address, authority.channel()) as up:
        watching = health_pb2_grpc.HealthStub(up).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await shown_name(at.address) == "CN=first"
        own.replace_with(authority.pair("second"))
        await until(lambda: at.book.new == ["certificate"])
        assert await shown_name(at.address) == "CN=second"
        await at.server.set_serving(True)  # the stream that was up is still heard on
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        assert await answer(at.address, credentials=authority.channel()) == LOADING


def no_certificate(own: Pair, authority: Authority) -> None:
    own.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def the_key_of_another(own: Pair, authority: Authority) -> None:
    own.key.write_bytes(authority.pair().key.read_bytes())


def expired(own: Pair, authority: Authority) -> None:
    own.replace_with(authority.pair("expired", valid=-timedelta(hours=1)))


def gone(own: Pair, authority: Authority) -> None:
    own.certificate.unlink()


@pytest.mark.parametrize("spoil", [no_certificate, the_key_of_another, expired, gone])
async def test_a_certificate_that_cannot_be_used_changes_nothing_until_one_can(
    spoil: Any, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    own = authority.pair("first")
    async with door(tls=tls_section(own)) as at:
        assert 0 < at.security.tls.expires_in_s < 2 * 86_400  # type: ignore[union-attr]
        spoil(own, authority)
        await until(lambda: bool(at.book.not_new))
        assert await shown_name(at.address) == "CN=first"
        assert await answer(at.address, credentials=authority.channel()) == LOADING
        told = [record for record in caplog.records if record.message == "not reloaded, the old one stays"]
        assert told and "PRIVATE" not in caplog.text
        own.replace_with(authority.pair("second"))
        await until(lambda: at.book.new == ["certificate"])
        assert await shown_name(at.address) == "CN=second"


@pytest.mark.parametrize("spoil", [no_certificate, the_key_of_another, expired, gone])
def test_a_service_does_not_start_on_it(spoil: Any, authority: Authority) -> None:
    own = authority.pair()
    spoil(own, authority)
    with pytest.raises(SecurityError, match="certificate"):
        Door({"tls": tls_section(own)})


async def test_where_clients_must_have_a_certificate_none_is_let_in_without(
    authority: Authority, tmp_path: Path
) -> None:
    """Nor with one of another authority; and none is asked for anything else where nothing else is configured."""
    stranger = Authority(tmp_path, "stranger")
    async with door(tls=tls_section(authority.pair(), client_ca=authority.ca)) as at:
        assert await answer(at.address, credentials=authority.channel(authority.pair("acme"))) == LOADING
        assert at.book.means == ["certificate"]
        trusting = authority.trusting()
        theirs = stranger.pair("acme")
        with_theirs = type(trusting)(trusting.ca, theirs.certificate, theirs.key).channel_credentials()
        for credentials in (authority.channel(), with_theirs):
            assert await answer(at.address, credentials=credentials) == (grpc.StatusCode.UNAVAILABLE, "")
        assert at.book.means == ["certificate"] and at.book.reasons == []


async def test_a_certificate_can_name_the_tenant_by_its_common_name(authority: Authority) -> None:
    section = tls_section(authority.pair(), client_ca=authority.ca, tenant_from="common_name")
    async with door(tls=section) as at:
        assert await answer(at.address, credentials=authority.channel(authority.pair("acme"))) == LOADING
        assert at.book.tenants == ["acme"]
        assert await answer(at.address, credentials=authority.channel(authority.pair("a b"))) == NO_TENANT


async def test_a_certificate_can_name_the_tenant_by_a_uri(authority: Authority) -> None:
    section = tls_section(authority.pair(), client_ca=authority.ca, tenant_from="uri", tenant_uri_prefix=PREFIX)
    several = [uri("acme"), uri("other")]
    elsewhere = [x509.UniformResourceIdentifier("https://acme.example"), x509.DNSName(PREFIX + "acme")]
    async with door(tls=section) as at:
        for names, wanted in (([uri("acme")], LOADING), (several, NO_TENANT), (elsewhere, NO_TENANT), ([], NO_TENANT)):
            own = authority.channel(authority.pair("any", names))
            assert await answer(at.address, credentials=own) == wanted
        assert at.book.tenants == ["acme"]


async def test_certificate_and_key_must_be_of_one_tenant(authority: Authority, tmp_path: Path) -> None:
    (acmes, entry), (others, other_entry) = new_key("acme"), new_key("other")
    write(file := tmp_path / "keys.toml", entry, other_entry)
    section = tls_section(authority.pair(), client_ca=authority.ca, tenant_from="common_name")
    async with door(tls=section, auth={"api_keys_file": file}) as at:
        own = authority.channel(authority.pair("acme"))
        assert await answer(at.address, acmes, own) == LOADING
        assert await answer(at.address, others, own) == OTHER_TENANT
        assert await answer(at.address, None, own) == LOADING  # the certificate is enough
        assert at.book.tenants == ["acme", "acme"]


async def test_health_is_open_to_all_and_everything_else_is_not(authority: Authority, tmp_path: Path) -> None:
    key, entry = new_key("acme")
    write(file := tmp_path / "keys.toml", entry)
    async with (
        door(tls=tls_section(authority.pair()), auth={"api_keys_file": file}) as at,
        channel(at.address, authority.channel()) as up,
    ):
        check = health_pb2_grpc.HealthStub(up).Check
        alive = await check(health_pb2.HealthCheckRequest(service=LIVENESS))
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
        listed = reflection_pb2.ServerReflectionRequest(list_services="")
        reflect = reflection_pb2_grpc.ServerReflectionStub(up).ServerReflectionInfo
        assert await ending(reflect(), listed) == MISSING
        stream = reflect(metadata=bearer(key))
        await stream.write(listed)
        names = [service.name for service in (await stream.read()).list_services_response.service]
        assert "firstword.v1.CallService" in names
        stream.cancel()
        unknown = up.unary_unary("/firstword.v1.CallService/Nothing", lambda value: value, lambda value: value)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unknown(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_health_port_is_plain_text_and_knows_nothing_else(authority: Authority) -> None:
    section = tls_section(authority.pair(), client_ca=authority.ca)
    async with (
        door(tls=section, server={"health_port": 0}) as at,
        channel(at.health_address) as plain,
    ):
        check = health_pb2_grpc.HealthStub(plain).Check
        service = health_pb2.HealthCheckRequest(service="firstword.v1.CallService")
        assert (await check(service)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await at.server.set_serving(True)
        assert (await check(service)).status == health_pb2.HealthCheckResponse.SERVING
        assert await answer(at.health_address) == (grpc.StatusCode.UNIMPLEMENTED, "")
        reflect = reflection_pb2_grpc.ServerReflectionStub(plain).ServerReflectionInfo
        assert (await ending(reflect()))[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ({"certificate": "a.crt"}, "together"),
        ({"client_ca": "ca.crt"}, "client_ca needs"),
        ({"certificate": "a.crt", "key": "a.key", "tenant_from": "common_name"}, "tenant_from needs client_ca"),
        ({"certificate": "a", "key": "a", "client_ca": "a", "tenant_from": "uri"}, "tenant_uri_prefix"),
    ],
)
def test_a_configuration_that_does_less_than_it_seems_to_is_refused(section: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Door({"tls": section})
