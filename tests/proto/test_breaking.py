"""The contract is still the one that clients have been built with (``released.binpb``), and the check sees when not."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.proto.breaking import broken
from tests.proto.contract import compile_contract

ROOT = Path(__file__).resolve().parents[2]
RELEASED = Path(__file__).parent / "released.binpb"
CONTRACT = Path("firstword/v1")


@pytest.fixture(scope="module")
def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(RELEASED.read_bytes())


def changed(tmp_path: Path, file: str, old: str, new: str) -> FileDescriptorSet:
    """The contract with one change."""
    (tmp_path / "proto" / CONTRACT).mkdir(parents=True)
    for path in (ROOT / "proto" / CONTRACT).glob("*.proto"):
        text = path.read_text()
        if path.name == file:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "proto" / CONTRACT / path.name).write_text(text)
    return compile_contract(tmp_path / "proto", tmp_path / "out.binpb")


def test_nothing_that_was_released_is_broken(released: FileDescriptorSet, tmp_path: Path) -> None:
    assert len(released.file) > 5
    assert broken(released, compile_contract(ROOT / "proto", tmp_path / "out.binpb")) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("error.proto", "string reason = 2;", "string cause = 2;", "field firstword.v1.Error.reason = 2 is another"),
        ("error.proto", "string reason = 2;", "bytes reason = 2;", "field firstword.v1.Error.reason = 2 is another"),
        (
            "error.proto",
            "string reason = 2;",
            "",
            "field firstword.v1.Error.reason is gone, and its number 2 not reserved",
        ),
        ("error.proto", "string reason = 2;", "reserved 2;", "field firstword.v1.Error.reason is gone"),
        (
            "conversation.proto",
            "  ROLE_USER = 2;",
            "  ROLE_USER = 7;",
            "value ROLE_USER = 2 of firstword.v1.Role is gone",
        ),
        ("call_service.proto", "rpc Call(stream", "rpc Talk(stream", "method ("),
    ],
)
def test_what_breaks_clients_is_seen(
    released: FileDescriptorSet, tmp_path: Path, file: str, old: str, new: str, complaint: str
) -> None:
    (found,) = broken(released, changed(tmp_path, file, old, new))
    assert found.startswith(complaint)


def test_what_is_new_breaks_nobody(released: FileDescriptorSet, tmp_path: Path) -> None:
    new = "string reason = 2;\n  // Of later.\n  string more = 99;"
    assert broken(released, changed(tmp_path, "error.proto", "string reason = 2;", new)) == []
