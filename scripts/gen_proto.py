"""Generates the stubs in ``firstword/v1/`` from ``proto/``; with ``--check``, fails when the committed ones are stale.

python scripts/gen_proto.py [--check]
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(proto: Path, out: Path) -> list[Path]:
    """Write stubs for every file under ``proto`` into ``out``; returns them, relative to ``out``."""
    sources = [str(path.relative_to(proto)) for path in sorted(proto.rglob("*.proto"))]
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{proto}",
        f"-I{files('grpc_tools') / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *sources,
    ]
    if protoc.main(arguments) != 0:  # it prints what is wrong
        raise SystemExit("protoc failed")
    for path in out.rglob("*_pb2_grpc.py*"):
        if b"ServiceServicer" not in path.read_bytes():
            path.unlink()  # a file without a service
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*"))


def stale(proto: Path, committed: Path) -> list[str]:
    """Stubs under ``committed`` that differ from what ``proto`` gives now, are missing, or should be gone."""
    with tempfile.TemporaryDirectory() as fresh:
        wanted = generate(proto, Path(fresh))
        there = {path.relative_to(committed) for path in committed.glob("firstword/v1/*_pb2*") if path.suffix != ".pyc"}
        differing = [
            path
            for path in wanted
            if path not in there or not filecmp.cmp(Path(fresh) / path, committed / path, shallow=False)
        ]
        return sorted(str(path) for path in {*differing, *(there - set(wanted))})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(ROOT / "proto", ROOT)
        return 0
    found = stale(ROOT / "proto", ROOT)
    for path in found:
        print(f"stale: {path} (run make proto)", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
