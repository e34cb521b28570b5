"""Makes the Python stubs in ``firstword/v1/`` from ``proto/``, or checks that they are what ``proto/`` gives.

    python scripts/gen_proto.py            write the stubs
    python scripts/gen_proto.py --check    exit with 1, and name each file, when a stub is stale, missing or left over
    python scripts/gen_proto.py --release  hold later changes to what the contract is now (tests/proto/released.binpb)

Owns that file, every ``*_pb2*`` file there and nothing else. Needs grpcio-tools and mypy-protobuf beside the
interpreter that runs it; their pinned versions are part of what the stubs are.
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("firstword/v1")
SERVICE_FILE = PACKAGE / "call_service.proto"
STUBS = "*_pb2*.py*"
RELEASED = Path("tests/proto/released.binpb")
"""The descriptors of what clients have been built with."""


class GenerationError(Exception):
    """protoc refused the contract; it has printed why."""


def generate(proto: Path, output: Path) -> None:
    """Write the stubs of all files under ``proto`` into ``output``, which exists. Raises GenerationError."""
    messages = sorted(str(path.relative_to(proto)) for path in (proto / PACKAGE).glob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    paths = [f"--proto_path={proto}", f"--proto_path={well_known}"]
    run_protoc([*paths, f"--python_out={output}", *_mypy("mypy", "quiet", output), *messages])
    # Only the file with the service: the others would give modules that hold nothing.
    run_protoc([*paths, f"--grpc_python_out={output}", *_mypy("mypy_grpc", "quiet", output), str(SERVICE_FILE)])


def release(proto: Path, output: Path) -> None:
    """Write the descriptors of the contract. Raises GenerationError."""
    files = sorted(str(path.relative_to(proto)) for path in (proto / PACKAGE).glob("*.proto"))
    run_protoc([f"--proto_path={proto}", f"--descriptor_set_out={output}", *files])


def run_protoc(arguments: list[str]) -> None:
    """Run protoc with ``arguments``. Raises GenerationError when it fails."""
    if protoc.main(["protoc", *arguments]) != 0:
        raise GenerationError("protoc failed")


def _mypy(plugin: str, options: str, output: Path) -> list[str]:
    """The arguments that make protoc run a plug-in of mypy-protobuf, which need not be on the PATH."""
    scripts = Path(sysconfig.get_path("scripts"))
    return [f"--plugin=protoc-gen-{plugin}={scripts / f'protoc-gen-{plugin}'}", f"--{plugin}_out={options}:{output}"]


def stale_stubs(proto: Path, package: Path) -> list[str]:
    """What is wrong with the stubs in ``package``, one line a file; empty when they are fresh."""
    with tempfile.TemporaryDirectory() as temporary:
        generate(proto, Path(temporary))
        fresh = {path.name: path.read_bytes() for path in (Path(temporary) / PACKAGE).iterdir()}
    present = {path.name: path.read_bytes() for path in package.glob(STUBS)}
    complaints = [f"{name} is missing" for name in fresh.keys() - present.keys()]
    complaints += [f"{name} comes of no .proto file" for name in present.keys() - fresh.keys()]
    complaints += [f"{name} is stale" for name in fresh.keys() & present.keys() if fresh[name] != present[name]]
    return sorted(complaints)


def write_stubs(proto: Path, root: Path) -> None:
    """Replace the stubs under ``root`` by fresh ones. When protoc fails, the old ones stay as they were."""
    with tempfile.TemporaryDirectory() as temporary:
        generate(proto, Path(temporary))
        fresh = {path.name: path.read_bytes() for path in (Path(temporary) / PACKAGE).iterdir()}
    for old in (root / PACKAGE).glob(STUBS):
        if old.name not in fresh:
            old.unlink()
    for name, content in fresh.items():
        (root / PACKAGE / name).write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description="Make the gRPC stubs in firstword/v1/ from proto/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the stubs are stale")
    parser.add_argument("--release", action="store_true", help="write no stubs, but the descriptors of the contract")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one of this script)")
    options = parser.parse_args(arguments)
    try:
        if options.release:
            release(options.root / "proto", options.root / RELEASED)
            return 0
        if not options.check:
            write_stubs(options.root / "proto", options.root)
            return 0
        complaints = stale_stubs(options.root / "proto", options.root / PACKAGE)
    except GenerationError as error:
        print(error, file=sys.stderr)
        return 1
    for complaint in complaints:
        print(f"{PACKAGE}/{complaint}", file=sys.stderr)
    if complaints:
        print("run: python scripts/gen_proto.py", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
