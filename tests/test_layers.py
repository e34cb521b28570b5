"""The dependency rule: service -> engine -> torch, never back. Walks every import and fails the build otherwise."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ENGINE = {"engine", "torch", "transformers", "safetensors", "tokenizers", "numpy", "jinja2", "llguidance", "triton"}
TELEMETRY_SDK = "opentelemetry.sdk"

ALLOWED: dict[str, set[str]] = {
    "engine": ENGINE,
    "firstword": {"firstword", "grpc", "google", "livekit", "textual", "rich", "prometheus_client"},
    "training": ENGINE | {"training", "tqdm", "yaml"},
}
"""Top-level packages that each of ours may import, beside the standard library."""

FORBIDDEN: dict[str, set[str]] = {
    "service": {"training", "bench", "evals", "tests", "torch"},
    "engine": {"asyncio"},
}
ONLY_IN: dict[str, tuple[str, ...]] = {
    "redis": ("service/store/",),
    "grpc": (
        *("service/server.py", "service/servicer.py", "service/errors.py"),
        *("service/security/guard.py", "service/security/security.py", "service/security/tls.py"),
    ),
    "jwt": ("service/security/",),
    "cryptography": ("service/security/", "service/store/sealing.py"),
    TELEMETRY_SDK: ("service/telemetry.py", "service/telemetry/"),
}
"""Packages that only the named files of service/ may import."""


def imports(source: str, path: str) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in the file, in functions too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = Path(path).with_suffix("").parts[: -node.level]
                module = ".".join((*parts, module)).rstrip(".")
            found.append((node.lineno, module))
    return found


def violations(source: str, path: str) -> list[str]:
    """What the file at repository path ``path`` imports against the rule, in words."""
    package = Path(path).parts[0]
    bad = []
    for line, module in imports(source, path):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top == "__future__":
            if top in FORBIDDEN.get(package, set()):
                bad.append(f"{path}:{line} {package}/ must not import {module}")
            continue
        if package in ALLOWED and top not in ALLOWED[package]:
            bad.append(f"{path}:{line} {package}/ must not import {module}")
        if top in FORBIDDEN.get(package, set()):
            bad.append(f"{path}:{line} {package}/ must not import {module}")
        for name, places in ONLY_IN.items():
            if package == "service" and (module + ".").startswith(name + ".") and not path.startswith(places):
                bad.append(f"{path}:{line} only {', '.join(places)} may import {name}")
    if package == "engine":
        bad += [f"{path} engine/ must not read os.environ"] * source.count("os.environ")
    if package == "service" and path != "service/config.py":
        bad += [f"{path} only service/config.py may read os.environ"] * source.count("os.environ")
    return bad


def sources() -> list[Path]:
    return [
        path
        for package in ("engine", "service", "firstword", "training")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "v1" not in path.parts
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_respect_the_layers(path: Path) -> None:
    assert violations(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("engine/x.py", "import grpc"),
        ("engine/x.py", "from service import call"),
        ("engine/x.py", "import asyncio"),
        ("engine/models/x.py", "def f():\n    import redis"),
        ("engine/x.py", "import os; os.environ['A']"),
        ("firstword/x.py", "from engine import tree"),
        ("firstword/x.py", "import torch"),
        ("firstword/x.py", "from grpc_status import rpc_status"),
        ("service/call.py", "import redis"),
        ("service/call.py", "from opentelemetry.sdk.trace import TracerProvider"),
        ("service/call.py", "import grpc"),
        ("service/call.py", "import torch"),
        ("service/call.py", "import training.eagle3"),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    assert violations(line + "\n", path)


def test_nothing_imports_what_stands_on_top() -> None:
    for path in sources():
        package = path.relative_to(ROOT).parts[0]
        if package == "training":
            continue
        tops = {module.split(".")[0] for _, module in imports(path.read_text(), str(path.relative_to(ROOT)))}
        assert not tops & {"bench", "evals", "tests", "training"}, path
