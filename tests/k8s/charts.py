"""The chart as Helm's own engine renders it, for the tests: manifests as dicts, found by kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

pytest.importorskip("helm_python", reason="helm-python-sdk has no wheel for this machine")

from helm_python import HelmError, HelmValuesError, lint

from scripts import gen_chart

__all__ = ["SETS", "HelmError", "HelmValuesError", "lint"]

SETS = tuple(sorted(path.stem for path in gen_chart.SETS.glob("*.yaml")))
"""Names of the sets of values that are rendered, each with a golden file."""

Manifest = dict[str, Any]


def values(name: str, **over: Any) -> dict[str, Any]:
    """The values of a set, with some laid over."""
    return gen_chart.laid_over(gen_chart.values_of(name), over)


def manifests(values: Mapping[str, Any], release: str = gen_chart.RELEASE) -> list[Manifest]:
    """Everything that would be applied. Raises HelmError."""
    texts = gen_chart.rendered(values, release)
    return [
        manifest
        for path, text in texts.items()
        if not path.endswith("NOTES.txt")
        for manifest in yaml.safe_load_all(text)
        if manifest is not None
    ]


def of_kind(kind: str, among: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in among if manifest["kind"] == kind]


def the(kind: str, among: list[Manifest]) -> Manifest:
    """The only one of its kind."""
    (found,) = of_kind(kind, among)
    return found


def pod(among: list[Manifest]) -> Manifest:
    """The pod's spec in the Deployment."""
    spec: Manifest = the("Deployment", among)["spec"]["template"]["spec"]
    return spec


def container(among: list[Manifest]) -> Manifest:
    """The service's own."""
    (found,) = pod(among)["containers"]
    assert found["name"] == "firstword"
    return dict(found)


def toml(among: list[Manifest]) -> str:
    """The text of firstword.toml."""
    return str(the("ConfigMap", among)["data"]["firstword.toml"])


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield key, value
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)
