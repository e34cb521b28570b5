"""Configuration: sources, their order, and that nothing unknown passes."""

from __future__ import annotations

import traceback
from pathlib import Path

import pydantic
import pytest

from service.config import EMBEDDED_MODEL, ConfigError, load_config


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_serve_the_embedded_model() -> None:
    config = load_config({})
    assert config.engine.model == str(EMBEDDED_MODEL)
    assert config.server.address == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        ("10.0.0.7:50051", "10.0.0.7:50051"),
        ("fd00::1:50051", "[fd00::1]:50051"),
        ("fd00:1:2:3:4:5:6:7:443", "[fd00:1:2:3:4:5:6:7]:443"),
        ("[fd00::1]:50051", "[fd00::1]:50051"),
        ("pod-0.voice:50051", "pod-0.voice:50051"),
        ("dns:///pod-0.voice:50051", "dns:///pod-0.voice:50051"),
        ("", ""),
    ],
)
def test_an_address_of_either_kind_can_be_dialled(given: str, dialled: str) -> None:
    """As a chart puts it together, which knows of a pod that it has an IP."""
    assert load_config({"FIRSTWORD_SERVER__ADVERTISE": given}).server.advertise == dialled


@pytest.mark.parametrize("address", ["fd00::1", "[fd00::1]", "fd00:1:2:3:4:5:6:7"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.advertise.*has no port"):
        load_config({"FIRSTWORD_SERVER__ADVERTISE": address})


@pytest.mark.parametrize("host", ["::", "[::]", "::1", "[::1]"])
def test_an_ipv6_host_is_listened_at_with_and_without_brackets(host: str) -> None:
    assert load_config({"FIRSTWORD_SERVER__HOST": host}).server.address == f"[{host.strip('[]')}]:50051"


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "firstword.toml").write_text("[server]\nport = 1\nhost = '0.0.0.0'\n[engine]\nthreads = 3\n")
    config = load_config({"FIRSTWORD_SERVER__PORT": "2"})
    assert (config.server.host, config.server.port, config.engine.threads) == ("0.0.0.0", 2, 3)


def test_the_file_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[log]\nlevel = 'debug'\n")
    assert load_config({"FIRSTWORD_CONFIG": str(path)}).log.level == "debug"
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_config({"FIRSTWORD_CONFIG": "missing.toml"})


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"FIRSTWORD_SERVER__PROT": "1"}, "FIRSTWORD_SERVER__PROT"),
        ({"FIRSTWORD_SEVER__PORT": "1"}, "FIRSTWORD_SEVER"),
        ({"FIRSTWORD_PORT": "1"}, "FIRSTWORD_PORT"),
        ({"FIRSTWORD_ENGINE__MODLE": "x"}, "modle"),
        ({"FIRSTWORD_SERVER__PORT": "many"}, "FIRSTWORD_SERVER__PORT"),
        ({"FIRSTWORD_SERVER__PORT": "70000"}, "server.port"),
        ({"FIRSTWORD_SERVER__HOLD_AT_EVENTS": "4096"}, "hold_at_events"),
        ({"FIRSTWORD_ADMISSION__FAIR_SHARE_FROM": "80"}, "fair_share_from"),
        ({"FIRSTWORD_CALL__MAX_REPLY_TOKENS": "5000"}, "max_reply_tokens"),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "telemetry.traces"),
    ],
)
def test_what_is_wrong_is_refused_by_name(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(environ)


def test_what_is_for_the_client_is_none_of_its_business() -> None:
    assert load_config({"FIRSTWORD_API_KEY": "a", "FIRSTWORD_TOKEN": "b"}) == load_config({})


def test_tenants_have_limits_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "firstword.toml").write_text("[tenant.acme]\nmax_calls = 3\n[tenant.'https://b']\nmax_calls = 1\n")
    config = load_config({})
    assert {name: limits.max_calls for name, limits in config.tenant.items()} == {"acme": 3, "https://b": 1}
    (tmp_path / "firstword.toml").write_text("[tenant.'other one']\nmax_calls = 1\n")
    with pytest.raises(ConfigError, match="other one"):
        load_config({})


