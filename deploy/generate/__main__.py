"""``python -m deploy.generate`` writes what is made of the objectives; with ``--check`` it only says what is stale."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.generate import dashboards
from deploy.generate.objectives import Objectives, load
from deploy.generate.rules import rules, scoped

ROOT = Path(__file__).resolve().parents[2]
HEAD = "# Made by `make observability` of deploy/objectives.toml. Change that instead.\n"


RELEASE = {"namespace": "@namespace@", "service": "@service@"}
"""What a ServiceMonitor labels a release's series with. The chart puts the names in where it renders the rules."""


class _Readable(yaml.SafeDumper):
    """Several lines are written as several lines, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Readable.add_representer(str, _text)


def files(objectives: Objectives) -> Mapping[Path, str]:
    """What each generated file holds."""
    found = {
        ROOT / "deploy/prometheus/rules.yaml": _rule_file(rules(objectives)),
        ROOT / "k8s/firstword/files/rules.yaml": _rule_file(scoped(rules(objectives), RELEASE)),
    }
    for name, dashboard in dashboards.all_of(objectives).items():
        found[ROOT / f"deploy/grafana/dashboards/{name}.json"] = json.dumps(dashboard, indent=1) + "\n"
    return found


def _rule_file(made: Mapping[str, Any]) -> str:
    text: str = yaml.dump(made, Dumper=_Readable, sort_keys=False, width=1000)
    return HEAD + text


def stale(objectives: Objectives) -> list[Path]:
    """The files that are not what they should be."""
    return [
        path
        for path, text in files(objectives).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """The exit status: 1 where ``--check`` finds something stale."""
    objectives = load()
    if arguments == ["--check"]:
        for path in (old := stale(objectives)):
            print(f"stale: {path.relative_to(ROOT)}; make observability", file=sys.stderr)
        return 1 if old else 0
    for path, text in files(objectives).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
