"""House rules of the contract, as checks over protoc's descriptors. Each check returns complaints, one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc  # type: ignore[import-untyped]

# Numbers of the descriptor's own fields, of which the paths in SourceCodeInfo are made.
FILE_MESSAGES, FILE_ENUMS, FILE_SERVICES = 4, 5, 6
MESSAGE_FIELDS, MESSAGE_NESTED, MESSAGE_ENUMS, MESSAGE_ONEOFS = 2, 3, 4, 8
ENUM_VALUES, SERVICE_METHODS = 2, 2

Location = tuple[int, ...]

NOT_NUMBERS = frozenset(
    {
        FieldDescriptorProto.TYPE_BOOL,
        FieldDescriptorProto.TYPE_STRING,
        FieldDescriptorProto.TYPE_BYTES,
        FieldDescriptorProto.TYPE_ENUM,
        FieldDescriptorProto.TYPE_MESSAGE,
    }
)
UNSIGNED = frozenset({FieldDescriptorProto.TYPE_UINT32, FieldDescriptorProto.TYPE_UINT64})
DURATION = re.compile(r"_(ms|us)$")
SIZE = re.compile(r"_tokens(_per_turn)?$|(^|_)code_points$")
COUNT = re.compile(
    r"(^|_)(seq|generation|version|revision|ids?|seed|index|steps|steps_at_depth|turns|tool_calls_per_(turn|call)|limit)$"
)
RATIO = re.compile(r"^(temperature|top_[kp]|min_p|repetition_penalty)$")
"""What the name of a number says that it is. One that says none of this measures something, in nobody knows what."""


def compile_contract(proto: Path, output: Path) -> FileDescriptorSet:
    """Descriptors with comments of every file under ``proto``. ``output``: a file to write them to."""
    files = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    arguments = ["protoc", f"--proto_path={proto}", "--include_source_info", f"--descriptor_set_out={output}", *files]
    assert protoc.main(arguments) == 0, "protoc failed; its message is above"
    return FileDescriptorSet.FromString(output.read_bytes())


def messages(file: FileDescriptorProto) -> Iterator[tuple[Location, str, DescriptorProto]]:
    """Every message of a file, nested ones too, with its path and full name."""

    def walk(path: Location, prefix: str, found: DescriptorProto) -> Iterator[tuple[Location, str, DescriptorProto]]:
        name = f"{prefix}.{found.name}"
        yield path, name, found
        for index, nested in enumerate(found.nested_type):
            yield from walk((*path, MESSAGE_NESTED, index), name, nested)

    for index, message in enumerate(file.message_type):
        yield from walk((FILE_MESSAGES, index), file.package, message)


def enums(file: FileDescriptorProto) -> Iterator[tuple[Location, str, EnumDescriptorProto]]:
    """Every enum of a file, those inside messages too, with its path and full name."""
    for index, enum in enumerate(file.enum_type):
        yield (FILE_ENUMS, index), f"{file.package}.{enum.name}", enum
    for path, name, message in messages(file):
        for index, enum in enumerate(message.enum_type):
            yield (*path, MESSAGE_ENUMS, index), f"{name}.{enum.name}", enum


def fields(file: FileDescriptorProto) -> Iterator[tuple[Location, str, FieldDescriptorProto]]:
    """Every field that somebody wrote, with its path and full name; not the two of a map's hidden entry message."""
    for path, name, message in messages(file):
        if not message.options.map_entry:
            for index, field in enumerate(message.field):
                yield (*path, MESSAGE_FIELDS, index), f"{name}.{field.name}", field


def elements(file: FileDescriptorProto) -> Iterator[tuple[Location, str]]:
    """Everything that has to be explained, with its path and full name."""
    for path, name, message in messages(file):
        if message.options.map_entry:
            continue
        yield path, name
        hidden = {field.oneof_index for field in message.field if field.proto3_optional}
        for index, oneof in enumerate(message.oneof_decl):
            if index not in hidden:
                yield (*path, MESSAGE_ONEOFS, index), f"{name}.{oneof.name}"
    yield from ((path, name) for path, name, _ in fields(file))
    for path, name, enum in enums(file):
        yield path, name
        yield from (((*path, ENUM_VALUES, index), f"{name}.{value.name}") for index, value in enumerate(enum.value))
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (FILE_SERVICES, index), name
        for number, method in enumerate(service.method):
            yield (FILE_SERVICES, index, SERVICE_METHODS, number), f"{name}.{method.name}"


def uncommented(file: FileDescriptorProto) -> list[str]:
    """Elements without a comment of at least one word right above them."""
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    return [
        f"{name} has no comment" for path, name in elements(file) if not re.search(r"\w{3,}", comments.get(path, ""))
    ]


def enums_without_unspecified(file: FileDescriptorProto) -> list[str]:
    """Enums whose zero is not ``NAME_UNSPECIFIED``."""
    complaints = []
    for _, name, enum in enums(file):
        wanted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_UNSPECIFIED"
        zero = [value.name for value in enum.value if value.number == 0]
        if zero != [wanted]:
            complaints.append(f"{name} has {zero} for 0, not {wanted}")
    return complaints


def units_missing(file: FileDescriptorProto) -> list[str]:
    """Numbers whose names do not say what they count or in what unit they measure; durations that can be negative."""
    complaints = []
    for _, name, field in fields(file):
        if field.type in NOT_NUMBERS:
            continue
        if not any(kind.search(field.name) for kind in (DURATION, SIZE, COUNT, RATIO)):
            complaints.append(f"{name} is a number without a unit in its name")
        elif DURATION.search(field.name) and field.type not in UNSIGNED:
            complaints.append(f"{name} is a duration: it must be uint32 or uint64")
    return complaints