def test_an_unknown_key_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "firstword.toml").write_text("[server]\nprot = 1\n")
    with pytest.raises(ConfigError, match=r"server\.prot.*unknown key"):
        load_config({})


def test_engine_values_from_the_environment_have_their_types() -> None:
    environ = {"FIRSTWORD_ENGINE__DRAFT_NODES": "16", "FIRSTWORD_ENGINE__DRAFT_LAYER_IDS": "2,6,11"}
    engine = load_config(environ).engine
    assert engine.draft_nodes == 16
    assert engine.draft_layer_ids == (2, 6, 11)
    assert load_config({}).engine.draft_nodes == "auto"


def test_a_drafter_inside_the_model_directory_is_found_and_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "m" / "eagle3").mkdir(parents=True)
    (tmp_path / "m" / "eagle3" / "config.json").write_text("{}")
    found = load_config({"FIRSTWORD_ENGINE__MODEL": "m"}).engine
    assert found.model == str(tmp_path / "m")
    assert found.drafter == f"suffix+eagle3:{tmp_path / 'm' / 'eagle3'}"
    on_gpu = load_config({"FIRSTWORD_ENGINE__MODEL": "m", "FIRSTWORD_ENGINE__DEVICE": "cuda"}).engine
    assert on_gpu.drafter == f"eagle3:{tmp_path / 'm' / 'eagle3'}", "of which whole cycles are captured"
    assert load_config({"FIRSTWORD_ENGINE__MODEL": "m", "FIRSTWORD_ENGINE__DRAFTER": ""}).engine.drafter is None


def test_drafters_are_named_and_their_directories_made_absolute() -> None:
    def drafter(spec: str | None) -> str | None:
        environ = {"FIRSTWORD_ENGINE__MODEL": "m"} | ({} if spec is None else {"FIRSTWORD_ENGINE__DRAFTER": spec})
        return load_config(environ).engine.drafter

    assert drafter(None) == "suffix+recycling", "a model without a head of its own"
    assert drafter("suffix+eagle3:heads/a+b") == f"suffix+eagle3:{Path.cwd() / 'heads' / 'a+b'}"
    assert drafter("none") == "none"


def test_exporters_come_from_the_standard_variables_unless_ours_are_set() -> None:
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "prometheus"}
    assert load_config(environ).telemetry.traces == ("console",)
    assert load_config({**environ, "FIRSTWORD_TELEMETRY__TRACES": "none"}).telemetry.traces == ()
    assert load_config({**environ, "OTEL_SDK_DISABLED": "true"}).telemetry.metrics == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("otlp, prometheus", ("otlp", "prometheus")),
        ("otlp,otlp", ("otlp",)),
        ("none", ()),
        ("", ()),
        (" console,", ("console",)),
    ],
)
def test_several_exporters_run_at_once(tmp_path: Path, given: str, expected: tuple[str, ...]) -> None:
    assert load_config({"OTEL_METRICS_EXPORTER": given}).telemetry.metrics == expected
    (tmp_path / "firstword.toml").write_text(f"[telemetry]\nmetrics = {list(expected)}\n")
    assert load_config({}).telemetry.metrics == expected


@pytest.mark.parametrize(
    ("variable", "value", "key", "expected"),
    [
        ("OTEL_TRACES_EXPORTER", "otlp", "traces", ("otlp",)),
        ("OTEL_METRICS_EXPORTER", "console", "metrics", ("console",)),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true", "content", True),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "otlp_protocol", "http/protobuf"),
        ("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0", "prometheus_host", "0.0.0.0"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "9999", "prometheus_port", 9999),
    ],
)
def test_each_standard_variable_stands_for_its_key(
    tmp_path: Path, variable: str, value: str, key: str, expected: object
) -> None:
    assert getattr(load_config({variable: value}).telemetry, key) == expected
    default = getattr(load_config({}).telemetry, key)
    assert default != expected
    assert getattr(load_config({variable: ""}).telemetry, key) == default
    assert getattr(load_config({variable: value, "OTEL_SDK_DISABLED": "TRUE"}).telemetry, key) == default
    written = {(): "'none'", False: "false"}.get(default, repr(default))
    (tmp_path / "firstword.toml").write_text(f"[telemetry]\n{key} = {written}\n")
    assert getattr(load_config({variable: value}).telemetry, key) == default


