"""Makes what the Helm chart derives from elsewhere, or checks that it is what it would be made into.

    python -m scripts.gen_chart            write it
    python -m scripts.gen_chart --check    exit with 1, and name each file, where one is stale, missing or left over

That is ``definitions.config`` of the chart's ``values.schema.json``, which says what ``service.config`` allows in
``firstword.toml``; and a golden file for each set of values in ``tests/k8s/sets``: the manifests that Helm's own engine
renders of them. Needs the service's dependencies and helm-python-sdk beside the interpreter that runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from service.config import ServiceConfig

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "k8s" / "firstword"
SCHEMA = CHART / "values.schema.json"
SETS = ROOT / "tests" / "k8s" / "sets"
GOLDEN = ROOT / "tests" / "k8s" / "golden"

RELEASE = "firstword"
NAMESPACE = "voice"

ALSO_TEXT = {"algorithms", "draft_layer_ids", "metrics", "traces"}
"""Lists that the service also takes as text, which it splits before it validates."""


def fresh_files() -> dict[Path, str]:
    """What each file should hold."""
    files = {SCHEMA: schema_text()}
    for values in sorted(SETS.glob("*.yaml")):
        files[GOLDEN / values.name] = rendered_text(values_of(values.stem))
    return files


# The schema of firstword.toml


def schema_text() -> str:
    """The chart's schema as it stands, with the part about ``config`` made anew."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    schema["definitions"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


def config_schema() -> dict[str, Any]:
    """JSON Schema (draft 7) of the tables that the service reads, for values that YAML holds."""
    raw = ServiceConfig.model_json_schema()
    schema = _plain(raw, raw.get("$defs", {}))
    del schema["properties"]["engine"]["required"]  # the embedded model is the default
    engine = schema["properties"]["engine"]
    for section, key in (("server", "port"), ("server", "health_port"), ("telemetry", "prometheus_port")):
        # 0 lets the system choose, and then neither a probe nor a Service finds the port.
        schema["properties"][section]["properties"][key]["minimum"] = 1
    # The directory alone is enough for another resident model.
    fallback = {**engine, "type": ["object", "string"], "required": ["model"]}
    schema["properties"]["fallback"]["additionalProperties"] = fallback
    return schema


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Without references, titles and nulls, and alternatives joined: so that one mistake is one message."""
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rsplit("/", 1)[1]], definitions, key)
    if "anyOf" in node:
        options = [_plain(option, definitions) for option in node["anyOf"] if option.get("type") != "null"]
        types = [option["type"] for option in options]
        joined = {name: value for option in options for name, value in option.items()}
        plain = {**joined, "type": types if len(types) > 1 else types[0]}
    else:
        plain = {name: value for name, value in node.items() if name not in {"title", "$defs", "default"}}
    if "properties" in plain:
        plain["properties"] = {
            name: _plain(value, definitions, name) for name, value in sorted(plain["properties"].items())
        }
    for nested in ("items", "additionalProperties"):
        if isinstance(plain.get(nested), Mapping):
            plain[nested] = _plain(plain[nested], definitions)
    if node.get("default") is not None and not isinstance(node["default"], Mapping):
        plain["default"] = node["default"]
    if key in ALSO_TEXT and plain["type"] == "array":
        plain["type"] = ["array", "string"]
    if "description" in plain:
        plain["description"] = " ".join(plain["description"].replace("``", "").split())
    return plain


# Golden manifests


def values_of(name: str) -> dict[str, Any]:
    """The values of a set, over those of the chart's overlay that its first line names, if it names one."""
    path = SETS / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    first = text.partition("\n")[0]
    base: dict[str, Any] = {}
    if first.startswith("# over: "):
        base = yaml.safe_load((CHART / first.removeprefix("# over: ").strip()).read_text(encoding="utf-8"))
    return laid_over(base, yaml.safe_load(text) or {})


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges a second ``--values`` file over a first one: maps key by key, all else whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def rendered(values: Mapping[str, Any], name: str = RELEASE, namespace: str = NAMESPACE) -> dict[str, str]:
    """Manifest by template, without templates that render nothing. Raises HelmError, whose text says what is wrong."""
    with Chart.load(CHART) as chart:
        manifests = chart.render(dict(values), name=name, namespace=namespace)
    return {path: text for path, text in sorted(manifests.items()) if text.strip()}


def rendered_text(values: Mapping[str, Any]) -> str:
    """All manifests and the notes in one file."""
    documents = []
    for path, text in rendered(values).items():
        body = text.strip("\n")
        if path.endswith("NOTES.txt"):
            body = "\n".join(f"# {line}".rstrip() for line in body.splitlines())
        documents.append(f"---\n# Source: {path}\n{body}\n")
    return "".join(documents)


def stale_files() -> list[str]:
    """What is wrong, one line a file; empty where all is fresh."""
    fresh = fresh_files()
    complaints = []
    for path, text in fresh.items():
        name = path.relative_to(ROOT)
        if not path.is_file():
            complaints.append(f"{name} is missing")
        elif path.read_text(encoding="utf-8") != text:
            complaints.append(f"{name} is not what the chart and the service give")
    complaints += [f"{path.relative_to(ROOT)} belongs to no set" for path in GOLDEN.glob("*.yaml") if path not in fresh]
    return complaints


def main() -> int:
    """The exit status: 0, or 1 where a check found something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; name what is stale")
    if parser.parse_args().check:
        complaints = stale_files()
        print("\n".join([*complaints, "run: make chart"]) if complaints else "the chart is fresh")
        return 1 if complaints else 0
    SCHEMA.write_text(schema_text(), encoding="utf-8")  # before the rest: what is rendered is held to it
    GOLDEN.mkdir(exist_ok=True)
    fresh = fresh_files()
    for path, text in fresh.items():
        path.write_text(text, encoding="utf-8")
    for path in set(GOLDEN.glob("*.yaml")) - set(fresh):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
