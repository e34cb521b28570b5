"""Rules of the contract that buf does not know, and stubs that match it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from scripts.gen_proto import ROOT, generate, stale

PROTO = ROOT / "proto"
Place = tuple[str, descriptor_pb2.DescriptorProto]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    out = tmp_path_factory.mktemp("descriptors") / "set"
    sources = [str(path.relative_to(PROTO)) for path in sorted(PROTO.rglob("*.proto"))]
    assert protoc.main(["protoc", f"-I{PROTO}", f"-o{out}", "--include_source_info", *sources]) == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def test_everything_declared_has_a_comment(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    declaring = {4, 5, 6, 2, 3, 8}  # field numbers in descriptor.proto that hold declarations
    checked = 0
    for file in files:
        for location in file.source_code_info.location:
            path = list(location.path)
            if len(path) < 2 or len(path) % 2 or path[0] not in {4, 5, 6} or path[-2] not in declaring:
                continue
            if any(step == 7 for step in path[::2]):  # options
                continue
            checked += 1
            line = location.span[0] + 1
            assert location.leading_comments.strip(), f"{file.name}:{line} has no comment"
    assert checked > 150


def test_enums_start_unspecified(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    enums = [enum for file in files for enum in file.enum_type]
    enums += [enum for file in files for message in file.message_type for enum in message.enum_type]
    assert len(enums) >= 5
    for enum in enums:
        assert enum.value[0].number == 0
        assert enum.value[0].name.endswith("_UNSPECIFIED")


def test_numbers_carry_their_unit(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """A whole number counts something or measures something, and its name says which."""
    counts = (
        "_seq",
        "seq",
        "_id",
        "generation",
        "seed",
        "revision",
        "version",
        "code",
        "steps",
        "top_k",
        "_turns",
        "chars",
    )
    counts += ("_tool_calls", "_tool_calls_per_turn", "_per_position")
    units = ("_ms", "_us", "_tokens", "_chars", "_bytes")
    field = descriptor_pb2.FieldDescriptorProto
    for file in files:
        for message in file.message_type:
            for number in message.field:
                if number.type in {field.TYPE_UINT32, field.TYPE_UINT64, field.TYPE_INT32, field.TYPE_INT64}:
                    assert number.name.endswith(counts + units), f"{message.name}.{number.name}"


def test_committed_stubs_are_fresh() -> None:
    assert stale(PROTO, ROOT) == []


def test_a_stale_stub_is_found(tmp_path: Path) -> None:
    changed = tmp_path / "proto"
    shutil.copytree(PROTO, changed)
    file = changed / "firstword" / "v1" / "conversation.proto"
    file.write_text(file.read_text().replace("string item_id = 1;", "string item_id = 9;"))
    generate(changed, tmp_path)
    assert stale(changed, tmp_path) == []
    assert "firstword/v1/conversation_pb2.py" in stale(PROTO, tmp_path)
    (tmp_path / "firstword" / "v1" / "gone_pb2.py").write_text("")
    assert "firstword/v1/gone_pb2.py" in stale(changed, tmp_path)
