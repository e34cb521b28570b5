"""The committed stubs are what the contract gives, and the check notices when they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from google.protobuf.message import Message

from firstword.v1 import (
    call_service_pb2,
    call_service_pb2_grpc,
    client_events_pb2,
    server_events_pb2,
    turn_report_pb2,
)

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path("firstword/v1")
CONTRACT = Path("proto/firstword/v1")


def run_generator(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/gen_proto.py"), "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract and its stubs, to be spoiled."""
    for part in (STUBS, CONTRACT):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_committed_stubs_are_fresh() -> None:
    checked = run_generator("--check", root=ROOT)
    assert checked.returncode == 0, checked.stderr


def test_changed_contract_makes_stubs_stale(copy: Path) -> None:
    file = copy / CONTRACT / "error.proto"
    file.write_text(file.read_text().replace("string reason = 2;", "string cause = 2;"))
    checked = run_generator("--check", root=copy)
    assert checked.returncode == 1
    assert "firstword/v1/error_pb2.py is stale" in checked.stderr
    assert "firstword/v1/error_pb2.pyi is stale" in checked.stderr
    assert "resume_pb2" not in checked.stderr

    assert run_generator(root=copy).returncode == 0
    assert run_generator("--check", root=copy).returncode == 0
    assert "cause" in (copy / STUBS / "error_pb2.pyi").read_text()


def test_changed_comment_makes_stubs_stale(copy: Path) -> None:
    """Type stubs carry the comments as docstrings, so that an editor shows what a field means."""
    file = copy / CONTRACT / "error.proto"
    file.write_text(file.read_text().replace("// What kind of error.", "// Which kind of error."))
    checked = run_generator("--check", root=copy)
    assert checked.returncode == 1
    assert "error_pb2.pyi is stale" in checked.stderr


def test_missing_and_left_over_stubs_are_noticed(copy: Path) -> None:
    (copy / STUBS / "error_pb2.py").unlink()
    (copy / STUBS / "gone_pb2.py").write_text("")
    checked = run_generator("--check", root=copy)
    assert checked.returncode == 1
    assert "error_pb2.py is missing" in checked.stderr
    assert "gone_pb2.py comes of no .proto file" in checked.stderr

    assert run_generator(root=copy).returncode == 0
    assert not (copy / STUBS / "gone_pb2.py").exists()
    assert (copy / STUBS / "__init__.py").exists()


def test_generation_touches_nothing_elsewhere(copy: Path) -> None:
    """Other packages keep stubs under the same root: those of a virtual environment, for one."""
    foreign = copy / ".venv/grpc_health/v1/health_pb2_grpc.py"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("theirs")
    assert run_generator(root=copy).returncode == 0
    assert foreign.read_text() == "theirs"


def test_broken_contract_leaves_stubs_alone(copy: Path) -> None:
    before = (copy / STUBS / "error_pb2.py").read_bytes()
    (copy / CONTRACT / "error.proto").write_text("message {")
    for arguments in ((), ("--check",)):
        assert run_generator(*arguments, root=copy).returncode == 1
    assert (copy / STUBS / "error_pb2.py").read_bytes() == before


def test_wheel_asks_for_runtimes_that_can_load_the_stubs() -> None:
    """Generated code refuses an older grpcio or protobuf than the one it was made with, at import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = dict(requirement.split(",")[0].split(">=") for requirement in project["dependencies"])
    grpc_floor = tuple(int(part) for part in floors["grpcio"].split("."))
    assert grpc_floor >= tuple(int(part) for part in call_service_pb2_grpc.GRPC_GENERATED_VERSION.split("."))

    lines = (ROOT / STUBS / "call_service_pb2.py").read_text().splitlines()
    version = lines.index("    _runtime_version.Domain.PUBLIC,")
    generated = tuple(int(line.strip(" ,")) for line in lines[version + 1 : version + 4])
    protobuf_floor = tuple(int(part) for part in floors["protobuf"].split("."))
    assert protobuf_floor >= generated


def test_absence_differs_from_zero() -> None:
    """Greedy was asked for, or nothing was: a default must not be mistaken for a wish."""
    opened = client_events_pb2.Open()
    assert not opened.HasField("seed")
    assert not opened.sampling.HasField("temperature")
    opened.sampling.temperature = 0.0
    opened.seed = 0
    read = client_events_pb2.Open.FromString(opened.SerializeToString())
    assert read.HasField("seed")
    assert read.sampling.HasField("temperature")

    timings = turn_report_pb2.TurnTimings(first_token_us=0)
    assert timings.HasField("first_token_us")
    assert not timings.HasField("first_clause_us")


def test_envelope_survives_an_event_from_the_future() -> None:
    """A client that does not know an event still learns its seq, and passes over it."""
    known = call_service_pb2.CallResponse(generation=3, seq=41, durable_seq=40, client_seq=7, record=b"entry")
    unknown_event = bytes([0xFA, 0x07, 0x02, 0x08, 0x01])  # field 127, a message of two bytes
    read = call_service_pb2.CallResponse.FromString(known.SerializeToString() + unknown_event)
    assert (read.generation, read.seq, read.durable_seq, read.client_seq, read.record) == (3, 41, 40, 7, b"entry")
    assert read.WhichOneof("event") is None


def test_a_delta_stays_small_on_the_wire() -> None:
    """One goes out for every step of every call: envelope and figures stay below 64 bytes beside the text."""
    delta = server_events_pb2.TextDelta(
        turn_id=12,
        text="tomorrow at nine",
        offset_code_points=214,
        clause_end_code_points=[230],
        completion_tokens=4,
        drafted_tokens=3,
        spans=[
            server_events_pb2.TextSpan(code_points=13, drafted=True),
            server_events_pb2.TextSpan(code_points=3),
        ],
        since_commit_us=84_211,
    )
    response = call_service_pb2.CallResponse(generation=2, seq=977, client_seq=133, text_delta=delta)
    message: Message = response
    assert message.ByteSize() - len(delta.text) < 64
