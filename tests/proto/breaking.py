"""What breaks clients of an earlier contract, as checks over protoc's descriptors: buf's rules that the wire and the
generated code depend on, for where there is no npm.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet


def broken(released: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """What those who have generated code from the released contract would miss, one line each; empty for nothing."""
    found: list[str] = []
    new_messages, new_enums = dict(_messages(now)), dict(_enums(now))
    for name, message in _messages(released):
        if name not in new_messages:
            found.append(f"message {name} is gone")
        else:
            found += _fields(name, message, new_messages[name])
    for name, enum in _enums(released):
        if name not in new_enums:
            found.append(f"enum {name} is gone")
        else:
            values = {(value.name, value.number) for value in new_enums[name].value}
            missing = [value for value in enum.value if (value.name, value.number) not in values]
            found += [f"value {value.name} = {value.number} of {name} is gone" for value in missing]
    methods = _methods(now)
    return found + [f"method {method} is gone or another" for method in _methods(released) if method not in methods]


def _fields(name: str, released: DescriptorProto, now: DescriptorProto) -> list[str]:
    by_number = {field.number: field for field in now.field}
    reserved = [range(span.start, span.end) for span in now.reserved_range]
    found = []
    for field in released.field:
        new = by_number.get(field.number)
        if new is None and not any(field.number in span for span in reserved):
            found.append(f"field {name}.{field.name} is gone, and its number {field.number} not reserved")
        elif new is None:
            found.append(f"field {name}.{field.name} is gone")
        elif _shape(field, released) != _shape(new, now):
            found.append(f"field {name}.{field.name} = {field.number} is another")
    return found


def _shape(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[object, ...]:
    """What of a field must stay."""
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.type, field.label, field.type_name, field.json_name, field.proto3_optional, oneof


def _messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    def walk(prefix: str, messages: object) -> Iterator[tuple[str, DescriptorProto]]:
        for message in messages:  # type: ignore[attr-defined]
            yield f"{prefix}.{message.name}", message
            yield from walk(f"{prefix}.{message.name}", message.nested_type)

    for file in files.file:
        yield from walk(file.package, file.message_type)


def _enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _messages(files):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def _methods(files: FileDescriptorSet) -> set[tuple[object, ...]]:
    return {
        (file.package, service.name, m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming)
        for file in files.file
        for service in file.service
        for m in service.method
    }
