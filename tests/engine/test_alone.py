"""The engine imports and runs where torch, transformers, safetensors and tokenizers are all there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.engine.embedded import MODEL

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import importlib.abc, pkgutil, sys, warnings

BLOCKED = {"grpc", "google", "redis", "opentelemetry", "pydantic", "aiohttp", "prometheus_client", "llguidance"}
BLOCKED |= {"triton", "service", "firstword", "training", "bench", "evals", "tests"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import grpc
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("nothing is blocked")

import engine
names = [module.name for module in pkgutil.walk_packages(engine.__path__, "engine.")]
skipped = ["engine.grammar.compiler", "engine.grammar.guided"]  # what is held to no form needs no grammar
skipped += [name for name in names if name.startswith("engine.kernels.fused.")]  # and where there is no GPU, no Triton
for name in names:
    if name not in skipped:
        importlib.import_module(name)

from engine import records
from engine.config import EngineConfig
from engine.constraint import JsonConstraint
from engine.load import load_host
from engine.sampling import Sampling

host, ready = load_host(EngineConfig(model=sys.argv[1], pool_tokens=1024, max_context_tokens=512, draft_nodes=1))
host.handle(records.Open("call"))
host.handle(records.Submit("call", 1, 0, (0, 3, 5, 2), Sampling(), max_tokens=5))
events = []
while host.busy:
    events += host.advance()
assert isinstance(events[-1], records.Ended), events
assert sum(len(event.tokens) for event in events[:-1]) == events[-1].reply_tokens
events = host.handle(records.Submit("call", 2, 4, (3,), Sampling(), max_tokens=5, constraint=JsonConstraint("{}")))
while host.busy:
    events += host.advance()
(failed,) = events
assert failed.reason == "InvalidConstraint" and "llguidance" in failed.message, failed
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
print(len(names), "modules")
"""


def test_the_engine_needs_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(MODEL)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) == len(list((ROOT / "engine").rglob("*.py"))) - 1
