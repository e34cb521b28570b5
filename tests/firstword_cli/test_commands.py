"""The commands, as processes of their own."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from firstword import serve
from firstword.cli import main, parser
from firstword.talk.script import Script
from tests.e2e.server import ROOT
from tests.firstword_cli.conftest import Start


def test_the_command_line_alone_loads_neither_the_view_nor_the_server() -> None:
    heavy = "{'textual', 'torch', 'service', 'engine'} & {name.split('.')[0] for name in sys.modules}"
    program = f"import sys, firstword.cli; found = {heavy}; sys.exit(str(found) if found else 0)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_options_of_serve_become_settings_of_the_service() -> None:
    options = parser().parse_args(["serve", "--model", "m", "--drafter", "", "--host", "0.0.0.0", "--port", "0"])
    assert serve.settings(options.model, options.drafter, options.host, options.port, options.config) == {
        "FIRSTWORD_ENGINE__MODEL": "m",
        "FIRSTWORD_ENGINE__DRAFTER": "",
        "FIRSTWORD_SERVER__HOST": "0.0.0.0",
        "FIRSTWORD_SERVER__PORT": "0",
    }
    assert serve.settings() == {}


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_without_the_service_it_says_where_that_comes_from(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "service_root", lambda: None)
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert "pip install 'firstword[server]' alone" in said
    assert "firstword talk ADDRESS" in said


@pytest.mark.parametrize(("missing", "arguments"), [("textual", ["talk"]), ("torch", ["serve"])])
def test_what_is_not_installed_is_named(
    missing: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert main(arguments) == 2
    assert "install" in capsys.readouterr().err


def test_talk_says_that_there_is_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["talk", address, "--system", "x"]) == 1
    assert f"no server at {address}" in capsys.readouterr().err


def test_talk_names_a_bad_file_of_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", "--tools", str(tmp_path / "absent.json")]) == 1
    assert "absent.json" in capsys.readouterr().err


def test_serve_ends_in_order_on_a_signal(firstword: Start) -> None:
    process = firstword("serve", "--port", "0")
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["event"] == "serving":
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_serve_says_why_a_model_cannot_be_used(firstword: Start, tmp_path: Path) -> None:
    process = firstword("serve", "--model", str(tmp_path), "--port", "0")
    _, log = process.communicate(timeout=100)
    assert process.returncode == 1
    assert f"cannot read config.json in {tmp_path}" in log


def test_serve_names_a_bad_setting(firstword: Start) -> None:
    process = firstword("serve", "--port", "70000")
    _, log = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "FIRSTWORD_SERVER__PORT" in log


def test_demo_without_a_terminal_plays_the_recorded_call(firstword: Start, script: Script) -> None:
    """Whatever a service is told here of certificates and of its configuration."""
    told = {"FIRSTWORD_TLS__CERTIFICATE": "absent.pem", "FIRSTWORD_TLS__KEY": "absent.pem"}
    process = firstword("demo", environment=told | {"FIRSTWORD_CONFIG": "absent.toml"})
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert errors == ""
    for line in script.lines:
        assert f"caller  {line}\n" in output
    turns = len(script.lines)
    timed = re.findall(r"first text [\d.]+ ms, clause [\d.]+ ms \| reply \d+ tokens in \d+ steps.*prompt \d+", output)
    assert len(timed) == turns
    assert output.count("speaks over it") == 1
    assert re.search(
        rf"^{turns} turns \| first text after [\d.]+ ms \(median\) \| \d+ tokens/s \| \d+% of", output, re.M
    )
    assert output.endswith("The server has ended.\n")


def test_demo_leaves_no_server_behind(firstword: Start) -> None:
    process = firstword("demo")
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"at 127\.0\.0\.1:(\d+)$", line.strip()):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0


def test_demo_fails_when_the_server_cannot_start(firstword: Start, tmp_path: Path) -> None:
    calls = tmp_path / "calls.jsonl"
    calls.write_text('{"messages": [{"role": "user", "content": "hello"}]}')
    process = firstword("demo", "--calls", str(calls), environment={"FIRSTWORD_ENGINE__MODEL": str(tmp_path)})
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.startswith("firstword: the server could not start: ModelError: cannot read config.json")