def test_other_standard_variables_are_left_to_opentelemetry() -> None:
    environ = {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://nowhere:1", "OTEL_NO_SUCH_THING": "1"}
    assert load_config(environ) == load_config({})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[sever]\nport = 1\n", r"sever.*unknown key"),
        ("port = 1\n", r"port.*unknown key"),
        ("[engine]\nmodle = 'x'\n", r"engine.*unknown key modle"),
        ("[telemetry]\ntrace = 'none'\n", r"telemetry\.trace.*unknown key"),
        ("[server\n", r"firstword\.toml"),
        ("server = 1\n", r"server"),
    ],
)
def test_what_is_wrong_in_the_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "firstword.toml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_config({})


def test_a_section_cannot_be_overlaid_on_a_value(tmp_path: Path) -> None:
    (tmp_path / "firstword.toml").write_text("server = 1\n")
    with pytest.raises(ConfigError, match="FIRSTWORD_SERVER__PORT"):
        load_config({"FIRSTWORD_SERVER__PORT": "1"})


def test_it_is_frozen() -> None:
    config = load_config({})
    with pytest.raises(pydantic.ValidationError):
        config.server.port = 1  # type: ignore[misc]


def test_servers_of_one_store_sign_with_one_key() -> None:
    with pytest.raises(ConfigError, match=r"resume\.keys must be set"):
        load_config({"FIRSTWORD_STORE__URL": "redis://localhost"})
    found = load_config(
        {"FIRSTWORD_STORE__URL": "redis://localhost", "FIRSTWORD_RESUME__KEYS": f"{'a' * 16}, {'b' * 16}"}
    )
    assert found.resume.secrets == ("a" * 16, "b" * 16)


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("FIRSTWORD_RESUME__KEYS", "short", "16 characters"),
        ("FIRSTWORD_STORE__NAME_KEY", "short", "16 characters"),
        ("FIRSTWORD_STORE__ENCRYPTION_KEYS", "c2hvcnQ=", "32 random bytes"),
        ("FIRSTWORD_STORE__ENCRYPTION_KEYS", "!", "32 random bytes"),
    ],
)
def test_a_key_that_is_none_is_refused_and_not_repeated(variable: str, value: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        load_config({variable: value})
    assert value not in str(refused.value)


KEYS = {"FIRSTWORD_RESUME__KEYS": "a" * 16}


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://user:zq%23%2F%3Fquux@redis.voice:6380/2",
        "redis://:zq@quux@redis.voice",
        "redis://[::1]:6379/0?socket_timeout=2",
        "unix:///run/redis.sock?db=1",
        "rediss://redis.voice?ssl_cert_reqs=none&client_name=voice&health_check_interval=30",
        "",
    ],
)
def test_the_urls_of_stores(url: str) -> None:
    store = load_config({"FIRSTWORD_STORE__URL": url, **KEYS}).store
    assert store.url == url
    assert "quux" not in repr(store), "nor in whatever it is printed with"


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:6379", "http://localhost", "redis://", "redis:/localhost", "redis://localhost:port"),
        *("redis://localhost:99999", "redis://localhost/first", "redis://localhost?nope=1", "redis://localhost?db=x"),
        *(
            f"redis://localhost?{form}"
            for form in ("decode_responses=true", "encoding=utf-16", "protocol=3", "retry=1")
        ),
        "unix:///run/redis.sock?db=1&legacy_responses=no",
        *(f"redis://:{password}@localhost:6379/0" for password in ("zq#quux", "zq/quux", "zq?quux", "[zqquux")),
        *(f"redis://:{password}@localhost:6379/0" for password in ("12#quux", "12/quux", "12?quux")),
        *(f"redis://user:{password}@localhost:6379/0" for password in ("12#quux", "12/quux", "12?quux")),
    ],
)
def test_a_url_that_no_store_has_is_refused_before_models_are_loaded_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url \(FIRSTWORD_STORE__URL\): must be redis://") as refused:
        load_config({"FIRSTWORD_STORE__URL": url, **KEYS})
    assert "quux" not in "".join(traceback.format_exception(refused.value))
