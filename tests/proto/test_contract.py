"""The contract keeps its own rules; and the rules notice when one is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from tests.proto import contract

PROTO = Path(__file__).resolve().parents[2] / "proto"
Rule = Callable[[FileDescriptorProto], list[str]]
RULES: tuple[Rule, ...] = (contract.uncommented, contract.enums_without_unspecified, contract.units_missing)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    return contract.compile_contract(PROTO, tmp_path_factory.mktemp("descriptors") / "contract.binpb")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_hold(compiled: FileDescriptorSet, rule: Rule) -> None:
    assert [complaint for file in compiled.file for complaint in rule(file)] == []


def test_rules_saw_the_whole_contract(compiled: FileDescriptorSet) -> None:
    """A walk that skips what it should visit would find nothing wrong with it."""
    names = {name for file in compiled.file for _, name in contract.elements(file)}
    for expected in (
        "firstword.v1.CallService.Call",
        "firstword.v1.CallRequest.event",
        "firstword.v1.TextDelta.spans",
        "firstword.v1.Error.metadata",
        "firstword.v1.Role.ROLE_USER",
    ):
        assert expected in names
    assert len(names) == sum(_size(file) for file in compiled.file)


def _size(file: FileDescriptorProto) -> int:
    """Declarations of a file, counted without paths: nothing of ours is nested but a map's entry."""
    declared = list(file.message_type)
    written_oneofs = (
        {field.oneof_index for field in message.field if field.HasField("oneof_index") and not field.proto3_optional}
        for message in declared
    )
    return (
        len(declared)
        + sum(len(message.field) for message in declared)
        + sum(len(indices) for indices in written_oneofs)
        + sum(1 + len(enum.value) for enum in file.enum_type)
        + sum(1 + len(service.method) for service in file.service)
    )


BROKEN = """
syntax = "proto3";
package firstword.v1;
// Fine.
message Thing {
  uint32 lonely_tokens = 1;
  // Without a unit.
  uint32 call_timeout = 2;
  // In the wrong one.
  uint64 idle_seconds = 3;
  // Below zero is no duration.
  int32 grace_ms = 4;
  // Tokens by another name.
  uint32 token_count = 5;
  // A part of it.
  message Part {
    int32 inner_tokens = 1;
  }
  // A state.
  enum State {
    // Good.
    STATE_GOOD = 0;
    STATE_BAD = 1;
  }
}
"""


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (contract.uncommented, {"Thing.lonely_tokens", "Thing.Part.inner_tokens", "Thing.State.STATE_BAD"}),
        (contract.enums_without_unspecified, {"Thing.State"}),
        (contract.units_missing, {"Thing.call_timeout", "Thing.idle_seconds", "Thing.grace_ms", "Thing.token_count"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rules_notice(tmp_path: Path, rule: Rule, named: set[str]) -> None:
    (tmp_path / "broken.proto").write_text(BROKEN)
    (file,) = contract.compile_contract(tmp_path, tmp_path / "broken.binpb").file
    assert {complaint.split()[0].removeprefix("firstword.v1.") for complaint in rule(file)} == named


def test_every_server_event_is_in_the_envelope(compiled: FileDescriptorSet) -> None:
    """generation, seq, durable_seq, client_seq, record and whole_seq stand beside the event, whichever event it is."""
    (response,) = (m for file in compiled.file for m in file.message_type if m.name == "CallResponse")
    envelope = {field.name: field.type for field in response.field if not field.HasField("oneof_index")}
    number, octets = FieldDescriptorProto.TYPE_UINT64, FieldDescriptorProto.TYPE_BYTES
    assert envelope == {
        "generation": number,
        "seq": number,
        "durable_seq": number,
        "client_seq": number,
        "record": octets,
        "whole_seq": number,
    }


def test_turns_are_named_alike(compiled: FileDescriptorSet) -> None:
    """A ``turn_id`` is a uint64 everywhere, and the first field of an event that cannot be without one."""
    for file in compiled.file:
        for _, name, message in contract.messages(file):
            for field in message.field:
                if field.name == "turn_id":
                    assert field.type == FieldDescriptorProto.TYPE_UINT64, name
                    assert field.number == 1 or field.proto3_optional, name
